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
def _normalize(a):
    a /= math.sqrt(max(_dot(a, a), 1e-300))


@njit(cache=True, nogil=True)
def _reduce(reduced, transform, pbc):
    """Subtract from each vector whole multiples of the others, their sum and difference, while it gets shorter."""
    for _ in range(_SWEEPS):
        changed = False
        for i in range(3):
            j, k = (i + 1) % 3, (i + 2) % 3
            for first, second in _COMBINATIONS:
                if not pbc[i] or (first != 0 and not pbc[j]) or (second != 0 and not pbc[k]):
                    continue
                step = first * reduced[j] + second * reduced[k]
                multiple = np.rint(_dot(reduced[i], step) / max(_dot(step, step), 1e-300))
                shorter = reduced[i] - multiple * step
                if multiple == 0 or not abs(multiple) < _MULTIPLE:
                    continue
                if _dot(shorter, shorter) < _dot(reduced[i], reduced[i]) * (1 - 1e-9):
                    reduced[i] = shorter
                    transform[i] -= np.int64(multiple) * (first * transform[j] + second * transform[k])
                    changed = True
        if not changed:
            return


@njit(cache=True, nogil=True)
def _fill_open_rows(cell, pbc):
    periodic = pbc.sum()
    if periodic == 0:
        cell[:] = np.eye(3)
    elif periodic == 1:
        row = np.argmax(pbc)
        first, second = cell[(row + 1) % 3], cell[(row + 2) % 3]
        helper = np.zeros(3)
        helper[np.argmin(np.abs(cell[row]))] = 1.0
        _cross(cell[row], helper, first)
        _normalize(first)
        _cross(cell[row], first, second)
        _normalize(second)
    elif periodic == 2:
        row = np.argmin(pbc)
        _cross(cell[(row + 1) % 3], cell[(row + 2) % 3], cell[row])
        _normalize(cell[row])


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
        transform[:] = np.eye(3, dtype=np.int64)
        cell[:] = cells[b]
        _reduce(cell, transform, pbc[b])
        for i in range(3):
            cell[i] = transform[i, 0] * cells[b, 0] + transform[i, 1] * cells[b, 1] + transform[i, 2] * cells[b, 2]
        _fill_open_rows(cell, pbc[b])
        for i in range(3):
            _cross(cell[(i + 1) % 3], cell[(i + 2) % 3], reciprocal[i])
        volume = _dot(cell[0], reciprocal[0])
        lengths = math.sqrt(_dot(cell[0], cell[0]) * _dot(cell[1], cell[1]) * _dot(cell[2], cell[2]))
        volumes[b] = abs(volume) if abs(volume) > _FLAT * lengths else 0.0
        if volumes[b] > 0:
            reciprocal /= volume
    return reduced, transforms, reciprocals, volumes
