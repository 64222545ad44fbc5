"""The oracle: every pair of atoms against every image that could matter, in plain NumPy. Clear rather than fast."""

from __future__ import annotations

import numpy as np

from jmp_data.errors import InvalidStructureError
from jmp_data.graphs.backends import Array
from jmp_data.graphs.truncation import (
    SELF_DISTANCE,
    canonical_order,
    largest_squared_distance,
    nearest,
    squared_distances,
)

_PAIRS_AT_ONCE = 2_000_000


def search(
    positions: Array, cell: Array, pbc: Array, cutoff: float, max_neighbors: int | None
) -> tuple[Array, Array, Array]:
    """Radius graph by exhaustion; see `jmp_data.graphs.backends` for the contract."""
    natoms = len(positions)
    images, wrap = _images(positions, cell, pbc, cutoff)
    targets_at_once = max(1, _PAIRS_AT_ONCE // max(1, natoms * len(images)))
    parts = [
        _pairs(positions, cell, np.arange(first, min(first + targets_at_once, natoms)), images, wrap, cutoff)
        for first in range(0, natoms, targets_at_once)
    ]
    if not parts:
        parts = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 3), np.int64))]
    source, target, offsets = (np.concatenate(column) for column in zip(*parts, strict=True))
    return finish(positions, cell, pbc, cutoff, max_neighbors, source, target, offsets)


def finish(
    positions: Array,
    cell: Array,
    pbc: Array,
    cutoff: float,
    max_neighbors: int | None,
    source: Array,
    target: Array,
    cell_offsets: Array,
) -> tuple[Array, Array, Array]:
    """Turn proposed pairs into the graph: exact distances, cutoff test, canonical order, truncation.

    Args:
        positions: (natoms, 3) float64, Å.
        cell: (3, 3) float64, Å, rows of open axes zero.
        pbc: (3,) bool.
        cutoff: Å.
        max_neighbors: edges kept per target, or None.
        source: (npairs,) integer; every edge must be among the pairs, and pairs beyond the cutoff do no harm.
        target: (npairs,) integer.
        cell_offsets: (npairs, 3) integer.

    Returns:
        edge_index (2, nedges) int64, cell_offsets (nedges, 3) int32, distances (nedges,) float64 Å.
    """
    squared = squared_distances(positions, cell, source, target, cell_offsets)
    inside = (squared <= largest_squared_distance(cutoff, pbc)) & (squared > SELF_DISTANCE * SELF_DISTANCE)
    source, target, cell_offsets, squared = source[inside], target[inside], cell_offsets[inside], squared[inside]
    order = canonical_order(source, target, cell_offsets)
    if max_neighbors is not None:
        order = order[nearest(squared[order], target[order], len(positions), max_neighbors)]
    edge_index = np.stack([source[order], target[order]]).astype(np.int64)
    return edge_index, cell_offsets[order].astype(np.int32), np.sqrt(squared[order])


def complete_cell(cell: Array, pbc: Array) -> Array:
    """The cell with open rows replaced by unit vectors orthogonal to all periodic rows, so that it can be inverted.

    Raises:
        InvalidStructureError: the periodic rows span no volume.
    """
    rows = cell[pbc]
    if np.linalg.matrix_rank(rows) < len(rows):
        raise InvalidStructureError(f"periodic cell {cell.tolist()} spans no volume; check cell and pbc", "flat_cell")
    complement = np.linalg.svd(rows)[2][len(rows) :] if len(rows) else np.eye(3)
    full = cell.copy()
    full[~pbc] = complement
    return full


def _images(positions: Array, cell: Array, pbc: Array, cutoff: float) -> tuple[Array, Array]:
    """Lattice offsets that can matter between wrapped atoms, and the cells by which each atom was wrapped."""
    inverse = np.linalg.inv(complete_cell(cell, pbc))
    wrap = np.where(pbc, np.floor(positions @ inverse), 0.0).astype(np.int64)
    # Wrapped atoms are less than one cell apart; the cutoff spans |reciprocal vector| · cutoff cells.
    reach = np.where(pbc, np.floor(cutoff * np.linalg.norm(inverse, axis=0) + 1e-6) + 1, 0).astype(int)
    axes = [np.arange(-r, r + 1) for r in reach]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3), wrap


def _pairs(
    positions: Array, cell: Array, targets: Array, images: Array, wrap: Array, cutoff: float
) -> tuple[Array, Array, Array]:
    natoms = len(positions)
    target = np.repeat(targets, natoms * len(images))
    source = np.tile(np.repeat(np.arange(natoms), len(images)), len(targets))
    offsets = np.tile(images, (len(targets) * natoms, 1)) - wrap[source] + wrap[target]
    squared = squared_distances(positions, cell, source, target, offsets)
    near = squared <= (cutoff * cutoff) * (1 + 1e-9)
    return source[near], target[near], offsets[near]
