"""Tables and pictures of an experiment: mean and spread over seeds, and improvement over the baseline, seed by seed."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

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
    """

    variant: str
    metric: str
    unit: str
    values: tuple[float, ...]
    improvements: tuple[float, ...]

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
            found.append(
                Comparison(variant, metric, mine[0].units[metric], tuple(value for value, _ in pairs), improvements)
            )
    return found


def write_results(folder: Path, spec: ExperimentSpec, comparisons: Sequence[Comparison]) -> dict[str, Path]:
    """Write `results.md`, `results.csv` and `results.png`; returns what → file."""
    files = {kind: folder / f"results.{kind}" for kind in ("md", "csv", "png")}
    files["md"].write_text(as_markdown(spec, comparisons))
    with files["csv"].open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["variant", "metric", "unit", "mean", "spread", "improvement", "improvement_spread", "values"])
        for c in comparisons:
            row = [c.variant, c.metric, c.unit, c.mean, c.spread, c.improvement, c.improvement_spread]
            writer.writerow([*row, " ".join(map(str, c.values))])
    _draw(files["png"], spec, comparisons)
    return files


def as_markdown(spec: ExperimentSpec, comparisons: Sequence[Comparison]) -> str:
    """Title, question and table."""
    lines = [f"# {spec.title}", "", spec.question, ""]
    lines += [f"| variant | metric | mean ± spread over seeds | better than {spec.baseline} by |", "|---|---|---|---|"]
    for c in comparisons:
        gain = "" if math.isnan(c.improvement) else f"{100 * c.improvement:.1f} ± {100 * c.improvement_spread:.1f} %"
        lines.append(f"| {c.variant} | {c.metric} | {c.mean:.4g} ± {c.spread:.2g} {c.unit} | {gain} |")
    seeds = max((len(c.values) for c in comparisons), default=0)
    return "\n".join([*lines, "", f"{seeds} seeds; ± is the standard deviation over them.", ""])


def _draw(path: Path, spec: ExperimentSpec, comparisons: Sequence[Comparison]) -> None:
    metrics = list(dict.fromkeys(c.metric for c in comparisons))
    columns = min(4, len(metrics))
    rows = math.ceil(len(metrics) / columns)
    figure = Figure(figsize=(3.4 * columns, 3.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, metric in zip(panels, metrics, strict=False):
        chosen = [c for c in comparisons if c.metric == metric]
        places = range(len(chosen))
        axes.bar(places, [c.mean for c in chosen], color=["C7" if c.variant == spec.baseline else "C0" for c in chosen])
        for place, c in zip(places, chosen, strict=True):
            axes.scatter([place] * len(c.values), c.values, color="black", s=10, zorder=3)
        axes.set_xticks(list(places), [c.variant for c in chosen], rotation=20, ha="right", fontsize=8)
        axes.set_title(f"{metric} ({chosen[0].unit})", fontsize=9)
    for axes in panels[len(metrics) :]:
        axes.set_visible(False)
    figure.suptitle(spec.title, fontsize=11)
    figure.savefig(path, dpi=110)


def _stdev(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else math.nan
