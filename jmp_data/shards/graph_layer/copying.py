"""Compiled copies of ragged rows and edges."""

# mypy: disable-error-code="no-untyped-def"
# Numba infers the types.

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def copy_rows(source, target, starts, places, lengths, size):
    """target[places[i]:][:lengths[i]] = source[starts[i]:][:lengths[i]]; bytes, counted in units of `size` bytes."""
    for i in range(len(starts)):
        # Unsigned, because the compiler cannot vectorise an index that may be negative and wrap around.
        a, b, n = np.uint64(starts[i] * size), np.uint64(places[i] * size), np.uint64(lengths[i] * size)
        for k in range(n):
            target[b + k] = source[a + k]


@njit(cache=True, nogil=True)
def join(one_index, one_offsets, other_index, other_offsets, from_one, natoms, edge_index, cell_offsets):
    """Fill edge_index and cell_offsets with the edges of all structures, each taken from one of two shorter lists."""
    one = other = e = 0
    one_atom, other_atom, atom = 0, 0, 0
    for b in range(len(natoms)):
        if from_one[b]:
            first, shift = one, atom - one_atom
            one_atom += natoms[b]
            while one < len(one_offsets) and one_index[1, one] < one_atom:
                one += 1
            for i in range(first, one):
                edge_index[0, e], edge_index[1, e] = one_index[0, i] + shift, one_index[1, i] + shift
                for axis in range(3):
                    cell_offsets[e, axis] = one_offsets[i, axis]
                e += 1
        else:
            first, shift = other, atom - other_atom
            other_atom += natoms[b]
            while other < len(other_offsets) and other_index[1, other] < other_atom:
                other += 1
            for i in range(first, other):
                edge_index[0, e], edge_index[1, e] = other_index[0, i] + shift, other_index[1, i] + shift
                for axis in range(3):
                    cell_offsets[e, axis] = other_offsets[i, axis]
                e += 1
        atom += natoms[b]
