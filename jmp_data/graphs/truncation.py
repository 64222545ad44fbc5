"""Which distance an edge has, and which edges survive a neighbour limit: the rules every backend shares, in NumPy.

The squared distance of an edge is computed in float64 in one fixed order of operations, on the positions as they were
given: the difference of the two positions plus the lattice shift, then x² + y² + z². The result has the same bits on
every backend and device, and an edge and its reverse have exactly the same length.

Truncation compares squared distances rounded to multiples of `TIE_RESOLUTION`. Images that symmetry makes equal differ
by a few units in the last place when computed; rounding makes them ties again, and ties are broken by source, then by
cell offset, first component first. The same neighbours are therefore kept wherever the search ran.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

TIE_RESOLUTION: Final = 2.0**-26
"""Å². Two neighbours whose squared distances round to the same multiple are equally near (1e-9 Å at 8 Å)."""

SELF_DISTANCE: Final = 0.01
"""Å. Pairs this close or closer are an atom and itself, or two entries for one atom; they are no edge."""


def largest_squared_distance(cutoff: float, pbc: Array) -> float:
    """Largest d² that is inside: d ≤ cutoff where any axis is periodic, d < cutoff where none is.

    Args:
        cutoff: Å.
        pbc: (3,) bool.

    Returns:
        Å².
    """
    squared = cutoff * cutoff
    return squared if bool(np.any(pbc)) else float(np.nextafter(squared, 0.0))


def squared_distances(
    positions: Array, cell: Array, source: Array, target: Array, cell_offsets: Array
) -> npt.NDArray[np.float64]:
    """|positions[source] + cell_offsets · cell − positions[target]|², rounded the same way everywhere.

    Args:
        positions: (natoms, 3) float64, Å.
        cell: (3, 3) float64, Å, rows of open axes zero; or (nedges, 3, 3), one cell an edge.
        source: (nedges,) integer.
        target: (nedges,) integer.
        cell_offsets: (nedges, 3) integer.

    Returns:
        (nedges,) float64, Å².
    """
    offsets = cell_offsets.astype(np.float64)
    a, b, c = cell[..., 0, :], cell[..., 1, :], cell[..., 2, :]
    shift = (offsets[:, 0:1] * a + offsets[:, 1:2] * b) + offsets[:, 2:3] * c
    delta = (positions[source] - positions[target]) + shift
    squared = delta * delta
    result: npt.NDArray[np.float64] = (squared[:, 0] + squared[:, 1]) + squared[:, 2]
    return result


def canonical_order(source: Array, target: Array, cell_offsets: Array) -> npt.NDArray[np.int64]:
    """Permutation that sorts edges by target, then source, then cell offset."""
    keys = (cell_offsets[:, 2], cell_offsets[:, 1], cell_offsets[:, 0], source, target)
    return np.lexsort(keys)


def nearest(squared: Array, target: Array, natoms: int, max_neighbors: int | Array) -> npt.NDArray[np.bool_]:
    """Mark the `max_neighbors` nearest edges of every target.

    Args:
        squared: (nedges,) Å², edges in canonical order.
        target: (nedges,) integer, ascending.
        natoms: number of target atoms.
        max_neighbors: edges kept per target; or (nedges,), the limit at the target of each edge.

    Returns:
        (nedges,) bool.
    """
    rounded = np.floor(squared / TIE_RESOLUTION + 0.5)
    by_distance = np.lexsort((rounded, target))
    counts = np.bincount(target, minlength=natoms)
    first = np.cumsum(counts) - counts
    rank = np.empty(len(target), np.int64)
    rank[by_distance] = np.arange(len(target)) - first[target]
    kept: npt.NDArray[np.bool_] = rank < max_neighbors
    return kept
