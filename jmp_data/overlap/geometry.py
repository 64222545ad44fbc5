"""One arrangement of atoms, cut out of a block for verification."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from jmp_data.schema import Block

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Geometry:
    """One arrangement of atoms in float64.

    Attributes:
        atomic_numbers: (n,) uint8.
        positions: (n, 3), Å.
        cell: (3, 3), Å.
        pbc: (3,) bool.
    """

    atomic_numbers: Array
    positions: Array
    cell: Array
    pbc: Array

    @classmethod
    def of(cls, block: Block, row: int, ptr: Array) -> Geometry:
        """One row of a block whose atoms start at `ptr`."""
        atoms = slice(int(ptr[row]), int(ptr[row + 1]))
        positions, cell = block.positions[atoms].astype(np.float64), block.cell[row].astype(np.float64)
        return cls(block.atomic_numbers[atoms], positions, cell, block.pbc[row])
