"""vesin's cell list."""

from __future__ import annotations

from vesin import NeighborList

from jmp_data.graphs.backends import Array
from jmp_data.graphs.backends.proposals import graph_of_proposals


def _cell_list(wrapped: Array, cell: Array, pbc: Array, cutoff: float) -> tuple[Array, Array, Array]:
    neighbors = NeighborList(cutoff=cutoff, full_list=True, n_threads=1)
    target, source, offsets = neighbors.compute(points=wrapped, box=cell, periodic=pbc, quantities="ijS")
    return source, target, offsets


search = graph_of_proposals(_cell_list)
