"""The two storage formats behind one protocol: encode blocks into shard files, decode one block of a shard.

`ShardEncoder` collects the compressed blocks of one shard and writes its files; a `BlockReader` reads any block of a
finished data set. Both know the format, nothing of parts, processes or splits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from jmp_data.errors import ShardError
from jmp_data.schema import Block, Schema
from jmp_data.shards import tar_codec, zarr_codec
from jmp_data.shards.layout import NATOMS, SOURCE_ID, Format, Layout, stored_columns
from jmp_data.shards.manifest import FileDigest
from jmp_data.shards.shard_chunks import NO_SIZES, ShardChunks
from jmp_data.shards.stores import Store
from jmp_data.shards.transports import Span

Array = npt.NDArray[Any]


class ShardEncoder(Protocol):
    """Collects the blocks of one shard in memory, compressed."""

    @property
    def num_blocks(self) -> int:
        """Blocks added so far."""
        ...

    def add(self, block: Block) -> tuple[int, int]:
        """Append one storage block; returns its byte range in the shard (zeros where blocks are not one range)."""
        ...

    def files(self) -> dict[str, bytes]:
        """Staging file name → content of the finished shard."""
        ...


def _columns_of(block: Block) -> dict[str, Array]:
    return {NATOMS.name: block.natoms, **block.columns}


class ZarrShardEncoder:
    """One file per array; see `zarr_codec`."""

    def __init__(self, schema: Schema, layout: Layout) -> None:
        self._columns = stored_columns(schema, layout)
        self._layout = layout
        self._chunks: dict[str, list[bytes]] = {column.name: [] for column in self._columns}

    @property
    def num_blocks(self) -> int:
        """See `ShardEncoder.num_blocks`."""
        return len(self._chunks[NATOMS.name])

    def add(self, block: Block) -> tuple[int, int]:
        """See `ShardEncoder.add`."""
        arrays = _columns_of(block)
        arrays[SOURCE_ID] = np.frombuffer(b"\n".join([*block.source_ids.tolist(), b""]), np.uint8)
        for column in self._columns:
            self._chunks[column.name].append(zarr_codec.encode_chunk(column, arrays[column.name]))
        return 0, 0

    def files(self) -> dict[str, bytes]:
        """See `ShardEncoder.files`."""
        blocks = self._layout.blocks_per_shard
        return {name: zarr_codec.encode_shard(chunks, blocks) for name, chunks in self._chunks.items()}


class TarShardEncoder:
    """One tar; see `tar_codec`."""

    def __init__(self, schema: Schema, layout: Layout) -> None:
        self._blocks: list[bytes] = []
        self._offset = 0

    @property
    def num_blocks(self) -> int:
        """See `ShardEncoder.num_blocks`."""
        return len(self._blocks)

    def add(self, block: Block) -> tuple[int, int]:
        """See `ShardEncoder.add`."""
        arrays = {**_columns_of(block), SOURCE_ID: block.source_ids}
        payload = tar_codec.encode_block(len(self._blocks), arrays)
        self._blocks.append(payload)
        start, self._offset = self._offset, self._offset + len(payload)
        return start, len(payload)

    def files(self) -> dict[str, bytes]:
        """See `ShardEncoder.files`."""
        return {"shard.tar": b"".join([*self._blocks, tar_codec.END_OF_ARCHIVE])}


def shard_encoder(name: Format, schema: Schema, layout: Layout) -> ShardEncoder:
    """The encoder of a format."""
    return ZarrShardEncoder(schema, layout) if name == "zarr" else TarShardEncoder(schema, layout)


def stored_name(name: Format, schema: Schema, layout: Layout, *, staged: str, shard: int) -> str:
    """Final name, relative to the data set folder, of a staged shard file."""
    if name == "webdataset":
        return f"shard-{shard:06d}.tar"
    column = next(column for column in stored_columns(schema, layout) if column.name == staged)
    return "/".join([staged, "c", str(shard), *["0"] * len(column.chunk)])


def metadata_files(
    name: Format, schema: Schema, layout: Layout, *, num_shards: int, layer: Mapping[str, dict[str, Any]]
) -> dict[str, bytes]:
    """The Zarr metadata of a finished data set: of its columns, unless they are in tars, and of its graph layer.

    Args:
        name: format.
        schema: columns.
        layout: capacities.
        num_shards: number of shards.
        layer: folder → metadata of the group and arrays of the graph layer; empty without one.
    """
    nodes: dict[str, dict[str, Any]] = {}
    if name == "zarr":
        nodes[""] = zarr_codec.group_metadata({"note": "natoms == 0 pads the end of each block; see manifest.json"})
        for column in stored_columns(schema, layout):
            nodes[column.name] = zarr_codec.array_metadata(column, layout, num_shards)
    return zarr_codec.documents({**nodes, **layer})


def digest(payload: bytes) -> FileDigest:
    """Size and SHA-256 of bytes in memory."""
    return FileDigest(len(payload), hashlib.sha256(payload).hexdigest())


def digest_file(path: Path) -> FileDigest:
    """Size and SHA-256 of a file, streaming."""
    with path.open("rb") as file:
        return FileDigest(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


class BlockReader(Protocol):
    """Reads one block of a shard."""

    def read(self, shard: int, block: int, *, columns: Sequence[str], extent: tuple[int, int, int]) -> Block:
        """The asked columns of one block.

        Args:
            shard: shard number.
            block: number of the block inside the shard.
            columns: schema fields to decode; `source_id` decodes the ids.
            extent: (structures, byte offset, bytes) of the block from the index.

        Raises:
            ShardError: damaged or missing; names shard, array and block.
        """
        ...


class ZarrBlockReader:
    """Range reads of single chunks, all columns of a block at once."""

    def __init__(self, store: Store, schema: Schema, layout: Layout, sizes: Mapping[str, int] = NO_SIZES) -> None:
        self._url, self._schema = store.url, schema
        self._columns = {column.name: column for column in stored_columns(schema, layout)}
        self._shards = ShardChunks(store, layout.blocks_per_shard, sizes)

    def _chunks(self, shard: int, block: int, arrays: Sequence[str]) -> dict[str, Array]:
        axes = {array: ["0"] * len(self._columns[array].chunk) for array in arrays}
        files = {"/".join([array, "c", str(shard), *rest]): array for array, rest in axes.items()}
        where = {file: f"{self._url}: shard {shard}, array {array}, block {block}" for file, array in files.items()}
        payloads = self._shards.read(block, list(files), where)
        return {
            array: zarr_codec.decode_chunk(self._columns[array], payload, where=where[file])
            for (file, array), payload in zip(files.items(), payloads, strict=True)
        }

    def read(self, shard: int, block: int, *, columns: Sequence[str], extent: tuple[int, int, int]) -> Block:
        """See `BlockReader.read`."""
        structures = extent[0]
        chunks = self._chunks(shard, block, [NATOMS.name, *columns])
        natoms = chunks.pop(NATOMS.name)[:structures]
        rows = {"structure": structures, "atom": int(natoms.sum())}
        source_ids: Array = np.zeros(0, "S1")
        if SOURCE_ID in chunks:
            text = chunks.pop(SOURCE_ID).tobytes()
            source_ids = np.array(text.split(b"\n", structures)[:structures], dtype="S")
        arrays = {name: chunk[: rows[self._schema[name].level]] for name, chunk in chunks.items()}
        return Block(natoms, arrays, source_ids, self._schema)


class TarBlockReader:
    """One range read per block."""

    def __init__(self, store: Store, schema: Schema, layout: Layout) -> None:
        self._store, self._schema = store, schema

    def read(self, shard: int, block: int, *, columns: Sequence[str], extent: tuple[int, int, int]) -> Block:
        """See `BlockReader.read`."""
        _, offset, nbytes = extent
        name = f"shard-{shard:06d}.tar"
        where = f"{self._store.url}: shard {shard} ({name}), block {block}"
        (payload,) = self._store.read_many([Span(name, offset, offset + nbytes)])
        if len(payload) != nbytes:
            raise ShardError(f"{where}: file is truncated")
        wanted: dict[str, tuple[np.dtype[Any] | None, tuple[int, ...]]] = {NATOMS.name: (np.dtype("<i4"), ())}
        for column in columns:
            if column == SOURCE_ID:
                wanted[column] = (None, ())
            else:
                entry = self._schema[column]
                wanted[column] = (np.dtype(entry.dtype), entry.shape)
        arrays: Mapping[str, Array] = tar_codec.decode_block(payload, wanted, where=where)
        natoms = arrays[NATOMS.name]
        source_ids = arrays.get(SOURCE_ID, np.zeros(0, "S1"))
        return Block(natoms, {n: arrays[n] for n in columns if n != SOURCE_ID}, source_ids, self._schema)


def block_reader(
    name: Format, store: Store, schema: Schema, layout: Layout, sizes: Mapping[str, int] = NO_SIZES
) -> BlockReader:
    """The reader of a format; `sizes` as in `ShardChunks`."""
    return ZarrBlockReader(store, schema, layout, sizes) if name == "zarr" else TarBlockReader(store, schema, layout)
