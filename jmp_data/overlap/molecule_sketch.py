"""Fingerprints of molecules that provably move no further than the atoms do.

With both molecules centred and aligned, let δ_i be how far atom i is from its partner, and RMSD² = Σ|δ_i|²/n.

1. Distances to the centroid, sorted within each element: ‖r − r'‖ ≤ √n · RMSD, since | |x| − |x'| | ≤ |δ| and sorting
   brings two lists as close to each other as any matching does.
2. Distances of pairs, sorted within each pair of elements: ‖d − d'‖ ≤ n · RMSD, since Σ_{i<j} |δ_i − δ_j|² = n Σ|δ_i|²
   where Σδ = 0.

Dividing by √n and n leaves two vectors that differ by at most the RMSD, whatever the rotation, translation, reflection
and order of equal atoms. They are shortened to fixed lengths by adding neighbouring entries over √(entries), an
orthogonal projection, which never increases a difference. So all near duplicates lie within a ball of known radius.
"""

# mypy: disable-error-code="no-untyped-def"
# Numba infers the types.

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numba import njit

RADIAL: Final = 16
"""Entries that stem from distances to the centroid."""

PAIRS: Final = 32
"""Entries that stem from distances between atoms."""


@njit(cache=True, nogil=True)
def _project(values, count, scale, out):
    """Sums of consecutive runs over the root of their lengths, times scale."""
    chunks = len(out)
    for chunk in range(chunks):
        begin, end = chunk * count // chunks, (chunk + 1) * count // chunks
        total = 0.0
        for i in range(begin, end):
            total += values[i]
        out[chunk] = scale * total / math.sqrt(end - begin) if end > begin else 0.0


@njit(cache=True, nogil=True)
def _by_element(numbers):
    """Atoms in the order of their atomic numbers."""
    place = np.zeros(257, np.int64)
    for number in numbers:
        place[number + 1] += 1
    for z in range(256):
        place[z + 1] += place[z]
    order = np.empty(len(numbers), np.int64)
    for i in range(len(numbers)):
        order[place[numbers[i]]] = i
        place[numbers[i]] += 1
    return order


@njit(cache=True, nogil=True)
def _sketch(numbers, positions, radial, pairs):
    n = len(numbers)
    order = _by_element(numbers)
    x = np.empty((n, 3))
    centre = np.zeros(3)
    for i in range(n):
        for k in range(3):
            x[i, k] = positions[order[i], k]
            centre[k] += x[i, k] / n
    radii = np.empty(n)
    starts = np.empty(n + 1, np.int64)
    groups = 0
    for i in range(n):
        radii[i] = math.sqrt((x[i, 0] - centre[0]) ** 2 + (x[i, 1] - centre[1]) ** 2 + (x[i, 2] - centre[2]) ** 2)
        if i == 0 or numbers[order[i]] != numbers[order[i - 1]]:
            starts[groups] = i
            groups += 1
    starts[groups] = n
    for g in range(groups):
        radii[starts[g] : starts[g + 1]].sort()
    _project(radii, n, 1.0 / math.sqrt(n), radial)

    distances = np.empty(n * (n - 1) // 2)
    filled = 0
    for g in range(groups):
        for h in range(g, groups):
            begin = filled
            for i in range(starts[g], starts[g + 1]):
                for j in range(max(i + 1, starts[h]), starts[h + 1]):
                    dx, dy, dz = x[i, 0] - x[j, 0], x[i, 1] - x[j, 1], x[i, 2] - x[j, 2]
                    distances[filled] = math.sqrt(dx * dx + dy * dy + dz * dz)
                    filled += 1
            distances[begin:filled].sort()
    _project(distances, filled, 1.0 / n, pairs)


@njit(cache=True, nogil=True)
def sketch_molecules(numbers, positions, ptr):
    """Fingerprints of B molecules with N atoms in all.

    Args:
        numbers: (N,) uint8 atomic numbers.
        positions: (N, 3) float, Å.
        ptr: (B + 1,) first atom of each.

    Returns:
        (B, RADIAL + PAIRS) float64, Å; each part differs by at most the RMSD between two molecules of one composition.
    """
    out = np.empty((len(ptr) - 1, RADIAL + PAIRS))
    for b in range(len(ptr) - 1):
        atoms = slice(ptr[b], ptr[b + 1])
        _sketch(numbers[atoms], positions[atoms], out[b, :RADIAL], out[b, RADIAL:])
    return out
