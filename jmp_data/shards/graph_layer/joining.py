"""One graph of a batch from two: of the structures whose edges are stored, and of the others."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from jmp_data.graphs import Edges


def join_edges(one: Edges, other: Edges, from_one: npt.NDArray[np.bool_], natoms: Any) -> Edges:
    """Merge two graphs, structure by structure.

    Args:
        one: edges of the structures that `from_one` marks, with atoms numbered through these.
        other: edges of the others, the same.
        from_one: (B,) bool.
        natoms: (B,) integer.

    Returns:
        Edges of all structures in order, with atoms numbered through all.
    """
    from jmp_data.shards.graph_layer.copying import join

    if from_one.all():
        return one
    if not from_one.any():
        return other
    nedges = len(one) + len(other)
    joined = Edges(np.empty((2, nedges), np.int64), np.empty((nedges, 3), np.int32))
    parts = (one.edge_index, one.cell_offsets, other.edge_index, other.cell_offsets)
    join(*parts, from_one, np.asarray(natoms, np.int64), joined.edge_index, joined.cell_offsets)
    return joined
