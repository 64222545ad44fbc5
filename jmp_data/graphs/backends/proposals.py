"""What libraries and the oracle share: wrap the atoms, let something propose pairs, make the graph of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from jmp_data.errors import InvalidStructureError
from jmp_data.graphs.backends import Array, Search
from jmp_data.graphs.truncation import (
    SELF_DISTANCE,
    canonical_order,
    largest_squared_distance,
    nearest,
    squared_distances,
)

Propose = Callable[[Array, Array, Array, float], tuple[Array, Array, Array]]

_MARGIN: Final = 1e-6
"""Relative; libraries round differently, and a pair too many does no harm."""


def graph_of_proposals(propose: Propose) -> Search:
    """Make a backend of a function that proposes pairs.

    Args:
        propose: called with wrapped positions (natoms, 3), an invertible cell (3, 3), pbc (3,) and a cutoff in Å that
            is a little too long; returns source, target and the cell offsets (npairs, 3) of the source. It must miss no
            pair, may add some, and may or may not add each atom as its own neighbour.

    Returns:
        The search, as `jmp_data.graphs.backends` describes it.
    """

    def search(
        positions: Array, cell: Array, pbc: Array, cutoff: float, max_neighbors: int | None
    ) -> tuple[Array, Array, Array]:
        full_cell = _complete_cell(cell, pbc)
        wrap = np.where(pbc, np.floor(positions @ np.linalg.inv(full_cell)), 0.0).astype(np.int64)
        if len(positions):
            source, target, offsets = propose(positions - wrap @ cell, full_cell, pbc, cutoff * (1 + _MARGIN))
        else:
            source, target, offsets = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 3), np.int64)
        offsets = offsets.astype(np.int64) - wrap[source] + wrap[target]
        return _finish(positions, cell, pbc, cutoff, max_neighbors, source, target, offsets)

    return search


def _finish(
    positions: Array,
    cell: Array,
    pbc: Array,
    cutoff: float,
    max_neighbors: int | None,
    source: Array,
    target: Array,
    cell_offsets: Array,
) -> tuple[Array, Array, Array]:
    """Exact distances, cutoff test, canonical order, truncation."""
    squared = squared_distances(positions, cell, source, target, cell_offsets)
    inside = (squared <= largest_squared_distance(cutoff, pbc)) & (squared > SELF_DISTANCE * SELF_DISTANCE)
    source, target, cell_offsets, squared = source[inside], target[inside], cell_offsets[inside], squared[inside]
    order = canonical_order(source, target, cell_offsets)
    if max_neighbors is not None:
        order = order[nearest(squared[order], target[order], len(positions), max_neighbors)]
    edge_index = np.stack([source[order], target[order]]).astype(np.int64)
    return edge_index, cell_offsets[order].astype(np.int32), np.sqrt(squared[order])


def _complete_cell(cell: Array, pbc: Array) -> Array:
    """The cell with open rows replaced by unit vectors normal to all periodic rows, so that it can be inverted."""
    rows = cell[pbc]
    if len(rows) and np.linalg.matrix_rank(rows) < len(rows):
        raise InvalidStructureError(f"periodic cell {cell.tolist()} spans no volume; check cell and pbc", "flat_cell")
    full = cell.copy()
    full[~pbc] = np.linalg.svd(rows)[2][len(rows) :] if len(rows) else np.eye(3)
    return full
