"""Calls of the compiled kernel: work space that outlives a call, output arrays, errors that name the structure."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from jmp_data.errors import InvalidStructureError
from jmp_data.graphs import expansion, kernel, lattice

Array = npt.NDArray[Any]

_KEEP_BYTES = 256 * 2**20
_NO_LIMIT = 2**62


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
    lattices = lattice.reduce_cells(cells, pbc)
    if not lattices[3].all():
        raise InvalidStructureError(
            f"structure {np.argmin(lattices[3])}: periodic cell spans no volume; check cell and pbc", "flat_cell"
        )
    status, structure, images, places, codes, starts, counts, wraps = kernel.search_batch(
        positions, cells, pbc, ptr, lattices, cutoffs, limits, tagged, seeds, dropout, *_work_space.arrays
    )
    if images.nbytes + places.nbytes + codes.nbytes <= _KEEP_BYTES:
        _work_space.arrays = (images, places, codes)
    _raise_for_status(status, structure)
    graphs = []
    for graph in range(limits.shape[1]):
        nedges = int(counts[graph].sum())
        edge_index, cell_offsets = np.empty((2, nedges), np.int64), np.empty((nedges, 3), np.int32)
        expansion.expand(graph, images, codes, starts, counts, wraps, edge_index, cell_offsets)
        graphs.append((edge_index, cell_offsets))
    return graphs


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


def _raise_for_status(status: int, structure: int) -> None:
    if status == kernel.OK:
        return
    if status == kernel.TOO_MANY_IMAGES:
        message, code = "cutoff spans over 1e8 periodic images; check the units of cell and positions", "tiny_cell"
    else:
        message, code = "an atom lies over 1e9 cells away; check the units of positions", "far_atom"
    raise InvalidStructureError(f"structure {structure}: {message}", code)
