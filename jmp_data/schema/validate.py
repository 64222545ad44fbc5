"""Hard rules that every stored structure obeys, checked on whole blocks; a row that breaks one gets a reason code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from jmp_data.schema.block import Block
from jmp_data.schema.structure import MAX_ATOMIC_NUMBER

MIN_CELL_VOLUME = 1e-6  # Å³; below this a cell is flat


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why one row of a block is not stored."""

    row: int
    reason: str
    message: str


def _any_per_structure(block: Block, bad: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """(n,) whether any atom of a structure is bad; works for structures without atoms too."""
    before = np.concatenate([[0], np.cumsum(bad)])
    ptr = block.ptr
    flagged: npt.NDArray[np.bool_] = before[ptr[1:]] > before[ptr[:-1]]
    return flagged


def _nonfinite(block: Block, name: str) -> npt.NDArray[np.bool_]:
    column = block.columns[name]
    finite = np.isfinite(column)
    if finite.all():  # nearly always, and found out several times as fast as row by row
        return np.zeros(len(block), bool)
    bad: npt.NDArray[np.bool_] = np.asarray(~finite.reshape(len(column), -1).all(axis=1))
    return _any_per_structure(block, bad) if block.schema[name].level == "atom" else bad


def _bad_cell(block: Block) -> npt.NDArray[np.bool_]:
    cell, pbc = block.cell.astype(np.float64), block.pbc
    no_vector = (pbc & ~(np.abs(cell) > 0).any(axis=2)).any(axis=1)
    flat: npt.NDArray[np.bool_] = pbc.all(axis=1) & (np.abs(np.linalg.det(cell)) < MIN_CELL_VOLUME)
    return no_vector | flat


def check_block(block: Block, required: Sequence[str]) -> list[Rejection]:
    """Rows that may not be stored, each with the first rule that it breaks.

    Args:
        block: structures with all geometry columns.
        required: targets that must be finite.
    """
    numbers = block.atomic_numbers
    rules: list[tuple[str, str, npt.NDArray[Any]]] = [
        ("no_atoms", "has no atoms", block.natoms <= 0),
        (
            "atomic_number",
            "holds an atomic number outside 1 to 118",
            _any_per_structure(block, (numbers < 1) | (numbers > MAX_ATOMIC_NUMBER)),
        ),
        ("nonfinite_positions", "has NaN or infinite positions", _nonfinite(block, "positions")),
        ("nonfinite_cell", "has a NaN or infinite cell", _nonfinite(block, "cell")),
        ("bad_cell", "is periodic but its cell is missing or flat", _bad_cell(block)),
    ]
    rules += [
        (f"nonfinite_{name}", f"has NaN or infinite {name}", _nonfinite(block, name))
        for name in required
        if name in block.columns
    ]
    rejected: dict[int, Rejection] = {}
    for reason, text, mask in rules:
        for row in np.flatnonzero(mask):
            where = block.source_ids[row].decode(errors="replace") if len(block.source_ids) else f"row {row}"
            rejected.setdefault(int(row), Rejection(int(row), reason, f"{where}: {text}"))
    return [rejected[row] for row in sorted(rejected)]
