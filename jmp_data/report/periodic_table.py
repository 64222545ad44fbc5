"""The periodic table as a heat map: which elements a data set covers, and how well."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from jmp_data.report.axes import compact

_CELL, _GAP = 46, 3
_NOBLE: Final = (2, 10, 18, 36, 54, 86, 118)
_DARK_FROM = 0.5  # of the scale; darker cells carry light text


def table_place(number: int) -> tuple[int, int]:
    """Row and column of an element, from zero; the lanthanides and actinides stand below, after an empty row."""
    if 57 <= number <= 71:
        return 8, 2 + number - 57
    if 89 <= number <= 103:
        return 9, 2 + number - 89
    row = next(index for index, last in enumerate(_NOBLE) if number <= last)
    previous = _NOBLE[row - 1] if row else 0
    place = number - previous - 1
    length = _NOBLE[row] - previous
    if row == 0:
        return row, 17 * place
    if place < 2:
        return row, place
    return row, 18 - (length - place)


def periodic_table(structures: npt.NDArray[np.int64], atoms: npt.NDArray[np.int64], total: int) -> Markup:
    """An SVG with one cell an element, shaded by the number of structures that hold it, on a logarithmic scale.

    The rows of lanthanides and actinides are left out where none of them occurs.

    Args:
        structures: (119,) structures that hold each element.
        atoms: (119,) atoms of each.
        total: structures in all.
    """
    from ase.data import atomic_names, chemical_symbols

    f_block = any(structures[number] for number in range(1, 119) if table_place(number)[0] > 7)
    width, height = 18 * (_CELL + _GAP), (9.5 if f_block else 7) * (_CELL + _GAP)
    parts = [
        f'<svg class="elements" viewBox="0 0 {width} {height:.0f}" role="img" '
        f'aria-label="periodic table, {int((structures > 0).sum())} elements present">'
    ]
    top = math.log10(max(int(structures.max()), 2))
    for number in range(1, 119):
        row, column = table_place(number)
        if row > 7 and not f_block:
            continue
        x, y = column * (_CELL + _GAP), (row - 0.5 * (row > 7)) * (_CELL + _GAP)
        symbol, count = chemical_symbols[number], int(structures[number])
        box = f'x="{x}" y="{y:.1f}" width="{_CELL}" height="{_CELL}" rx="4"'
        middle = x + _CELL / 2
        if count == 0:
            parts.append(
                f'<g class="absent"><title>{atomic_names[number]}: none</title><rect {box}/>'
                f'<text x="{middle}" y="{y + 28:.1f}" class="symbol">{symbol}</text></g>'
            )
            continue
        heat = 0.12 + 0.88 * math.log10(count) / top if count > 1 else 0.12
        tone = "hot" if heat > _DARK_FROM else "mild"
        share = f"{100 * count / max(1, total):.3g}%"
        title = f"{atomic_names[number]}: in {count:,} structures ({share}), {int(atoms[number]):,} atoms"
        parts.append(
            f'<g class="present {tone}" style="--heat:{100 * heat:.0f}%"><title>{title}</title><rect {box}/>'
            f'<text x="{middle}" y="{y + 23:.1f}" class="symbol">{symbol}</text>'
            f'<text x="{middle}" y="{y + 38:.1f}" class="count">{compact(count)}</text></g>'
        )
    parts.append(_scale(int(structures.max())))
    parts.append("</svg>")
    return Markup("".join(parts))


def _scale(largest: int) -> str:
    """A legend in the gap above the transition metals."""
    x, y, step = 3 * (_CELL + _GAP), 0.55 * (_CELL + _GAP), 30
    cells = "".join(
        f'<rect class="step" style="--heat:{12 + 88 * k / 5:.0f}%" x="{x + k * step}" y="{y:.1f}" '
        f'width="{step}" height="10"/>'
        for k in range(6)
    )
    end = x + 6 * step
    return (
        f'<text class="legend" x="{x}" y="{y - 8:.1f}">structures with the element</text>{cells}'
        f'<text class="legend" x="{x}" y="{y + 25:.1f}">1</text>'
        f'<text class="legend" x="{end}" y="{y + 25:.1f}" text-anchor="end">{compact(max(largest, 2))}</text>'
    )
