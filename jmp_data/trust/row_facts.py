"""A few numbers about each stored structure, from which a whole split is judged once all of its parts are there.

What is usual for a composition, and what repeats what, depends on all structures of a split. Judging each block by
itself would make the outcome depend on where blocks and parts are cut. So a part keeps these numbers, 24 bytes a
structure, and the split is judged when it is assembled.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numba import njit

from jmp_data.schema import Block

Array = npt.NDArray[Any]

ROW_FACTS: Final = np.dtype(
    [("composition", np.uint64), ("geometry", np.uint64), ("energy", np.float32), ("force", np.float32)]
)
"""Numbers of composition and geometry, energy in eV/atom and largest force in eV/Å (NaN where missing)."""

_HASH_SEED = 20_231_016
_ODD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio, the usual multiplier of hashes
_SHIFT = np.uint64(29)
_MINUS_ZERO = np.uint32(0x80000000)


def row_facts(block: Block) -> Array:
    """(n,) `ROW_FACTS` of a block's structures.

    Equal compositions and geometries have equal numbers; different ones have different numbers but for one pair in
    10^19. A geometry is elements, positions, cell and periodicity, in the order of the atoms and to the last bit.
    """
    facts = np.zeros(len(block), ROW_FACTS)
    if len(block) == 0:
        return facts
    starts, numbers = block.ptr[:-1], block.atomic_numbers
    # A random weight for each element makes one 64-bit number of a composition; overflow wraps around, as it should.
    weights = np.random.default_rng(_HASH_SEED).integers(1, 2**63, 256, dtype=np.uint64)
    facts["composition"] = np.add.reduceat(weights[numbers], starts)
    words = np.ascontiguousarray(block.positions).view(np.uint32)
    cells = np.concatenate([block.cell.reshape(-1, 9).view(np.uint32), block.pbc.astype(np.uint32)], axis=1)
    facts["geometry"] = _hash_geometries(words, numbers, cells, block.ptr)
    with np.errstate(over="ignore"):  # beyond float32 is infinite, which is not judged
        facts["energy"] = block.energy / block.natoms if "energy" in block.columns else np.nan
        facts["force"] = largest_forces(block) if "forces" in block.columns else np.nan
    return facts


def largest_forces(block: Block) -> Array:
    """(n,) length of the largest force of each structure, eV/Å; NaN where one is missing."""
    forces = block.forces.astype(np.float64)
    squares = np.einsum("ij,ij->i", forces, forces)
    largest: Array = np.sqrt(np.maximum.reduceat(squares, block.ptr[:-1]))
    return largest


@njit(cache=True, nogil=True)
def _mix(state: np.uint64, word: np.uint64) -> np.uint64:
    state = (state ^ word) * _ODD
    return state ^ (state >> _SHIFT)


@njit(cache=True, nogil=True)
def _hash_geometries(words: Array, numbers: Array, cells: Array, ptr: Array) -> Array:
    """(n,) numbers of geometries, from the bits of positions (N, 3), elements (N,) and cells (n, 12)."""
    keys = np.empty(len(ptr) - 1, np.uint64)
    for row in range(len(keys)):
        state = np.uint64(ptr[row + 1] - ptr[row])
        for place in range(12):
            word = cells[row, place]
            state = _mix(state, np.uint64(0 if word == _MINUS_ZERO else word))
        for atom in range(ptr[row], ptr[row + 1]):
            state = _mix(state, np.uint64(numbers[atom]))
            for axis in range(3):
                word = words[atom, axis]
                state = _mix(state, np.uint64(0 if word == _MINUS_ZERO else word))
        keys[row] = state
    return keys
