"""Calls of the compiled kernel: work space that outlives a call, output arrays, errors that name the structure."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from jmp_data.errors import InvalidStructureError
from jmp_data.graphs import expansion, kernel, lattice
from jmp_data.graphs.memory import empty_edges

Array = npt.NDArray[Any]

_KEEP_BYTES = 256 * 2**20
_NO_LIMIT = 2**62
_MOST_SKEWED = 1e9  # Å; float64 then still places images to 1e-7 Å


class _WorkSpace(threading.local):
    """Scratch arrays of this thread. Touching fresh memory for every batch costs as much as the search itself."""

    def __init__(self) -> None:
        self.arrays: tuple[Array, Array, Array] = (
            np.empty((4096, 4), np.int32),
            np.empty((4096, 3)),
            np.empty(65536, np.int32),
        )


_work_space = _WorkSpace()


def search_edges(
    positions: Array,
    cells: Array,
    pbc: Array,
    ptr: Array,
    cutoffs: Array,
    limits: Array,
    tagged: Array,
    seeds: Array,
    dropout: float,
) -> list[tuple[Array, Array]]:
    """Edges of G nested graphs of B structures; arguments as in `jmp_data.graphs.kernel.search_batch`.

    Returns:
        For each column of `limits`, edge_index (2, nedges) int64 and cell_offsets (nedges, 3) int32, canonical order.

    Raises:
        InvalidStructureError: a flat cell, a cell far too small for the cutoff, or an atom absurdly far away.
    """
    frames, volumes = _frames(positions, cells, pbc, ptr)
    # Only a truncated graph by itself can stop early; as the widest of several it needs everything within the cutoff.
    radii = cutoffs
    if limits.shape[1] == 1:
        radii = lattice.first_radii(ptr, pbc, volumes, frames.spreads, frames.densities, cutoffs, limits[:, 0])
    crowded, images, places, codes, starts, counts, totals = kernel.search_batch(
        positions, cells, pbc, ptr, frames, radii, cutoffs, limits, tagged, seeds, dropout, *_work_space.arrays
    )
    if images.nbytes + places.nbytes + codes.nbytes <= _KEEP_BYTES:
        _work_space.arrays = (images, places, codes)
    if crowded >= 0:
        raise InvalidStructureError(
            f"structure {crowded}: cutoff spans over 1e8 periodic images; check the units of cell and positions",
            "tiny_cell",
        )
    pieces = empty_edges(totals.tolist())
    for graph, (words, edge_index, cell_offsets) in enumerate(pieces):
        if graph and len(cell_offsets) == totals[0]:  # a subset of the widest that lost nothing
            words[:] = pieces[0][0]
        else:
            expansion.expand(graph, images, codes, starts, counts, frames.wraps, edge_index, cell_offsets)
    return [(edge_index, cell_offsets) for _, edge_index, cell_offsets in pieces]


def search_radius_graph(
    positions: Array, cells: Array, pbc: Array, ptr: Array, cutoff: float, max_neighbors: int | None
) -> tuple[Array, Array, Array]:
    """One truncated graph of B checked structures: edge_index, cell_offsets and lengths (nedges,) float64 Å."""
    limit = _NO_LIMIT if max_neighbors is None else max_neighbors
    ((edge_index, cell_offsets),) = search_edges(
        positions,
        cells,
        pbc,
        ptr,
        np.full(len(pbc), cutoff, np.float64),
        np.full((len(pbc), 1), limit, np.int64),
        np.zeros(0, np.bool_),
        np.zeros(len(pbc), np.int64),
        0.0,
    )
    lengths = np.empty(edge_index.shape[1])
    expansion.edge_lengths(positions, cells, ptr, edge_index, cell_offsets, lengths)
    return edge_index, cell_offsets, lengths


def _frames(positions: Array, cells: Array, pbc: Array, ptr: Array) -> tuple[lattice.Frames, Array]:
    reduced, transforms, reciprocals, volumes = lattice.reduce_cells(cells, pbc)
    if not volumes.all():
        raise InvalidStructureError(
            f"structure {np.argmin(volumes)}: periodic cell spans no volume; check cell and pbc", "flat_cell"
        )
    rounding = np.abs(transforms).max(axis=(1, 2)) * np.abs(cells).max(axis=(1, 2)) if len(cells) else volumes
    if (rounding > _MOST_SKEWED).any():
        raise InvalidStructureError(
            f"structure {np.argmax(rounding)}: cell is so skewed that its shortest vectors drown in rounding; "
            "give a reduced cell of the same lattice",
            "skewed_cell",
        )
    wraps, wrapped, spreads, in_range = lattice.wrap_atoms(positions, cells, pbc, ptr, transforms, reciprocals)
    if not in_range:
        raise InvalidStructureError("an atom lies over 1e9 cells away; check the units of positions", "far_atom")
    densities = np.sqrt((reciprocals * reciprocals).sum(axis=2))
    return lattice.Frames(reduced, transforms, densities, wraps, wrapped, spreads), volumes
