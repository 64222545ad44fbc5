"""A one-page report of a model on a split: parity, learning curves, errors by element and by force, worst cases."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import Environment
from markupsafe import Markup

from jmp_data import ShardDataset
from jmp_data.report.page_style import STYLE
from jmp_data.report.structure_picture import color_definitions, draw_structure
from jmp_model.finetune import report_figures as draw
from jmp_model.finetune.error_analysis import (
    ErrorSummary,
    error_by_element,
    error_by_force,
    summarize_errors,
    worst_structures,
)
from jmp_model.finetune.predictions import SplitPredictions, score
from jmp_model.finetune.report_page import EXTRA_STYLE, PAGE
from jmp_model.finetune.tasks import TargetSpec, TaskSpec
from jmp_model.train.metrics_log import read_rows

Array = npt.NDArray[Any]
REPORT_FILE = "report.html"


@dataclass(frozen=True)
class ReportContext:
    """What the page says besides numbers.

    Attributes:
        lead: one sentence under the title.
        tiles: label → value, such as how long it took.
        facts: name → value, where everything came from.
        fold: for comparison with published figures.
        run: run folder with learning curves, or None.
        usage: whether to say how the model in `run` is used.
    """

    lead: str
    tiles: Mapping[str, str]
    facts: Mapping[str, str]
    fold: int = 0
    run: Path | None = None
    usage: bool = False


def write_report(
    folder: Path, task: TaskSpec, predictions: SplitPredictions, dataset: ShardDataset, context: ReportContext
) -> Path:
    """Write `report.html`; it holds its pictures and asks for nothing from elsewhere.

    Args:
        folder: where to write.
        task: targets and units.
        predictions: on the split that is reported on.
        dataset: that split.
        context: the rest.
    """
    shown = {
        name: target
        for name, target in task.targets.items()
        if name in predictions.truth and target.coefficient > 0.0 and _has_labels(predictions, name)
    }
    summaries = {
        name: summarize_errors(predictions, name, target) for name, target in shown.items() if target.kind != "class"
    }
    primary_first = sorted(shown.items(), key=lambda entry: entry[0] != task.primary)
    sections = [_section(predictions, name, target, dataset) for name, target in primary_first]
    numbers = {int(z) for section in sections for entry in section["worst"] for z in entry["numbers"]}
    published = {} if task.published is None else task.published.figures(fold=context.fold)
    page = Environment(autoescape=True).from_string(PAGE)
    text = page.render(
        title=task.name,
        style=Markup(STYLE + EXTRA_STYLE),
        colors=color_definitions(numbers),
        lead=context.lead,
        tiles=_tiles(task, predictions, shown, summaries, context),
        measured_on=f"{len(predictions.natoms):,} structures of the {dataset.split} split",
        published=list(published),
        scores=[_score_row(task, predictions, name, target, summaries, published) for name, target in shown.items()],
        notes=_notes(task, shown),
        curves=[] if context.run is None else _curves(context.run, task),
        curves_lead=f"validation after each epoch picks the weights by {task.primary}",
        sections=sections,
        usage=_usage(task, context),
        facts=context.facts,
    )
    file = folder / REPORT_FILE
    file.write_text(text)
    return file


def _has_labels(predictions: SplitPredictions, name: str) -> bool:
    return bool(np.isfinite(predictions.truth[name].astype(np.float64)).any())


def _unit(target: TargetSpec) -> str:
    return target.report_unit or target.unit


def _tiles(
    task: TaskSpec,
    predictions: SplitPredictions,
    shown: Mapping[str, TargetSpec],
    summaries: Mapping[str, ErrorSummary],
    context: ReportContext,
) -> list[dict[str, str]]:
    tiles = []
    for name in sorted(shown, key=lambda name: name != task.primary)[:3]:
        target = shown[name]
        label = f"{name} {target.metric.upper() if target.kind != 'class' else 'balanced accuracy'}"
        value = _figure(score(predictions, name, target))
        tiles.append({"value": value, "unit": _unit(target), "label": label})
        if name in summaries and summaries[name].spread:
            share = 100.0 * summaries[name].mae / summaries[name].spread
            tiles.append({"value": f"{share:.3g}", "unit": "%", "label": f"of how much {name} labels vary"})
    return tiles + [{"value": value, "unit": "", "label": label} for label, value in context.tiles.items()]


def _score_row(
    task: TaskSpec,
    predictions: SplitPredictions,
    name: str,
    target: TargetSpec,
    summaries: Mapping[str, ErrorSummary],
    published: Mapping[str, float],
) -> dict[str, Any]:
    summary = summaries.get(name)
    return {
        "name": name,
        "metric": "MAE" if target.metric == "mae" else "balanced accuracy",
        "value": _figure(score(predictions, name, target)),
        "rmse": _figure(None if summary is None else summary.rmse),
        "spread": _figure(None if summary is None else summary.spread),
        "per_atom": _figure(None if summary is None else summary.mae_per_atom),
        "published": {key: f"{value:g}" for key, value in published.items()} if name == task.primary else {},
        "unit": _unit(target),
    }


def _notes(task: TaskSpec, shown: Mapping[str, TargetSpec]) -> list[str]:
    notes = []
    if any(target.kind == "forces" for target in shown.values()):
        notes.append("Forces: errors of components, of atoms that are not fixed.")
    if any(target.references is not None for target in shown.values()):
        notes.append(
            "“Labels vary by” and parity plots are after element references: composition alone explains the rest."
        )
    untrained = [name for name, target in task.targets.items() if target.coefficient == 0.0]
    if untrained:
        notes.append(f"Not trained, and not shown: {', '.join(untrained)}.")
    return notes


def _section(predictions: SplitPredictions, name: str, target: TargetSpec, dataset: ShardDataset) -> dict[str, Any]:
    worst = worst_structures(predictions, name, target, dataset)
    return {
        "name": name,
        "lead": "",
        "unit": _unit(target) or "by error",
        "charts": _charts(predictions, name, target),
        "worst": [
            {
                "figure": draw_structure(entry.structure),
                "error": _figure(entry.error),
                "formula": entry.formula,
                "source_id": entry.structure.source_id,
                "short_id": entry.structure.source_id.rpartition("/")[2],
                "numbers": entry.structure.atomic_numbers.tolist(),
            }
            for entry in worst
            if entry.error > 0
        ],
    }


def _charts(predictions: SplitPredictions, name: str, target: TargetSpec) -> list[dict[str, Any]]:
    truth, predicted = predictions.truth[name], predictions.predicted[name]
    by_element = error_by_element(predictions, name, target)
    unit = _unit(target)
    if target.kind == "class":
        return [{"title": "Right and wrong", "figure": draw.confusion(_confusion(truth, predicted, target))}]
    if target.kind == "forces":
        truth, predicted = truth[predictions.free], predicted[predictions.free]
        label = f"component, {target.unit}"
    else:
        truth, predicted = predictions.relative(truth, name), predictions.relative(predicted, name)
        label = ", ".join(part for part in (name, target.unit) if part)
    charts = [{"title": "Parity", "figure": draw.parity(truth.ravel(), predicted.ravel(), label=label)}]
    if target.kind != "forces":
        errors = (predicted - truth) * target.report_scale
        charts.append({"title": "Distribution of errors", "figure": draw.error_histogram(errors, label=unit)})
    if target.kind == "forces" or len({count for _, count in by_element.values()}) > 1:
        charts.append({"title": "Error by element", "figure": draw.element_bars(by_element, label=unit)})
    if target.kind == "forces":
        ends, errors = error_by_force(predictions, name, target)
        charts.append({"title": "Error by size of the force", "figure": draw.force_bars(ends, errors, label=unit)})
    return charts


def _confusion(truth: Array, logits: Array, target: TargetSpec) -> Array:
    chosen = logits.argmax(axis=-1) if logits.ndim > 1 else (logits > 0).astype(np.int64)
    counts = np.zeros((target.num_classes, target.num_classes), np.int64)
    np.add.at(counts, (truth.astype(np.int64), chosen), 1)
    return counts


def _curves(run: Path, task: TaskSpec) -> list[dict[str, Any]]:
    training, validation = read_rows(run, "training"), read_rows(run, "validation")
    if not training or not validation:
        return []
    target = task.targets[task.primary]
    values = _column(validation, task.primary)
    best = None
    if np.isfinite(values).any():
        best = validation[int(np.nanargmax(values) if task.higher_is_better else np.nanargmin(values))]["step"]
    losses = [
        ("training", [row["step"] for row in training], _column(training, "loss")),
        ("validation", [row["step"] for row in validation], _column(validation, "loss")),
    ]
    error = [(task.primary, [row["step"] for row in validation], values)]
    rate = [("rate", [row["step"] for row in training], [row["lr"] for row in training])]
    label = f"{task.primary}, {_unit(target)}" if _unit(target) else task.primary
    return [
        {
            "title": "Validation error",
            "figure": draw.curves(error, label=label, logarithmic=target.kind != "class", best=best),
        },
        {"title": "Loss", "figure": draw.curves(losses, label="loss", logarithmic=True, best=best)},
        {
            "title": "Largest learning rate",
            "figure": draw.curves(rate, label="learning rate", logarithmic=False, best=None),
        },
    ]


def _column(rows: list[dict[str, Any]], name: str) -> list[float]:
    return [math.nan if row[name] is None else row[name] for row in rows]


def _usage(task: TaskSpec, context: ReportContext) -> str:
    if not context.usage or context.run is None:
        return ""
    trained = {target.kind for target in task.targets.values() if target.coefficient > 0.0}
    if "forces" in trained or "energy" in trained:
        return (
            "from jmp_model import JMPCalculator\n\n"
            f"atoms.calc = JMPCalculator({str(context.run.absolute())!r})\n"
            "atoms.get_potential_energy(), atoms.get_forces()"
        )
    return f'from jmp_model import load_model\n\nmodel = load_model("{context.run.absolute()}")\nmodel(atoms)'


def _figure(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.4g}"
