"""The three smaller graphs from the widest, in plain NumPy: for a2a graphs at hand, and to check the kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jmp_data.graphs.batched import FourGraphs
from jmp_data.graphs.dropout import draw_seeds, surviving_edges
from jmp_data.graphs.inputs import check_batch
from jmp_data.graphs.radius_graph import Edges
from jmp_data.graphs.settings import GraphSettings, tabulate_settings, tagged_atoms
from jmp_data.graphs.truncation import Array, nearest, squared_distances


def nest_graphs(
    a2a: Edges,
    positions: Any,
    cell: Any,
    pbc: Any,
    natoms: Any,
    tags: Any,
    settings: GraphSettings | Sequence[GraphSettings],
    *,
    edge_dropout: float = 0.0,
    rng: np.random.Generator | None = None,
) -> FourGraphs:
    """Drop edges of an undropped a2a graph, then take the other three as its subsets.

    Args:
        a2a: edges of the batch as `batch_four_graphs` finds them without dropout.
        positions: (N, 3), Å.
        cell: (B, 3, 3), Å.
        pbc: (B, 3) bool.
        natoms: (B,) integer.
        tags: (N,) integer.
        settings: for all structures, or one for each.
        edge_dropout: probability, 0 to 1.
        rng: source of the dropout; required with it. The same generator drops the same edges as `batch_four_graphs`.

    Returns:
        What `batch_four_graphs` returns for the same arguments.

    Raises:
        InvalidStructureError: as for `batch_four_graphs`.
    """
    positions, cell, pbc, ptr = check_batch(positions, cell, pbc, natoms)
    table = tabulate_settings(settings, len(pbc))
    seeds = draw_seeds(len(pbc), edge_dropout, rng)
    structure = np.repeat(np.arange(len(pbc)), np.diff(ptr))[a2a.edge_index[1]]
    if edge_dropout > 0.0:
        local = a2a.edge_index - ptr[structure]
        offsets = a2a.cell_offsets.astype(np.int64)
        survives = surviving_edges(seeds[structure], local[0], local[1], offsets, edge_dropout)
        a2a, structure = _choose(a2a, survives), structure[survives]
    source, target = a2a.edge_index
    squared = squared_distances(positions, cell[structure], source, target, a2a.cell_offsets)
    limits = table.limits[structure]
    tagged = tagged_atoms(tags, ptr, table)
    main, a2ee2a, qint = (nearest(squared, target, len(positions), limits[:, column]) for column in (1, 2, 3))
    qint &= tagged[source] | tagged[target]
    return FourGraphs(main=_choose(a2a, main), a2a=a2a, a2ee2a=_choose(a2a, a2ee2a), qint=_choose(a2a, qint))


def _choose(edges: Edges, chosen: Array) -> Edges:
    return Edges(edges.edge_index[:, chosen], edges.cell_offsets[chosen])
