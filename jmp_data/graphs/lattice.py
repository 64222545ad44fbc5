"""Short vectors of the same lattice: what turns the most skewed cell into one that a search can bound tightly."""

# mypy: disable-error-code="no-untyped-def"
# Numba infers the types.

from __future__ import annotations

import math

import numpy as np
from numba import njit

_FLAT = 1e-6  # volume over the product of the edge lengths; a reduced cell has at least one half
_MULTIPLE = 2.0**40
_SWEEPS = 1000
_COMBINATIONS = ((1, 0), (0, 1), (1, 1), (1, -1))


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
    nstructures = cells.shape[0]
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
