"""The four graphs of one structure or of a whole batch of concatenated structures, from one search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jmp_data.graphs.dropout import draw_seeds
from jmp_data.graphs.inputs import check_batch, check_cutoff, check_geometry, check_max_neighbors
from jmp_data.graphs.radius_graph import Edges, RadiusGraph
from jmp_data.graphs.settings import SEARCH_ORDER, GraphSettings, tabulate_settings, tagged_atoms


@dataclass(frozen=True, eq=False)
class FourGraphs:
    """The nested graphs of GemNet-OC, before the main graph is symmetrised (the model does that).

    Attributes:
        main: edges that carry embeddings.
        a2a: atom-to-atom messages; the widest search.
        a2ee2a: atom-to-edge and edge-to-atom messages.
        qint: middle edges of quadruplets, after the tag filter.
    """

    main: Edges
    a2a: Edges
    a2ee2a: Edges
    qint: Edges


def four_graphs(
    positions: Any,
    cell: Any,
    pbc: Any,
    tags: Any,
    settings: GraphSettings,
    *,
    edge_dropout: float = 0.0,
    rng: np.random.Generator | None = None,
) -> FourGraphs:
    """All four graphs of one structure.

    The a2a graph is searched and truncated; then, in training, each of its directed edges is dropped with probability
    `edge_dropout`; the others keep the nearest of what is left, and qint loses the edges without a tagged end.

    Args:
        positions: (natoms, 3), Å.
        cell: (3, 3), Å, or None where nothing is periodic.
        pbc: (3,) bool.
        tags: (natoms,) integer.
        settings: cutoff, limits and qint tags.
        edge_dropout: probability, 0 to 1.
        rng: source of the dropout; required with it.

    Returns:
        Edges in canonical order. Graphs may be empty.

    Raises:
        InvalidStructureError: see `radius_graph`; also tags of another length.
    """
    positions, cell, pbc = check_geometry(positions, cell, pbc)
    return batch_four_graphs(
        positions, cell[None], pbc[None], [len(positions)], tags, settings, edge_dropout=edge_dropout, rng=rng
    )


def batch_four_graphs(
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
    """All four graphs of B concatenated structures with N atoms in all; releases the GIL while it searches.

    Args:
        positions: (N, 3), Å.
        cell: (B, 3, 3), Å; the cell of a structure without periodicity is not looked at.
        pbc: (B, 3) bool.
        natoms: (B,) integer.
        tags: (N,) integer.
        settings: for all structures, or one for each.
        edge_dropout: probability, 0 to 1.
        rng: source of the dropout; required with it. One number is drawn for each structure.

    Returns:
        Edges with batch-global atom indices, in canonical order.

    Raises:
        InvalidStructureError: misshapen or non-finite arrays, a flat periodic cell; the message says which structure.
    """
    from jmp_data.graphs.compiled import search_edges

    positions, cell, pbc, ptr = check_batch(positions, cell, pbc, natoms)
    table = tabulate_settings(settings, len(pbc))
    found = search_edges(
        positions,
        cell,
        pbc,
        ptr,
        table.cutoffs,
        table.limits,
        tagged_atoms(tags, ptr, table),
        draw_seeds(len(pbc), edge_dropout, rng),
        float(edge_dropout),
    )
    return FourGraphs(**{name: Edges(*edges) for name, edges in zip(SEARCH_ORDER, found, strict=True)})


def batch_radius_graph(
    positions: Any, cell: Any, pbc: Any, natoms: Any, *, cutoff: float, max_neighbors: int | None = None
) -> RadiusGraph:
    """The radius graph of B concatenated structures with N atoms in all; rules as in `radius_graph`.

    Args:
        positions: (N, 3), Å.
        cell: (B, 3, 3), Å; the cell of a structure without periodicity is not looked at.
        pbc: (B, 3) bool.
        natoms: (B,) integer.
        cutoff: Å.
        max_neighbors: edges kept per target; None keeps all.

    Returns:
        Edges with batch-global atom indices in canonical order, with lengths.

    Raises:
        InvalidStructureError: as for `batch_four_graphs`, or a cutoff or limit ≤ 0.
    """
    from jmp_data.graphs.compiled import search_radius_graph

    check_cutoff(cutoff)
    if max_neighbors is not None:
        check_max_neighbors(max_neighbors)
    positions, cell, pbc, ptr = check_batch(positions, cell, pbc, natoms)
    return RadiusGraph(*search_radius_graph(positions, cell, pbc, ptr, float(cutoff), max_neighbors))
