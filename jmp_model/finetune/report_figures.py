"""Figures of the report as inline SVG that takes its colours from the page, light or dark."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

Array = npt.NDArray[Any]

# Colours that matplotlib writes and the page then replaces by its own.
_INK, _SOFT, _LINE, _FIRST, _SECOND, _THIRD = "#010203", "#010204", "#010205", "#010206", "#010207", "#010208"
_OF_PAGE: Final = {
    _INK: "var(--ink)",
    _SOFT: "var(--soft)",
    _LINE: "var(--line)",
    _FIRST: "var(--c0)",
    _SECOND: "var(--c1)",
    _THIRD: "var(--c2)",
}
_DOTS: Final = "#2a78d6"
"""Of pictures inside the SVG, which the page cannot recolour: readable on white and on black."""
_STYLE: Final = {
    "svg.fonttype": "none",
    "svg.hashsalt": "jmp",
    "font.size": 10.0,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "xtick.labelcolor": _SOFT,
    "text.color": _SOFT,
    "grid.color": _LINE,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9.0,
}
MANY_POINTS: Final = 1500


def parity(truth: Array, predicted: Array, *, label: str) -> Markup:
    """Predictions against labels; where there are many, how many lie in each place."""
    known = np.isfinite(truth) & np.isfinite(predicted)
    if not known.any():
        return Markup('<p class="note">no prediction is finite</p>')
    x, y = truth[known], predicted[known]
    figure, axes = _new(4.4, 4.1)
    low, high = float(min(x.min(), y.min())), float(max(x.max(), y.max()))
    margin = 0.04 * (high - low or 1.0)
    ends = (low - margin, high + margin)
    axes.plot(ends, ends, color=_SOFT, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    if len(x) > MANY_POINTS:
        axes.hexbin(
            x,
            y,
            gridsize=70,
            bins="log",
            cmap="viridis",
            mincnt=1,
            linewidths=0,
            rasterized=True,
            extent=(*ends, *ends),
        )
    else:
        axes.scatter(x, y, s=14, color=_DOTS, alpha=0.55, linewidths=0, rasterized=True, zorder=2)
    axes.set(xlim=ends, ylim=ends, xlabel=f"label, {label}", ylabel=f"predicted, {label}")
    axes.set_aspect("equal")
    axes.grid(visible=True)
    return _svg(figure, "predictions against labels")


def error_histogram(errors: Array, *, label: str) -> Markup:
    """How often predictions are so much too large or too small; the farthest hundredth is cut off."""
    errors = errors[np.isfinite(errors)]
    if len(errors) == 0:
        return Markup('<p class="note">no prediction is finite</p>')
    figure, axes = _new(4.4, 3.3)
    reach = float(np.quantile(np.abs(errors), 0.99)) or 1.0
    bins = int(np.clip(len(errors) ** 0.5, 8, 50))
    axes.hist(errors, bins=bins, range=(-reach, reach), color=_THIRD)
    axes.axvline(0.0, color=_SOFT, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.set(xlabel=f"predicted − label, {label}", ylabel="number")
    axes.grid(visible=True, axis="y")
    return _svg(figure, "distribution of errors")


def element_bars(errors: Mapping[str, tuple[float, int]], *, label: str) -> Markup:
    """A bar for each element, largest error first; how many values stand behind it."""
    ordered = sorted(errors.items(), key=lambda entry: entry[1][0])[-24:]
    figure, axes = _new(4.4, max(2.0, 0.30 * len(ordered) + 0.9))
    names = [name for name, _ in ordered]
    if not ordered:
        return Markup('<p class="note">no prediction is finite</p>')
    values = [value for _, (value, _) in ordered]
    axes.barh(names, values, color=_FIRST, height=0.66)
    for row, (_, (value, count)) in enumerate(ordered):
        axes.annotate(
            f"{value:,.4g}  of {count:,}", (value, row), (4, 0), textcoords="offset points", va="center", fontsize=8.5
        )
    axes.set_xlim(0, 1.35 * max(values))
    axes.set_xlabel(f"MAE, {label}")
    axes.tick_params(axis="y", length=0)
    return _svg(figure, "error by element")


def force_bars(ends: Array, errors: Array, *, label: str) -> Markup:
    """Error of atoms in bins of equal numbers, by the length of their true force."""
    figure, axes = _new(4.4, 3.3)
    places = np.arange(len(ends))
    axes.bar(places, errors, color=_SECOND, width=0.78)
    axes.set_xticks(places, [f"{end:.2g}" for end in ends], rotation=45 if len(ends) > 8 else 0)
    axes.set(xlabel="true force up to, eV/Å; each bar as many atoms", ylabel=f"MAE, {label}")
    axes.grid(visible=True, axis="y")
    return _svg(figure, "error by size of the force")


def curves(
    series: Sequence[tuple[str, Sequence[float], Sequence[float]]], *, label: str, logarithmic: bool, best: float | None
) -> Markup:
    """Lines over optimiser steps: name, steps, values. `best` marks the step whose weights were kept."""
    figure, axes = _new(4.4, 3.1)
    for (name, steps, values), color in zip(series, (_FIRST, _SECOND, _THIRD), strict=False):
        few = len(steps) < 40
        axes.plot(steps, values, color=color, linewidth=1.5, label=name, marker="o" if few else None, markersize=3)
    if best is not None:
        axes.axvline(best, color=_SOFT, linewidth=0.9, linestyle=(0, (2, 2)))
        axes.annotate("best", (best, 1.0), (3, -2), xycoords=("data", "axes fraction"), textcoords="offset points",
                      va="top", fontsize=8.5)  # fmt: skip
    positive = [value for _, _, values in series for value in values if value > 0]
    if logarithmic and positive and max(positive) > 10.0 * min(positive):
        axes.set_yscale("log")
    axes.set(xlabel="optimiser steps", ylabel=label)
    axes.grid(visible=True)
    if len(series) > 1:
        axes.legend(loc="best", frameon=False, fontsize=9.0)
    return _svg(figure, label)


def confusion(counts: Array) -> Markup:
    """True classes in rows, predicted ones in columns."""
    figure, axes = _new(3.6, 3.3)
    share = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    axes.imshow(share, cmap="Blues", vmin=0.0, vmax=1.0)
    for (row, column), count in np.ndenumerate(counts):
        color = "#ffffff" if share[row, column] > 0.6 else "#14181f"
        axes.text(column, row, f"{count:,}", ha="center", va="center", color=color)
    axes.set_xticks(range(len(counts)))
    axes.set_yticks(range(len(counts)))
    axes.set(xlabel="predicted class", ylabel="true class")
    return _svg(figure, "confusion matrix")


def _new(width: float, height: float) -> tuple[Figure, Axes]:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots()


def _svg(figure: Figure, title: str) -> Markup:
    with mpl.rc_context(_STYLE):
        buffer = io.StringIO()
        FigureCanvasSVG(figure)
        figure.savefig(buffer, format="svg", metadata={"Date": None}, dpi=170)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    for written, shown in _OF_PAGE.items():
        text = text.replace(written, shown)
    # The page chooses fonts and width; white behind the axes would shine in the dark.
    text = text.replace("'DejaVu Sans', ", "").replace("fill: #ffffff", "fill: none")
    return Markup(text.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1))
