"""The picture of an experiment: a bar for each variant, a dot for each seed, and learning curves of fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jmp_model.experiments.run import Outcome
from jmp_model.experiments.spec import ExperimentSpec

_COLUMNS = 4


def draw_results(path: Path, spec: ExperimentSpec, outcomes: Sequence[Outcome]) -> None:
    """Draw all metrics, and the learning curves if there are any."""
    colours = _colours(spec)
    metrics = list(dict.fromkeys(metric for outcome in outcomes for metric in outcome.metrics))
    has_curves = any(outcome.curve for outcome in outcomes)
    count = len(metrics) + has_curves
    columns = min(_COLUMNS, count)
    rows = math.ceil(count / columns)
    width = max(3.4, 0.6 * len(spec.variants) + 1.2)
    figure = Figure(figsize=(width * columns, 3.6 * rows + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for metric in metrics:
        _draw_bars(panels.pop(0), metric, outcomes, colours)
    if has_curves:
        _draw_curves(panels.pop(0), outcomes, colours)
    for axes in panels:
        axes.set_visible(False)
    figure.suptitle(spec.title, fontsize=11)
    figure.savefig(path, dpi=120)


def _colours(spec: ExperimentSpec) -> dict[str, str]:
    others = [name for name in spec.variants if name != spec.baseline]
    return {spec.baseline: "C7"} | {name: f"C{number % 7}" for number, name in enumerate(others)}


def _draw_bars(axes: Any, metric: str, outcomes: Sequence[Outcome], colours: dict[str, str]) -> None:
    measured = {
        name: [o.metrics[metric] for o in outcomes if o.variant == name and metric in o.metrics]
        for name in dict.fromkeys(o.variant for o in outcomes)
    }
    shown = {name: values for name, values in measured.items() if values}
    places = range(len(shown))
    axes.bar(places, [fmean(values) for values in shown.values()], color=[colours[name] for name in shown], alpha=0.7)
    for place, values in zip(places, shown.values(), strict=True):
        axes.scatter([place] * len(values), values, color="black", s=10, zorder=3)
    axes.set_xticks(list(places), list(shown), rotation=20, ha="right", fontsize=8)
    unit = next(o.units[metric] for o in outcomes if metric in o.units)
    axes.set_title(f"{metric} MAE ({unit})" if "mae" not in metric else f"{metric} ({unit})", fontsize=9)


def _draw_curves(axes: Any, outcomes: Sequence[Outcome], colours: dict[str, str]) -> None:
    named: set[str] = set()
    for outcome in outcomes:
        label = None if outcome.variant in named else outcome.variant
        named.add(outcome.variant)
        steps, errors = zip(*outcome.curve, strict=True) if outcome.curve else ((), ())
        axes.plot(steps, errors, color=colours[outcome.variant], label=label, linewidth=1.2, marker=".", markersize=4)
    axes.set_yscale("log")
    axes.set_xlabel("steps of fine-tuning", fontsize=8)
    axes.set_title("validation error, a line for each seed", fontsize=9)
    axes.legend(fontsize=7)
