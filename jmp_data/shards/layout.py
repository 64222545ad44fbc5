"""Sizes and names of what is stored: blocks, shards, columns and their chunk shapes. Pure facts, no I/O.

A split is many shards, a shard many blocks, a block at most `block_structures` structures and `block_atoms` atoms.
Each column of a block is one chunk. In Zarr a chunk has a fixed shape, so columns are padded with zeros up to the
block's capacity (which compresses to almost nothing); the real lengths come from `natoms`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from jmp_data.schema.fields import Field, Schema

FORMAT_VERSION = 1
Format = Literal["zarr", "webdataset"]

NATOMS = Field("natoms", "structure", "int32", (), "", "geometry", "atoms per structure; 0 pads the end of a block")
SOURCE_ID = "source_id"


@dataclass(frozen=True, slots=True)
class Layout:
    """Capacities of a data set; written into its manifest and never changed afterwards.

    32768 atoms of float32 positions are 384 KiB: large enough that one read costs little beside its bytes, small
    enough that a shuffling loader can hold dozens of blocks.
    """

    block_structures: int = 2048
    block_atoms: int = 32768
    block_id_bytes: int = 1 << 18
    blocks_per_shard: int = 256

    def to_json(self) -> dict[str, int]:
        """Plain dictionary for the manifest."""
        return asdict(self)

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Layout:
        """Inverse of `to_json`."""
        return cls(**entry)


@dataclass(frozen=True, slots=True)
class Column:
    """One stored array: its field, and the shape of a whole chunk.

    Attributes:
        name: array name in the group.
        dtype: NumPy dtype on disk.
        chunk: shape of one block's chunk, capacity first.
        level: what its rows count.
    """

    name: str
    dtype: np.dtype[Any]
    chunk: tuple[int, ...]
    level: Literal["structure", "atom", "byte", "edge"]

    @property
    def row_nbytes(self) -> int:
        """Bytes of one row."""
        return self.dtype.itemsize * int(np.prod(self.chunk[1:], dtype=np.int64))


def stored_columns(schema: Schema, layout: Layout) -> tuple[Column, ...]:
    """All arrays of a data set, in storage order: natoms, the schema's fields, then the source ids as UTF-8 lines."""
    capacity = {"structure": layout.block_structures, "atom": layout.block_atoms}
    fields = [
        Column(entry.name, np.dtype(entry.dtype), (capacity[entry.level], *entry.shape), entry.level)
        for entry in (NATOMS, *schema)
    ]
    return (*fields, Column(SOURCE_ID, np.dtype("uint8"), (layout.block_id_bytes,), "byte"))
