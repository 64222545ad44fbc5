"""Chosen frames of one molecule's trajectory as blocks: same atoms in every frame, arrays in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from jmp_data.schema import Block, Schema
from jmp_data.schema.units import ConstantSet, convert

Array = npt.NDArray[Any]

_FRAMES_PER_BLOCK = 2048


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """Frames of one molecule in the units of the file, kcal/mol and Å.

    Attributes:
        atomic_numbers: (natoms,).
        positions: (n, natoms, 3), Å.
        energies: (n,), kcal/mol.
        forces: (n, natoms, 3), kcal/mol/Å, minus the gradient.
    """

    atomic_numbers: Array
    positions: Array
    energies: Array
    forces: Array


def frame_blocks(
    frames: Trajectory, rows: Array, *, file_name: str, schema: Schema, constants: ConstantSet
) -> Iterator[Block]:
    """The frames at `rows`, in that order, in eV and eV/Å.

    Args:
        frames: the whole trajectory.
        rows: (m,) row numbers.
        file_name: for the source ids, `file#row`.
        schema: energy and forces.
        constants: what a kcal/mol is worth.
    """
    natoms = len(frames.atomic_numbers)
    for start in range(0, len(rows), _FRAMES_PER_BLOCK):
        some = rows[start : start + _FRAMES_PER_BLOCK]
        columns = {
            "atomic_numbers": np.tile(frames.atomic_numbers, len(some)),
            "positions": frames.positions[some].reshape(-1, 3),
            "energy": convert(frames.energies[some], "kcal/mol", "eV", constants),
            "forces": convert(frames.forces[some].reshape(-1, 3), "kcal/mol/Å", "eV/Å", constants),
        }
        source_ids = np.array([b"%s#%d" % (file_name.encode(), row) for row in some.tolist()])
        yield Block.from_columns(schema, np.full(len(some), natoms), source_ids, columns)
