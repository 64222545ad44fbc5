"""Compact columns for stored graphs, and back, exact to the order of the edges.

Edges come sorted by target, so targets are stored as one count per atom. Sources are numbered within their structure,
and take one byte in structures of up to 256 atoms; cell offsets take one byte per axis. Each column is as wide as its
block of structures needs: an atom far outside its cell or a structure of thousands of atoms widens it, and nothing is
lost. Of the four graphs only the widest is stored edge by edge; the others are its subsets and cost one bit each in one
byte an edge. Distances and vectors follow from the positions and are not stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from jmp_data.errors import InvalidStructureError, ShardError
from jmp_data.graphs.batched import FourGraphs
from jmp_data.graphs.radius_graph import Edges

Array = npt.NDArray[Any]

MEMBERSHIP_BITS: Final = {"main": 1, "a2ee2a": 2, "qint": 4}
"""Bit of `PackedFourGraphs.membership` for each graph that is a subset of a2a."""


_MISFIT: Final = "stored graph has counts or sources that do not fit its structures; the block is damaged"


@dataclass(frozen=True, eq=False)
class PackedEdges:
    """Edges of B structures with N atoms, as columns.

    Attributes:
        source: (nedges,) uint8, uint16 or uint32; source atom, counted from the first atom of its structure.
        neighbor_counts: (N,) uint8, uint16 or uint32; edges of each target atom.
        cell_offsets: (nedges, 3) int8, int16 or int32.
    """

    source: Array
    neighbor_counts: Array
    cell_offsets: Array

    @property
    def nbytes(self) -> int:
        """Bytes of all columns, before compression."""
        return sum(int(column.nbytes) for column in vars(self).values())


@dataclass(frozen=True, eq=False)
class PackedFourGraphs(PackedEdges):
    """The a2a edges, and which of them are in the other graphs.

    Attributes:
        membership: (nedges,) uint8, bits as in `MEMBERSHIP_BITS`.
    """

    membership: npt.NDArray[np.uint8]


def pack_edges(edges: Edges, natoms: Any) -> PackedEdges:
    """Pack a graph of B concatenated structures.

    Args:
        edges: batch-global, sorted by target.
        natoms: (B,) integer.

    Returns:
        Columns of the narrowest types that hold every value.

    Raises:
        InvalidStructureError: targets not ascending, or an edge between two structures.
    """
    ptr = _pointers(natoms)
    source, target = edges.edge_index
    if len(target) and ((np.diff(target) < 0).any() or target[0] < 0 or target[-1] >= ptr[-1]):
        raise InvalidStructureError("targets of the edges are not ascending atom numbers of the batch", "edges")
    structure = np.searchsorted(ptr, target, "right") - 1
    local = source - ptr[structure]
    if len(local) and ((local < 0).any() or (source >= ptr[structure + 1]).any()):
        raise InvalidStructureError("an edge joins two structures; edges must be batch-global", "edges")
    counts = np.bincount(target, minlength=int(ptr[-1]))
    return PackedEdges(_narrow(local, "u"), _narrow(counts, "u"), _narrow(edges.cell_offsets, "i"))


def unpack_edges(packed: PackedEdges, natoms: Any) -> Edges:
    """The edges that `pack_edges` was given.

    Args:
        packed: columns.
        natoms: (B,) integer, as when they were packed.

    Raises:
        ShardError: columns that do not fit together or name an atom that its structure does not have.
    """
    from jmp_data.graphs.expansion import unpack

    ptr, nedges = _pointers(natoms), len(packed.source)
    _check_columns(packed, ptr)
    edge_index, cell_offsets = np.empty((2, nedges), np.int64), np.empty((nedges, 3), np.int32)
    if not unpack(packed.source, packed.neighbor_counts, packed.cell_offsets, ptr, edge_index, cell_offsets):
        raise ShardError(_MISFIT)
    return Edges(edge_index, cell_offsets)


def _check_columns(packed: PackedEdges, ptr: npt.NDArray[np.int64]) -> None:
    """Raise `ShardError` unless the columns are as long as the structures that begin at `ptr` (B + 1,) need them."""
    nedges = len(packed.source)
    if len(packed.neighbor_counts) != ptr[-1] or packed.cell_offsets.shape != (nedges, 3):
        raise ShardError(
            f"stored graph has {len(packed.neighbor_counts)} neighbour counts for {ptr[-1]} atoms and cell offsets "
            f"{packed.cell_offsets.shape} for {nedges} edges; the block is damaged"
        )


def pack_four_graphs(graphs: FourGraphs, natoms: Any) -> PackedFourGraphs:
    """Pack all four graphs of B concatenated structures.

    Args:
        graphs: as `batch_four_graphs` returns them.
        natoms: (B,) integer.

    Raises:
        InvalidStructureError: a graph that is no subset of a2a in the same order, or edges as `pack_edges` refuses.
    """
    from jmp_data.graphs.expansion import mark_members

    packed = pack_edges(graphs.a2a, natoms)
    membership = np.zeros(len(graphs.a2a), np.uint8)
    for name, bit in MEMBERSHIP_BITS.items():
        edges: Edges = getattr(graphs, name)
        found = mark_members(
            graphs.a2a.edge_index,
            graphs.a2a.cell_offsets,
            edges.edge_index,
            edges.cell_offsets,
            np.uint8(bit),
            membership,
        )
        if found < len(edges):
            raise InvalidStructureError(f"{name} holds edges that a2a does not, or in another order", "edges")
    return PackedFourGraphs(packed.source, packed.neighbor_counts, packed.cell_offsets, membership)


def unpack_four_graphs(packed: PackedFourGraphs, natoms: Any) -> FourGraphs:
    """The graphs that `pack_four_graphs` was given; errors as for `unpack_edges`."""
    from jmp_data.graphs.expansion import choose_members, count_members

    a2a = unpack_edges(packed, natoms)
    if packed.membership.shape != packed.source.shape:
        raise ShardError("stored graph has another number of membership bytes than edges; the block is damaged")
    bits = np.array(list(MEMBERSHIP_BITS.values()), np.uint8)
    subsets = {}
    for name, bit, count in zip(MEMBERSHIP_BITS, bits, count_members(packed.membership, bits), strict=True):
        subsets[name] = Edges(np.empty((2, count), np.int64), np.empty((count, 3), np.int32))
        choose_members(
            a2a.edge_index,
            a2a.cell_offsets,
            packed.membership,
            bit,
            subsets[name].edge_index,
            subsets[name].cell_offsets,
        )
    return FourGraphs(a2a=a2a, **subsets)


def _pointers(natoms: Any) -> npt.NDArray[np.int64]:
    natoms = np.asarray(natoms, np.int64)
    ptr = np.zeros(len(natoms) + 1, np.int64)
    np.cumsum(natoms, out=ptr[1:])
    return ptr


def _narrow(values: Array, kind: str) -> Array:
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    for size in (1, 2, 4):
        dtype = np.dtype(f"{kind}{size}")
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return values.astype(dtype)
    raise InvalidStructureError(f"edges hold {low} to {high}, more than 32 bits", "edges")
