"""The RMSD of two periodic structures in one cell: only a translation and a pairing are left to find."""

# mypy: disable-error-code="no-untyped-def"
# Numba infers the types.

from __future__ import annotations

import math

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def _rarest(numbers):
    """An atom whose element has the fewest atoms."""
    counts = np.zeros(256, np.int64)
    for number in numbers:
        counts[number] += 1
    best = 0
    for i in range(len(numbers)):
        if counts[numbers[i]] < counts[numbers[best]]:
            best = i
    return best


@njit(cache=True, nogil=True)
def _displacements(numbers_a, a, numbers_b, b, shift, cell, periodic, reach, out):
    """Displacement of each atom to the nearest unused one of its element; False if one is farther than `reach`."""
    taken = np.zeros(len(b), np.bool_)
    step, cartesian = np.empty(3), np.empty(3)
    for i in range(len(a)):
        nearest, place = reach * reach, -1
        for j in range(len(b)):
            if numbers_b[j] != numbers_a[i] or taken[j]:
                continue
            for p in range(3):
                step[p] = b[j, p] - a[i, p] - shift[p]
                if periodic[p]:
                    step[p] -= np.rint(step[p])
            square = 0.0
            for q in range(3):
                cartesian[q] = step[0] * cell[0, q] + step[1] * cell[1, q] + step[2] * cell[2, q]
                square += cartesian[q] * cartesian[q]
            if square <= nearest:
                nearest, place = square, j
                for q in range(3):
                    out[i, q] = cartesian[q]
        if place < 0:
            return False
        taken[place] = True
    return True


@njit(cache=True, nogil=True)
def same_lattice_rmsd(numbers_a, fractional_a, numbers_b, fractional_b, cell, periodic, near):
    """Smallest RMSD over translations, in one orientation of the cells.

    Args:
        numbers_a: (n,) atomic numbers.
        fractional_a: (n, 3) in units of the cell.
        numbers_b: (n,) the same composition.
        fractional_b: (n, 3).
        cell: (3, 3), Å.
        periodic: (3,) bool.
        near: Å; a match is found if no atom moves over twice this.

    Returns:
        Å; infinity if there is none.
    """
    n = len(numbers_a)
    if len(numbers_b) != n:
        return np.inf
    anchor = _rarest(numbers_a)
    moved, shift = np.empty((n, 3)), np.empty(3)
    best = np.inf
    for j in range(n):
        if numbers_b[j] != numbers_a[anchor]:
            continue
        for p in range(3):
            shift[p] = fractional_b[j, p] - fractional_a[anchor, p]
        if _displacements(numbers_a, fractional_a, numbers_b, fractional_b, shift, cell, periodic, 4 * near, moved):
            total = 0.0
            for p in range(3):
                mean = 0.0
                for i in range(n):
                    mean += moved[i, p] / n
                for i in range(n):
                    total += (moved[i, p] - mean) ** 2
            best = min(best, math.sqrt(total / n))
    return best


@njit(cache=True, nogil=True)
def has_translation(numbers, fractional, cell, periodic, near):
    """Whether a crystal repeats itself within its cell, so that the cell is not primitive.

    Args:
        numbers: (n,) atomic numbers.
        fractional: (n, 3) in units of the cell.
        cell: (3, 3), Å.
        periodic: (3,) bool.
        near: Å; up to displacements of four times this.
    """
    anchor = _rarest(numbers)
    moved, shift = np.empty((len(numbers), 3)), np.empty(3)
    for j in range(len(numbers)):
        if j == anchor or numbers[j] != numbers[anchor]:
            continue
        for p in range(3):
            shift[p] = fractional[j, p] - fractional[anchor, p]
        if _displacements(numbers, fractional, numbers, fractional, shift, cell, periodic, 4 * near, moved):
            return True
    return False
