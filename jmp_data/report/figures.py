"""Histograms as inline SVG. Colours are CSS classes, so a figure follows the page from light to dark.

Nothing here draws with matplotlib: its figures carry their own colours and fonts, and weigh a hundred times as much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape

from jmp_data.report.axes import nice_ticks, plain

WIDTH: Final = 460
HEIGHT: Final = 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 10, 10, 30


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """One split in a histogram.

    Attributes:
        name: of the split.
        color: number of its colour on the page.
        counts: (bins,) values in each bin.
        total: values in all, those beyond the axis included; bars are shares of it.
    """

    name: str
    color: int
    counts: npt.NDArray[Any]
    total: int

    @property
    def shares(self) -> npt.NDArray[np.float64]:
        """(bins,) per cent."""
        return np.asarray(100.0 * self.counts / max(1, self.total))


def histogram(
    edges: npt.NDArray[np.float64],
    series: Sequence[Series],
    *,
    label: str,
    logarithmic: bool = False,
    whole_numbers: bool = False,
    mark: tuple[float, str] | None = None,
) -> Markup:
    """A histogram of one quantity: bars for the first split, outlines for the others.

    Args:
        edges: (bins + 1,) in the unit of the axis.
        series: splits; the first is drawn filled.
        label: of the axis, with the unit.
        logarithmic: whether the axis is.
        whole_numbers: whether bins are centred on whole numbers.
        mark: a value to point out, and what it is.
    """
    places = np.log10(edges) if logarithmic else edges
    x = _LEFT + (places - places[0]) / (places[-1] - places[0]) * (WIDTH - _LEFT - _RIGHT)
    highest = max(max(float(s.shares.max(initial=0.0)) for s in series), 1e-9)
    floor = HEIGHT - _BOTTOM

    def y(share: float) -> float:
        return floor - share / (highest * 1.06) * (floor - _TOP)

    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">']
    for tick in nice_ticks(0, highest * 1.06, 3):
        if tick > 0:
            parts.append(
                f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
            )
        parts.append(
            f'<text class="tick" text-anchor="end" x="{_LEFT - 6}" y="{y(tick) + 3.5:.1f}">{plain(tick)}%</text>'
        )
    parts += [_bars(series[0], x, y, floor)]
    parts += [_outline(one, x, y, floor) for one in series[1:]]
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{floor}" y2="{floor}"/>')
    parts += _ticks(edges, x, floor, logarithmic=logarithmic, whole_numbers=whole_numbers)
    if mark is not None and edges[0] < mark[0] < edges[-1]:
        parts.append(_mark(mark, edges, x, floor))
    parts += _hover(edges, series, x, floor, whole_numbers=whole_numbers)
    parts.append("</svg>")
    return Markup("".join(parts))


def _bars(one: Series, x: Any, y: Any, floor: float) -> str:
    gap = 0.8 if (x[1] - x[0]) > 4 else 0.0
    bars = [
        f"M{x[i] + gap / 2:.1f} {floor}V{y(share):.1f}H{x[i + 1] - gap / 2:.1f}V{floor}Z"
        for i, share in enumerate(one.shares)
        if share > 0
    ]
    return f'<path class="bar c{one.color}" d="{"".join(bars)}"/>'


def _outline(one: Series, x: Any, y: Any, floor: float) -> str:
    """Steps over the bins that hold something; the line leaves the floor only there."""
    path, inside = [], False
    for i, share in enumerate(one.shares):
        if share > 0:
            path.append(
                f"V{y(share):.1f}H{x[i + 1]:.1f}" if inside else f"M{x[i]:.1f} {floor}V{y(share):.1f}H{x[i + 1]:.1f}"
            )
        elif inside:
            path.append(f"V{floor}")
        inside = bool(share > 0)
    if inside:
        path.append(f"V{floor}")
    return f'<path class="outline c{one.color}" d="{"".join(path)}"/>'


def _ticks(edges: Any, x: Any, floor: float, *, logarithmic: bool, whole_numbers: bool) -> list[str]:
    if logarithmic:
        low, high = int(np.ceil(np.log10(edges[0]) - 1e-9)), int(np.floor(np.log10(edges[-1]) + 1e-9))
        values = [10.0**k for k in range(low, high + 1)]
        places = np.interp(np.log10(values), np.log10(edges), x)
    else:
        values = nice_ticks(float(edges[0]), float(edges[-1]), 6)
        values = [value for value in values if value == round(value)] if whole_numbers else values
        places = np.interp(values, edges, x)
    return [
        f'<line class="axis" x1="{place:.1f}" x2="{place:.1f}" y1="{floor}" y2="{floor + 4}"/>'
        f'<text class="tick" text-anchor="middle" x="{place:.1f}" y="{floor + 17}">{plain(value)}</text>'
        for value, place in zip(values, places, strict=True)
    ]


def _mark(mark: tuple[float, str], edges: Any, x: Any, floor: float) -> str:
    place = float(np.interp(mark[0], edges, x))
    side, offset = ("end", -5) if place > WIDTH * 0.6 else ("start", 5)
    return (
        f'<line class="mark" x1="{place:.1f}" x2="{place:.1f}" y1="{_TOP}" y2="{floor}"/>'
        f'<text class="tick" text-anchor="{side}" x="{place + offset:.1f}" y="{_TOP + 9}">{escape(mark[1])}</text>'
    )


def _hover(edges: Any, series: Sequence[Series], x: Any, floor: float, *, whole_numbers: bool) -> list[str]:
    """One invisible column a bin, whose tooltip names every split."""
    columns = []
    for i in range(len(edges) - 1):
        present = [one for one in series if one.counts[i]]
        if not present:
            continue
        if whole_numbers:
            low, high = int(np.ceil(edges[i])), int(np.floor(edges[i + 1]))
            where = plain(low) if low == high else f"{plain(low)} to {plain(high)}"
        else:
            where = f"{plain(float(f'{edges[i]:.4g}'))} to {plain(float(f'{edges[i + 1]:.4g}'))}"
        lines = [f"{one.name}: {one.shares[i]:.2g}% ({int(one.counts[i]):,})" for one in present]
        text = escape("\n".join([where, *lines]))
        columns.append(
            f'<rect class="hover" x="{x[i]:.1f}" y="{_TOP}" width="{x[i + 1] - x[i]:.1f}" '
            f'height="{floor - _TOP}"><title>{text}</title></rect>'
        )
    return columns
