"""The compiled part of matching crystals: lay the cell of one into the lattice of the other, then match the atoms.

A map is three vectors of a lattice that have the lengths and angles of the wanted cell, within the allowed strain. It
covers other choices of the same cell, rotations of a lattice onto itself, and supercells, whose atoms are repeated on
the cosets of the sublattice. In one common cell, only a translation and a pairing are left to find: an atom of the
rarest element is laid on each of its kind in turn, and every other atom must then have a partner nearby.

All functions live in one file because Numba's cache notices a change of this file only.
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


@njit(cache=True, nogil=True)
def _determinant(m):
    first = m[0, 0] * (m[1, 1] * m[2, 2] - m[1, 2] * m[2, 1])
    second = m[0, 1] * (m[1, 0] * m[2, 2] - m[1, 2] * m[2, 0])
    return first - second + m[0, 2] * (m[1, 0] * m[2, 1] - m[1, 1] * m[2, 0])


@njit(cache=True, nogil=True)
def _fractional(positions, cell):
    """Positions in units of the rows of a cell."""
    volume = _determinant(cell)
    inverse = np.empty((3, 3))
    for p in range(3):
        a, b = (p + 1) % 3, (p + 2) % 3
        for q in range(3):
            c, d = (q + 1) % 3, (q + 2) % 3
            inverse[q, p] = (cell[a, c] * cell[b, d] - cell[a, d] * cell[b, c]) / volume
    out = np.empty((len(positions), 3))
    for i in range(len(positions)):
        for p in range(3):
            out[i, p] = 0.0
            for q in range(3):
                out[i, p] += positions[i, q] * inverse[q, p]
    return out


@njit(cache=True, nogil=True)
def mapped_rmsd(numbers_small, small, lattice, reciprocal, numbers_large, large, cell, near, exact, strain, angle):
    """Smallest RMSD over all ways to lay a cell into the lattice of a crystal with fewer or as many atoms.

    Args:
        numbers_small: (n,) atomic numbers.
        small: (n, 3), Å.
        lattice: (3, 3), Å, short vectors of the lattice of the small crystal.
        reciprocal: (3, 3), 1/Å, as for `lattice_maps`.
        numbers_large: (m,) atomic numbers, m a multiple of n.
        large: (m, 3), Å.
        cell: (3, 3), Å, of the large crystal; distances are measured in it.
        near: Å; as for `same_lattice_rmsd`.
        exact: Å; the search ends as soon as it is this good.
        strain: relative difference of lengths.
        angle: difference of angles, radians.

    Returns:
        Å; infinity if there is none.
    """
    copies = len(numbers_large) // len(numbers_small)
    places = _fractional(large, cell)
    periodic = np.ones(3, np.bool_)
    matrix, basis = np.empty((3, 3), np.int64), np.empty((3, 3))
    maps = lattice_maps(cell, lattice, reciprocal, strain, angle)
    best = np.inf
    for number in range(maps.shape[1]):
        for p in range(3):
            for q in range(3):
                matrix[p, q] = maps[p, number, q]
        if abs(_determinant(matrix)) != copies:
            continue
        for p in range(3):
            _combine(matrix[p], lattice, basis[p])
        numbers, positions = repeated(numbers_small, small, lattice, matrix)
        laid = _fractional(positions, basis)
        best = min(best, same_lattice_rmsd(numbers_large, places, numbers, laid, cell, periodic, near))
        if best <= exact:
            break
    return best
