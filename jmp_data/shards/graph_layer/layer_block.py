"""The stored edges of one block, kept compressed until single structures are asked for.

A block of slabs has millions of edges, and a shuffling loader holds a hundred blocks, of which each batch takes a
structure here and there. So only the granules that hold the wanted structures are decompressed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from jmp_data.graphs import PackedFourGraphs
from jmp_data.shards.granules import decompress_granules
from jmp_data.shards.graph_layer.layout import EDGE_COLUMNS
from jmp_data.shards.zarr_codec import GRANULE

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class LayerBlock:
    """Stored edges of n structures with N atoms.

    Attributes:
        natoms: (n,) integer.
        nedges: (n,) int32; negative where the edges of a structure are not stored.
        neighbor_counts: (N,) uint16.
        pieces: edge column → its compressed pieces, checked against their checksums.
        piece_edges: edges of a piece.
    """

    natoms: Array
    nedges: Array
    neighbor_counts: Array
    pieces: Mapping[str, tuple[npt.NDArray[np.uint8], ...]]
    piece_edges: int

    def __len__(self) -> int:
        return len(self.natoms)

    @cached_property
    def edge_counts(self) -> Ints:
        """(n,) edges that are stored of each structure."""
        return np.maximum(self.nedges, 0).astype(np.int64)

    @cached_property
    def _atom_ptr(self) -> Ints:
        return np.concatenate([[0], np.cumsum(self.natoms, dtype=np.int64)])

    @cached_property
    def _edge_ptr(self) -> Ints:
        return np.concatenate([[0], np.cumsum(self.edge_counts)])

    def take(self, rows: Ints) -> PackedFourGraphs:
        """The edges of some structures.

        Args:
            rows: (m,) row numbers, ascending; those whose edges are not stored give none, and counts of zero.

        Returns:
            Columns as `jmp_data.graphs.unpack_four_graphs` takes them; a layer of the main graph gives it as a2a.
        """
        natoms, nedges = np.asarray(self.natoms, np.int64)[rows], self.edge_counts[rows]
        packed = empty_edges(int(natoms.sum()), int(nedges.sum()))
        self.copy_to(packed, rows, np.cumsum(natoms) - natoms, np.cumsum(nedges) - nedges)
        return packed

    def copy_to(self, target: PackedFourGraphs, rows: Ints, atom_places: Ints, edge_places: Ints) -> None:
        """Copy the edges of some structures to their places among those of others.

        Args:
            target: where to.
            rows: (m,) row numbers, ascending.
            atom_places: (m,) first atom of each structure in the target.
            edge_places: (m,) first edge of each structure in the target.
        """
        from jmp_data.shards.graph_layer.copying import copy_rows

        atoms = self._atom_ptr[rows], atom_places, np.asarray(self.natoms, np.int64)[rows]
        copy_rows(_bytes(self.neighbor_counts), _bytes(target.neighbor_counts), *atoms, 2)
        lengths = self.edge_counts[rows]
        wanted = _Granules.of_edges(self._edge_ptr[rows], lengths, -(-int(self._edge_ptr[-1]) // GRANULE))
        starts = wanted.positions(self._edge_ptr[rows])
        for name in EDGE_COLUMNS:
            column = getattr(target, name)
            size = column.nbytes // max(1, len(column))
            if size:
                copy_rows(self._decompress(name, wanted, size), _bytes(column), starts, edge_places, lengths, size)

    def _decompress(self, name: str, wanted: _Granules, size: int) -> Array:
        buffer = np.empty(wanted.count * GRANULE * size, np.uint8)
        per_piece = self.piece_edges // GRANULE
        for first, stop, place in wanted.runs(per_piece):
            piece, start = divmod(first, per_piece)
            extent = slice(place * GRANULE * size, (place + stop - first) * GRANULE * size)
            decompress_granules(self.pieces[name][piece], start, start + stop - first, buffer[extent])
        return buffer

    def arrays(self) -> dict[str, Array]:
        """Everything as flat arrays, for another process."""
        flat = {f"{name}/{number}": p for name in EDGE_COLUMNS for number, p in enumerate(self.pieces[name])}
        sizes = {"piece_edges": np.array([self.piece_edges])}
        return {"natoms": self.natoms, "nedges": self.nedges, "counts": self.neighbor_counts, **sizes, **flat}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> LayerBlock:
        """Inverse of `arrays`."""
        count = sum(name.startswith(f"{EDGE_COLUMNS[0]}/") for name in arrays)
        pieces = {name: tuple(arrays[f"{name}/{number}"] for number in range(count)) for name in EDGE_COLUMNS}
        return cls(arrays["natoms"], arrays["nedges"], arrays["counts"], pieces, int(arrays["piece_edges"][0]))


def empty_edges(natoms: int, nedges: int) -> PackedFourGraphs:
    """Columns to be filled."""
    return PackedFourGraphs(
        source=np.empty(nedges, np.uint16),
        neighbor_counts=np.empty(natoms, np.uint16),
        cell_offsets=np.empty((nedges, 3), np.int8),
        membership=np.empty(nedges, np.uint8),
    )


@dataclass(frozen=True, eq=False)
class _Granules:
    """Which granules of a block are wanted.

    Attributes:
        wanted: (num_granules,) bool.
        place: (num_granules,) how many wanted ones come before.
    """

    wanted: npt.NDArray[np.bool_]
    place: Ints

    @classmethod
    def of_edges(cls, starts: Ints, lengths: Ints, count: int) -> _Granules:
        """The granules that hold these runs of edges, out of `count`."""
        some = lengths > 0
        first, last = starts[some] // GRANULE, (starts[some] + lengths[some] - 1) // GRANULE
        changes = np.bincount(first, minlength=count + 1) - np.bincount(last + 1, minlength=count + 1)
        wanted = np.cumsum(changes)[:count] > 0
        return cls(wanted, np.cumsum(wanted) - wanted)

    @property
    def count(self) -> int:
        """How many are wanted."""
        return int(self.wanted.sum())

    def positions(self, edges: Ints) -> Ints:
        """Where edges lie among those of the wanted granules; meaningless for edges of others."""
        if len(self.place) == 0:
            return edges
        granule = np.minimum(edges // GRANULE, len(self.place) - 1)
        return np.asarray(self.place[granule] * GRANULE + edges % GRANULE)

    def runs(self, per_piece: int) -> list[tuple[int, int, int]]:
        """First, one past the last, and place of each run of wanted granules within one piece."""
        numbers = np.flatnonzero(self.wanted)
        breaks = np.flatnonzero((np.diff(numbers) > 1) | (np.diff(numbers // per_piece) > 0)) + 1
        edges = [0, *breaks.tolist(), len(numbers)]
        return [
            (int(numbers[start]), int(numbers[stop - 1]) + 1, start) for start, stop in pairwise(edges) if stop > start
        ]


def _bytes(array: Array) -> npt.NDArray[np.uint8]:
    return array.reshape(-1).view(np.uint8)
