"""All ways to lay the cell of one crystal into the lattice of another, and what that makes of its atoms.

A map is three vectors of the lattice that have the lengths and angles of the wanted cell, within the allowed strain. It
covers other choices of the same cell, rotations of a lattice onto itself, and supercells, whose atoms are repeated on
the cosets of the sublattice.
"""

# mypy: disable-error-code="no-untyped-def"
# Numba infers the types.

from __future__ import annotations

import math

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def _norm(v):
    return math.sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2])


@njit(cache=True, nogil=True)
def _doubled(rows):
    """(3, n, 3) with room for as many again."""
    out = np.empty((3, 2 * rows.shape[1], 3), np.int64)
    for p in range(3):
        for i in range(rows.shape[1]):
            for q in range(3):
                out[p, i, q] = rows[p, i, q]
    return out


@njit(cache=True, nogil=True)
def _fit_lengths(lattice, reciprocal, lengths, strain):
    """Coefficients of the lattice vectors that fit each length, as (3, most, 3), with how many there are of each."""
    longest = max(lengths[0], lengths[1], lengths[2]) / (1.0 - strain)
    reach = np.empty(3, np.int64)
    for p in range(3):
        reach[p] = int(longest * _norm(reciprocal[p]) + 1e-9)
    room = 64
    found, counts = np.empty((3, room, 3), np.int64), np.zeros(3, np.int64)
    vector = np.empty(3)
    for i in range(-reach[0], reach[0] + 1):
        for j in range(-reach[1], reach[1] + 1):
            for k in range(-reach[2], reach[2] + 1):
                for q in range(3):
                    vector[q] = i * lattice[0, q] + j * lattice[1, q] + k * lattice[2, q]
                length = _norm(vector)
                for p in range(3):
                    if abs(length - lengths[p]) <= strain * max(length, lengths[p]) + 1e-6:
                        if counts[p] == room:
                            found, room = _doubled(found), 2 * room
                        found[p, counts[p], 0], found[p, counts[p], 1], found[p, counts[p], 2] = i, j, k
                        counts[p] += 1
    return found, counts


@njit(cache=True, nogil=True)
def _angle(u, v):
    cosine = (u[0] * v[0] + u[1] * v[1] + u[2] * v[2]) / (_norm(u) * _norm(v))
    return math.acos(min(1.0, max(-1.0, cosine)))


@njit(cache=True, nogil=True)
def _combine(coefficients, lattice, out):
    for q in range(3):
        out[q] = coefficients[0] * lattice[0, q] + coefficients[1] * lattice[1, q] + coefficients[2] * lattice[2, q]


@njit(cache=True, nogil=True)
def lattice_maps(cell, lattice, reciprocal, strain, angle):
    """Integer matrices M such that M @ lattice has the lengths and angles of the cell.

    Args:
        cell: (3, 3), Å, the cell that is wanted.
        lattice: (3, 3), Å, short vectors of the lattice.
        reciprocal: (3, 3), 1/Å, rows so that coefficient i of r is `reciprocal[i] · r`.
        strain: relative difference of lengths.
        angle: difference of angles, radians.

    Returns:
        (3, m, 3) int64, of both hands: row p of the m-th matrix is [p, m].
    """
    lengths = np.empty(3)
    for p in range(3):
        lengths[p] = _norm(cell[p])
    bc, ac, ab = _angle(cell[1], cell[2]), _angle(cell[0], cell[2]), _angle(cell[0], cell[1])
    found, counts = _fit_lengths(lattice, reciprocal, lengths, strain)
    a, b, c = np.empty(3), np.empty(3), np.empty(3)
    maps, filled = np.empty((3, 64, 3), np.int64), 0
    for i in range(counts[0]):
        _combine(found[0, i], lattice, a)
        for j in range(counts[1]):
            _combine(found[1, j], lattice, b)
            if abs(_angle(a, b) - ab) > angle:
                continue
            for k in range(counts[2]):
                _combine(found[2, k], lattice, c)
                if abs(_angle(a, c) - ac) > angle or abs(_angle(b, c) - bc) > angle:
                    continue
                if filled == maps.shape[1]:
                    maps = _doubled(maps)
                for q in range(3):
                    maps[0, filled, q] = found[0, i, q]
                    maps[1, filled, q] = found[1, j, q]
                    maps[2, filled, q] = found[2, k, q]
                filled += 1
    return maps[:, :filled]


@njit(cache=True, nogil=True)
def coset_sizes(matrix):
    """Diagonal of the Hermite normal form: (i, j, k) below it name each coset of the sublattice once.

    Args:
        matrix: (3, 3) int64, the vectors of the sublattice as rows.

    Returns:
        (3,) int64; the product is |det|, zero where the rows do not span the space.
    """
    m = matrix.copy()
    sizes = np.zeros(3, np.int64)
    for column in range(3):
        # Euclid on the rows that are left: one keeps the greatest common divisor, the others become zero here.
        while True:
            pivot, others = -1, 0
            for row in range(column, 3):
                if m[row, column] != 0:
                    others += 1
                    if pivot < 0 or abs(m[row, column]) < abs(m[pivot, column]):
                        pivot = row
            if others == 0:
                return sizes
            for q in range(3):
                m[column, q], m[pivot, q] = m[pivot, q], m[column, q]
            if others == 1:
                break
            for row in range(column + 1, 3):
                times = m[row, column] // m[column, column]
                for q in range(3):
                    m[row, q] -= times * m[column, q]
        sizes[column] = abs(m[column, column])
    return sizes


@njit(cache=True, nogil=True)
def repeated(numbers, positions, lattice, matrix):
    """Atoms of a crystal in a cell made of its lattice vectors.

    Args:
        numbers: (n,) atomic numbers in one primitive or larger cell.
        positions: (n, 3), Å.
        lattice: (3, 3), Å, vectors of that cell.
        matrix: (3, 3) int64, the wanted cell in units of the lattice.

    Returns:
        Atomic numbers and positions of n · |det| atoms, not wrapped.
    """
    sizes = coset_sizes(matrix)
    n, copies = len(numbers), sizes[0] * sizes[1] * sizes[2]
    more, places = np.empty(n * copies, numbers.dtype), np.empty((n * copies, 3))
    filled = 0
    for i in range(sizes[0]):
        for j in range(sizes[1]):
            for k in range(sizes[2]):
                for atom in range(n):
                    more[filled] = numbers[atom]
                    for q in range(3):
                        shift = i * lattice[0, q] + j * lattice[1, q] + k * lattice[2, q]
                        places[filled, q] = positions[atom, q] + shift
                    filled += 1
    return more, places
