"""The edges of one storage block as the columns of the layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from jmp_data.errors import InvalidStructureError
from jmp_data.graphs import FourGraphs, PackedFourGraphs, batch_four_graphs, pack_four_graphs
from jmp_data.graphs.radius_graph import Edges
from jmp_data.schema import Block
from jmp_data.shards.graph_layer.settings import LayerSettings

Array = npt.NDArray[Any]

_ATOMS_AT_ONCE = 2048
"""Edges take six times the memory while they are being found."""

NOT_STORED = -1


@dataclass(frozen=True, eq=False)
class BlockEdges:
    """Edges of n structures with N atoms, as columns of the layer.

    Attributes:
        nedges: (n,) int32; `NOT_STORED` where the edges of a structure cannot be found or do not fit the columns.
        neighbor_counts: (N,) uint16.
        source: (nedges,) uint16.
        cell_offsets: (nedges, 3) int8.
        membership: (nedges,) uint8.
    """

    nedges: Array
    neighbor_counts: Array
    source: Array
    cell_offsets: Array
    membership: Array

    @classmethod
    def concatenate(cls, parts: list[BlockEdges]) -> BlockEdges:
        """All structures, in order."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))


def block_edges(block: Block, settings: LayerSettings) -> BlockEdges:
    """Find and pack the edges of a block, which must have at least one structure."""
    return BlockEdges.concatenate([part for piece in _slices(block) for part in _edges(piece, settings)])


def _slices(block: Block) -> Iterator[Block]:
    group = np.cumsum(block.natoms) // _ATOMS_AT_ONCE
    cuts = [0, *(np.flatnonzero(np.diff(group)) + 1).tolist(), len(block)]
    for start, stop in pairwise(cuts):
        yield block.take(slice(start, stop))


def _edges(block: Block, settings: LayerSettings) -> Iterator[BlockEdges]:
    """All structures at once, or one by one where some of them do not go."""
    try:
        packed = _pack(block, settings)
    except InvalidStructureError:
        packed = None
    if packed is not None and _fits(packed):
        yield _columns(packed, block.natoms)
    elif len(block) > 1:
        for row in range(len(block)):
            yield from _edges(block.take(slice(row, row + 1)), settings)
    else:
        nothing = PackedFourGraphs(
            *(np.zeros(0, np.uint16), np.zeros(block.num_atoms, np.uint16), np.zeros((0, 3), np.int8)),
            membership=np.zeros(0, np.uint8),
        )
        yield replace(_columns(nothing, block.natoms), nedges=np.array([NOT_STORED], np.int32))


def _pack(block: Block, settings: LayerSettings) -> PackedFourGraphs:
    each = settings.of_structures(block.pbc)
    graphs = batch_four_graphs(block.positions, block.cell, block.pbc, block.natoms, block.tags, each)
    nothing = Edges(np.zeros((2, 0), np.int64), np.zeros((0, 3), np.int32))
    stored = {name: getattr(graphs, name) if name in settings.names else nothing for name in ("main", "a2ee2a", "qint")}
    return pack_four_graphs(FourGraphs(a2a=graphs.a2a, **stored), block.natoms)


def _fits(packed: PackedFourGraphs) -> bool:
    return (
        packed.source.dtype.itemsize <= 2
        and packed.neighbor_counts.dtype.itemsize <= 2
        and packed.cell_offsets.dtype.itemsize == 1
    )


def _columns(packed: PackedFourGraphs, natoms: Array) -> BlockEdges:
    ends = np.cumsum(natoms)
    edges_before = np.concatenate([[0], np.cumsum(packed.neighbor_counts, dtype=np.int64)])
    return BlockEdges(
        nedges=(edges_before[ends] - edges_before[ends - natoms]).astype(np.int32),
        neighbor_counts=packed.neighbor_counts.astype(np.uint16),
        source=packed.source.astype(np.uint16),
        cell_offsets=packed.cell_offsets,
        membership=packed.membership,
    )
