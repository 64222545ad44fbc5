"""Short vectors of the same lattice: what turns the most skewed cell into one that a search can bound tightly."""

# mypy: disable-error-code="no-untyped-def"
# Numba infers the types.

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from jmp_data.graphs.truncation import Array

_FLAT = 1e-6  # volume over the product of the edge lengths; a reduced cell has at least one half
_MULTIPLE = 2.0**40
_FARTHEST = 2.0**30  # cells; beyond, offsets would not fit 32 bits
_SWEEPS = 1000
_GUESS = 1.8  # neighbours expected within the first radius, over those wanted
_VACUUM = 2.5  # Å added to the extent of the atoms when their density is estimated
_COMBINATIONS = ((1, 0), (0, 1), (1, 1), (1, -1))


class Frames(NamedTuple):
    """Reduced cells of B structures and their N atoms wrapped into them.

    Attributes:
        reduced: (B, 3, 3) reduced cells, Å.
        transforms: (B, 3, 3) int64, from the given cells to the reduced ones.
        densities: (B, 3) lattice planes per Å along each reduced axis.
        wraps: (N, 3) int64 cells by which each atom was moved.
        wrapped: (N, 3) Å.
        spreads: (B, 3) spread of the fractional coordinates of the wrapped atoms.
    """

    reduced: Array
    transforms: Array
    densities: Array
    wraps: Array
    wrapped: Array
    spreads: Array


@njit(cache=True, nogil=True)
def _dot(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@njit(cache=True, nogil=True)
def _cross(a, b, out):
    out[0] = a[1] * b[2] - a[2] * b[1]
    out[1] = a[2] * b[0] - a[0] * b[2]
    out[2] = a[0] * b[1] - a[1] * b[0]


@njit(cache=True, nogil=True)
def _unit_cross(a, b, out):
    _cross(a, b, out)
    length = math.sqrt(max(_dot(out, out), 1e-300))
    out[0], out[1], out[2] = out[0] / length, out[1] / length, out[2] / length


@njit(cache=True, nogil=True)
def _shorten(cell, transform, i, j, k, first, second):
    """Subtract whole multiples of first · row j + second · row k from row i; True if that made it shorter."""
    step, shorter = np.empty(3), np.empty(3)
    for x in range(3):
        step[x] = first * cell[j, x] + second * cell[k, x]
    multiple = np.rint(_dot(cell[i], step) / max(_dot(step, step), 1e-300))
    if multiple == 0.0 or not abs(multiple) < _MULTIPLE:
        return False
    for x in range(3):
        shorter[x] = cell[i, x] - multiple * step[x]
    if not _dot(shorter, shorter) < _dot(cell[i], cell[i]) * (1 - 1e-9):
        return False
    for x in range(3):
        cell[i, x] = shorter[x]
        transform[i, x] -= np.int64(multiple) * (first * transform[j, x] + second * transform[k, x])
    return True


@njit(cache=True, nogil=True)
def _reduce(cell, transform, pbc):
    for _ in range(_SWEEPS):
        changed = False
        for i in range(3):
            j, k = (i + 1) % 3, (i + 2) % 3
            for first, second in _COMBINATIONS:
                if pbc[i] and (first == 0 or pbc[j]) and (second == 0 or pbc[k]):
                    changed |= _shorten(cell, transform, i, j, k, first, second)
        if not changed:
            return


@njit(cache=True, nogil=True)
def _fill_open_rows(cell, pbc):
    """Unit vectors normal to the periodic rows and to each other take the place of the open rows."""
    for row in range(3):
        first, second = (row + 1) % 3, (row + 2) % 3
        if pbc[row] and not pbc[first] and not pbc[second]:
            smallest = 0
            for x in range(1, 3):
                smallest = x if abs(cell[row, x]) < abs(cell[row, smallest]) else smallest
            helper = np.zeros(3)
            helper[smallest] = 1.0
            _unit_cross(cell[row], helper, cell[first])
            _unit_cross(cell[row], cell[first], cell[second])
        elif not pbc[row] and pbc[first] and pbc[second]:
            _unit_cross(cell[first], cell[second], cell[row])
    if not (pbc[0] or pbc[1] or pbc[2]):
        cell[0, 0], cell[1, 1], cell[2, 2] = 1.0, 1.0, 1.0


@njit(cache=True, nogil=True)
def reduce_cells(cells, pbc):
    """Reduce B cells.

    Args:
        cells: (B, 3, 3) float64, Å, open rows zero.
        pbc: (B, 3) bool.

    Returns:
        (B, 3, 3) short vectors in Å, open rows being unit vectors normal to the rest; (B, 3, 3) int64 transforms
        that make them from the periodic rows; (B, 3, 3) reciprocal vectors as rows, 1/Å, so that fractional coordinate
        i of r is `reciprocal[i] · r`; (B,) volumes in Å³, zero where the periodic rows span no volume.
    """
    nstructures = len(cells)
    reduced, reciprocals = np.empty((nstructures, 3, 3)), np.empty((nstructures, 3, 3))
    transforms, volumes = np.empty((nstructures, 3, 3), np.int64), np.empty(nstructures)
    for b in range(nstructures):
        cell, transform, reciprocal = reduced[b], transforms[b], reciprocals[b]
        for i in range(3):
            for x in range(3):
                transform[i, x] = i == x
                cell[i, x] = cells[b, i, x]
        _reduce(cell, transform, pbc[b])
        for i in range(3):
            for x in range(3):
                cell[i, x] = transform[i, 0] * cells[b, 0, x] + transform[i, 1] * cells[b, 1, x]
                cell[i, x] += transform[i, 2] * cells[b, 2, x]
        _fill_open_rows(cell, pbc[b])
        for i in range(3):
            _cross(cell[(i + 1) % 3], cell[(i + 2) % 3], reciprocal[i])
        volume = _dot(cell[0], reciprocal[0])
        lengths = math.sqrt(_dot(cell[0], cell[0]) * _dot(cell[1], cell[1]) * _dot(cell[2], cell[2]))
        volumes[b] = abs(volume) if abs(volume) > _FLAT * lengths else 0.0
        for i in range(3):
            for x in range(3):
                reciprocal[i, x] /= volume if volume != 0.0 else 1.0
    return reduced, transforms, reciprocals, volumes


@njit(cache=True, nogil=True)
def wrap_atoms(positions, cells, pbc, ptr, transforms, reciprocals):
    """Move the atoms of B structures into their reduced cells.

    Args:
        positions: (N, 3) float64, Å.
        cells: (B, 3, 3) float64, Å, open rows zero.
        pbc: (B, 3) bool.
        ptr: (B + 1,) int64, first atom of each structure.
        transforms: from `reduce_cells`.
        reciprocals: from `reduce_cells`.

    Returns:
        (N, 3) int64 cells, in terms of the given cell, by which each atom was moved back; (N, 3) wrapped positions, Å;
        (B, 3) spread of the fractional coordinates along each reduced axis; whether every atom was within range.
    """
    wraps, wrapped, spreads = np.zeros(positions.shape, np.int64), np.empty(positions.shape), np.zeros((len(cells), 3))
    for b in range(len(cells)):
        for i in range(3):
            low, high = np.inf, -np.inf
            for n in range(ptr[b], ptr[b + 1]):
                fractional = _dot(positions[n], reciprocals[b, i])
                whole = math.floor(fractional) if pbc[b, i] else 0.0
                if abs(whole) > _FARTHEST:
                    return wraps, wrapped, spreads, False
                low, high = min(low, fractional - whole), max(high, fractional - whole)
                for x in range(3):
                    wraps[n, x] += np.int64(whole) * transforms[b, i, x]
            spreads[b, i] = max(high - low, 0.0)
        for n in range(ptr[b], ptr[b + 1]):
            for x in range(3):
                if abs(wraps[n, x]) > _FARTHEST:
                    return wraps, wrapped, spreads, False
                shift = wraps[n, 0] * cells[b, 0, x] + wraps[n, 1] * cells[b, 1, x] + wraps[n, 2] * cells[b, 2, x]
                wrapped[n, x] = positions[n, x] - shift
    return wraps, wrapped, spreads, True


@njit(cache=True, nogil=True)
def first_radii(ptr, pbc, volumes, spreads, densities, cutoffs, wanted):
    """(B,) Å: a radius that most atoms find enough neighbours in; the cutoff itself where that saves nothing.

    Args:
        ptr: (B + 1,) first atom of each structure.
        pbc: (B, 3) bool.
        volumes: (B,) Å³, of the reduced cells.
        spreads: see `Frames`.
        densities: see `Frames`.
        cutoffs: (B,) Å.
        wanted: (B,) neighbours of each atom.
    """
    radii = cutoffs.copy()
    for b in range(len(cutoffs)):
        if ptr[b + 1] == ptr[b]:
            continue
        filled = volumes[b]
        for axis in range(3):
            length = spreads[b, axis] + _VACUUM * densities[b, axis]
            filled *= min(length, 1.0) if pbc[b, axis] else length
        radius = (_GUESS * wanted[b] * filled / (ptr[b + 1] - ptr[b]) * 0.75 / math.pi) ** (1.0 / 3.0)
        if radius < 0.8 * cutoffs[b]:
            radii[b] = radius
    return radii
