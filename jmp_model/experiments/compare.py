"""Tables of an experiment: mean and spread over seeds, and improvement over the baseline, seed by seed."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jmp_model.experiments.pictures import draw_results
from jmp_model.experiments.run import Outcome
from jmp_model.experiments.spec import ExperimentSpec


@dataclass(frozen=True)
class Comparison:
    """One variant and one metric.

    Attributes:
        variant: its name.
        metric: its name.
        unit: of the values.
        values: one per seed.
        improvements: 1 − value / baseline's value with the same seed; empty for the baseline itself.
        base_lr: learning rate of fine-tuning; None where only pre-training is compared.
    """

    variant: str
    metric: str
    unit: str
    values: tuple[float, ...]
    improvements: tuple[float, ...]
    base_lr: float | None = None

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float:
        """Standard deviation over seeds; NaN for one."""
        return _stdev(self.values)

    @property
    def improvement(self) -> float:
        """Mean improvement over the baseline; NaN for the baseline."""
        return statistics.fmean(self.improvements) if self.improvements else math.nan

    @property
    def improvement_spread(self) -> float:
        """Its standard deviation over seeds; NaN for one."""
        return _stdev(self.improvements)


def compare(spec: ExperimentSpec, outcomes: Sequence[Outcome]) -> list[Comparison]:
    """One entry for each variant and metric, in the order of the spec; a metric that the baseline lacks has no
    improvement.
    """
    found = []
    baseline = {o.seed: o.metrics for o in outcomes if o.variant == spec.baseline}
    for variant in spec.variants:
        mine = [outcome for outcome in outcomes if outcome.variant == variant]
        for metric in mine[0].metrics if mine else ():
            pairs = [(o.metrics[metric], baseline.get(o.seed, {}).get(metric)) for o in mine]
            improvements = (
                tuple(1.0 - value / base for value, base in pairs if base) if variant != spec.baseline else ()
            )
            values = tuple(value for value, _ in pairs)
            found.append(Comparison(variant, metric, mine[0].units[metric], values, improvements, mine[0].base_lr))
    return found


def write_results(
    folder: Path, spec: ExperimentSpec, outcomes: Sequence[Outcome], comparisons: Sequence[Comparison]
) -> dict[str, Path]:
    """Write `results.md`, `results.csv` (one row a variant and metric) and `results.png`; returns what → file."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {kind: folder / f"results.{kind}" for kind in ("md", "csv", "png")}
    files["md"].write_text(as_markdown(spec, comparisons))
    with files["csv"].open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        columns = ["variant", "metric", "unit", "mean", "spread", "improvement", "improvement_spread", "base_lr"]
        writer.writerow([*columns, *(f"seed {seed}" for seed in spec.seeds)])
        for c in comparisons:
            row = [c.variant, c.metric, c.unit, c.mean, c.spread, c.improvement, c.improvement_spread, c.base_lr]
            writer.writerow([*row, *c.values])
    draw_results(files["png"], spec, outcomes)
    return files


def table_rows(spec: ExperimentSpec, comparisons: Sequence[Comparison]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the table, as text."""
    columns = ["variant", "metric", "mean ± spread over seeds", f"lower than {spec.baseline} by"]
    rows = [[c.variant, c.metric, f"{_pair(c.mean, c.spread)} {c.unit}", _gain(c)] for c in comparisons]
    if any(c.base_lr is not None for c in comparisons):
        columns.append("learning rate")
        rows = [[*row, f"{c.base_lr:g}"] for row, c in zip(rows, comparisons, strict=True)]
    return columns, rows


def as_markdown(spec: ExperimentSpec, comparisons: Sequence[Comparison]) -> str:
    """Title, question, table and how to read it."""
    columns, rows = table_rows(spec, comparisons)
    lines = [f"# {spec.title}", "", spec.question, ""]
    lines += [f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), *rows)]
    return "\n".join([*lines, "", reading(spec), "", f"![{spec.title}](results.png)", ""])


def reading(spec: ExperimentSpec) -> str:
    """What the numbers of the table are."""
    count = len(spec.seeds)
    text = f"Errors are mean absolute errors; ± is the standard deviation over {count} seeds."
    if count == 1:
        text = "Errors are mean absolute errors of one seed, so there is no spread."
    if spec.finetune is None:
        return f"{text} They are measured on the validation splits with the averaged weights."
    kept = "change pre-training and fine-tuning" if spec.vary == "both" else "change fine-tuning alone"
    text += (
        f" They are measured on the test split with the weights that were best on the validation split. Seeds {kept}."
    )
    if spec.model == "tiny" and spec.finetune.tiny_rates:
        rates = ", ".join(f"{rate:g}" for rate in spec.finetune.tiny_rates)
        text += f" Each variant took the learning rate out of {rates} that was best on the validation split."
    return text


def _pair(mean: float, spread: float) -> str:
    return f"{mean:.4g}" if math.isnan(spread) else f"{mean:.4g} ± {spread:.2g}"


def _gain(comparison: Comparison) -> str:
    mean, spread = 100 * comparison.improvement, 100 * comparison.improvement_spread
    if math.isnan(mean):
        return ""
    return f"{mean:.1f} %" if math.isnan(spread) else f"{mean:.1f} ± {spread:.1f} %"


def _stdev(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else math.nan
