"""A one-page report of a model on a split: parity, learning curves, errors by element and by force, worst cases."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from ase.data import chemical_symbols
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jmp_data import ShardDataset
from jmp_model.finetune.predictions import SplitPredictions, score
from jmp_model.finetune.tasks import TargetSpec, TaskSpec
from jmp_model.train.metrics_log import read_rows

Array = npt.NDArray[Any]
WORST = 10
_FORCE_BINS = 12


@dataclass(frozen=True)
class WorstStructure:
    """A structure with a large error.

    Attributes:
        source_id: where it came from.
        formula: chemical formula.
        error: in report units: |Δ| of a number per structure, mean |ΔF| component of forces.
    """

    source_id: str
    formula: str
    error: float


def structure_errors(predictions: SplitPredictions, name: str, target: TargetSpec) -> Array:
    """(n,) error of each structure in report units; 1 for a wrong class."""
    truth, predicted = predictions.truth[name], predictions.predicted[name]
    if target.kind == "class":
        chosen = predicted.argmax(axis=-1) if predicted.ndim > 1 else predicted > 0
        return np.asarray(chosen.astype(np.int64) != truth, np.float64)
    error = np.asarray(np.abs(predicted - truth) * target.report_scale)
    if target.kind != "forces":
        return error
    totals = np.bincount(predictions.structure_of_atom, weights=error.mean(axis=1), minlength=len(predictions.natoms))
    return np.asarray(totals / predictions.natoms)


def worst_structures(
    predictions: SplitPredictions, name: str, target: TargetSpec, dataset: ShardDataset, *, count: int = WORST
) -> list[WorstStructure]:
    """Structures with the largest errors, worst first."""
    errors = structure_errors(predictions, name, target)
    order = np.argsort(-np.nan_to_num(errors))[:count]
    found = []
    for row in order.tolist():
        structure = dataset[int(predictions.index[row])]
        formula = structure.to_ase().get_chemical_formula()
        found.append(WorstStructure(structure.source_id, formula, float(errors[row])))
    return found


def error_by_element(predictions: SplitPredictions, name: str, target: TargetSpec) -> dict[str, float]:
    """Element → mean error: of its atoms' force components, or of the structures that contain it."""
    numbers = predictions.atomic_numbers
    if target.kind == "forces":
        per_atom = np.abs(predictions.predicted[name] - predictions.truth[name]).mean(axis=1) * target.report_scale
    else:
        per_atom = structure_errors(predictions, name, target)[predictions.structure_of_atom]
    found = {}
    for z in np.unique(numbers):
        values = per_atom[numbers == z]
        if target.kind != "forces":
            inside = np.unique(predictions.structure_of_atom[numbers == z])
            values = structure_errors(predictions, name, target)[inside]
        found[chemical_symbols[z]] = float(np.nanmean(values))
    return found


def error_by_force(predictions: SplitPredictions, name: str, target: TargetSpec) -> tuple[Array, Array]:
    """Upper ends of bins of the true force's length, eV/Å, with equal numbers of atoms, and the mean error in each."""
    length = np.linalg.norm(predictions.truth[name], axis=1)
    error = np.abs(predictions.predicted[name] - predictions.truth[name]).mean(axis=1) * target.report_scale
    ends = np.unique(np.quantile(length, np.linspace(0, 1, _FORCE_BINS + 1)[1:]))
    place = np.minimum(np.searchsorted(ends, length), len(ends) - 1)
    counts = np.bincount(place, minlength=len(ends))
    return ends, np.bincount(place, weights=error, minlength=len(ends)) / np.maximum(counts, 1)


def write_report(
    folder: Path, task: TaskSpec, predictions: SplitPredictions, dataset: ShardDataset, *, facts: Sequence[str] = ()
) -> Path:
    """Write `report.html`, pictures inside.

    Args:
        folder: run folder; learning curves come from its metrics.
        task: targets and units.
        predictions: on the split that is reported on.
        dataset: that split.
        facts: lines for the head of the page.
    """
    parts = [f"<h1>{html.escape(task.name)}</h1>", _list(facts), _score_table(task, predictions)]
    parts.append(_image(_learning_curves(folder, task)))
    for name, target in task.targets.items():
        if name not in predictions.truth or (target.coefficient == 0.0 and target.kind == "energy"):
            continue
        parts.append(f"<h2>{html.escape(name)}</h2>")
        if target.kind != "class":
            parts.append(_image(_target_figure(predictions, name, target)))
        parts.append(_worst_table(worst_structures(predictions, name, target, dataset), target))
    page = folder / "report.html"
    page.write_text(_PAGE.format(title=html.escape(task.name), body="\n".join(parts)))
    return page


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.4 sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; }}
td, th {{ padding: .2rem .8rem; border-bottom: 1px solid #ddd; text-align: left; }}
img {{ max-width: 100%; }}
</style></head><body>
{body}
</body></html>
"""


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>" if lines else ""


def _score_table(task: TaskSpec, predictions: SplitPredictions) -> str:
    published = task.published
    rows = ["<tr><th>target</th><th>metric</th><th>this model</th><th>JMP-S</th><th>JMP-L</th><th>unit</th></tr>"]
    for name, target in task.targets.items():
        if name not in predictions.truth:
            continue
        shown = published if name == task.primary else None
        cells = [
            html.escape(name),
            target.metric,
            _figure(score(predictions, name, target)),
            _figure(None if shown is None else shown.jmp_small),
            _figure(None if shown is None else shown.jmp_large),
            html.escape(target.report_unit or target.unit),
        ]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f"<table>{''.join(rows)}</table>"


def _worst_table(worst: Sequence[WorstStructure], target: TargetSpec) -> str:
    unit = html.escape(target.report_unit or target.unit)
    rows = [f"<tr><th>worst structures</th><th>formula</th><th>error {unit}</th></tr>"]
    rows += [
        f"<tr><td>{html.escape(w.source_id)}</td><td>{html.escape(w.formula)}</td><td>{_figure(w.error)}</td></tr>"
        for w in worst
    ]
    return f"<table>{''.join(rows)}</table>"


def _target_figure(predictions: SplitPredictions, name: str, target: TargetSpec) -> Figure:
    panels = 3 if target.kind == "forces" else 2
    figure = Figure(figsize=(5.0 * panels, 4.2), layout="constrained")
    axes = figure.subplots(1, panels)
    unit = target.report_unit or target.unit
    _draw_parity(axes[0], predictions.truth[name], predictions.predicted[name], target.unit)
    by_element = error_by_element(predictions, name, target)
    axes[1].bar(list(by_element), list(by_element.values()))
    axes[1].set_title(f"MAE by element ({unit})", fontsize=10)
    if target.kind == "forces":
        ends, errors = error_by_force(predictions, name, target)
        axes[2].plot(ends, errors, marker="o")
        axes[2].set_title(f"MAE by length of the true force ({unit})", fontsize=10)
        axes[2].set_xlabel("eV/Å, equal numbers of atoms")
    return figure


def _draw_parity(axes: Axes, truth: Array, predicted: Array, unit: str) -> None:
    x, y = truth.ravel(), predicted.ravel()
    known = np.isfinite(x)
    x, y = x[known], y[known]
    if len(x) > 2000:
        axes.hexbin(x, y, gridsize=60, bins="log", cmap="viridis", mincnt=1)
    else:
        axes.scatter(x, y, s=6, alpha=0.6)
    if len(x):
        ends = [min(x.min(), y.min()), max(x.max(), y.max())]
        axes.plot(ends, ends, color="grey", linewidth=0.8)
    axes.set_xlabel(f"label ({unit})")
    axes.set_ylabel("predicted")
    axes.set_title("parity", fontsize=10)


def _learning_curves(folder: Path, task: TaskSpec) -> Figure:
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    loss, errors = figure.subplots(1, 2)
    training, validation = read_rows(folder, "training"), read_rows(folder, "validation")
    loss.plot([row["step"] for row in training], [row["loss"] for row in training], alpha=0.6, label="training")
    loss.plot([row["step"] for row in validation], [row["loss"] for row in validation], marker="o", label="validation")
    loss.set_title("loss", fontsize=10)
    loss.set_yscale("log")
    loss.legend(fontsize=8)
    target = task.targets[task.primary]
    errors.plot([row["step"] for row in validation], [row[task.primary] for row in validation], marker="o")
    errors.set_title(f"validation {task.primary}: {target.metric} ({target.report_unit or target.unit})", fontsize=10)
    for axes in (loss, errors):
        axes.set_xlabel("optimiser steps")
        axes.grid(alpha=0.3)
    return figure


def _image(figure: Figure) -> str:
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _figure(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.4g}"
