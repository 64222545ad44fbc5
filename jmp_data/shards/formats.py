"""The two storage formats behind one protocol: encode blocks into shard files, decode one block of a shard.

`ShardEncoder` collects the compressed blocks of one shard and writes its files; a `BlockReader` reads any block of a
finished data set. Both know the format, nothing of parts, processes or splits.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
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
from jmp_data.shards.stores import Span, Store

Array = npt.NDArray[Any]
_CACHED_INDEXES = 4096


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


def metadata_files(name: Format, schema: Schema, layout: Layout, *, num_shards: int) -> dict[str, bytes]:
    """The Zarr metadata of a finished data set; nothing for WebDataset."""
    import json

    if name == "webdataset":
        return {}
    arrays = {
        column.name: zarr_codec.array_metadata(column, layout, num_shards) for column in stored_columns(schema, layout)
    }
    attributes = {"note": "natoms == 0 pads the end of each block; see manifest.json"}
    group = {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": attributes,
        "consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": arrays},
    }
    documents = {"zarr.json": group} | {f"{array}/zarr.json": metadata for array, metadata in arrays.items()}
    return {path: (json.dumps(document, indent=1) + "\n").encode() for path, document in documents.items()}


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
    """Range reads of single chunks, all columns of a block at once; shard indexes are kept."""

    def __init__(self, store: Store, schema: Schema, layout: Layout) -> None:
        self._store, self._schema, self._layout = store, schema, layout
        self._columns = {column.name: column for column in stored_columns(schema, layout)}
        self._indexes: OrderedDict[str, Array] = OrderedDict()

    def _where(self, shard: int, block: int, array: str) -> str:
        return f"{self._store.url}: shard {shard}, array {array}, block {block}"

    def _file(self, shard: int, array: str) -> str:
        return "/".join([array, "c", str(shard), *["0"] * len(self._columns[array].chunk)])

    def _load_indexes(self, shard: int, block: int, arrays: Sequence[str]) -> None:
        unknown = {self._file(shard, array): array for array in arrays if self._file(shard, array) not in self._indexes}
        blocks = self._layout.blocks_per_shard
        tails = self._store.read_many([Span(name, -zarr_codec.index_nbytes(blocks)) for name in unknown])
        for (name, array), tail in zip(unknown.items(), tails, strict=True):
            self._indexes[name] = zarr_codec.decode_index(tail, blocks, where=self._where(shard, block, array))
        while len(self._indexes) > _CACHED_INDEXES:
            self._indexes.popitem(last=False)

    def _chunks(self, shard: int, block: int, arrays: Sequence[str]) -> dict[str, Array]:
        self._load_indexes(shard, block, arrays)
        spans = []
        for array in arrays:
            name = self._file(shard, array)
            offset, nbytes = (int(value) for value in self._indexes[name][block])
            if offset == zarr_codec.ABSENT:
                raise ShardError(f"{self._where(shard, block, array)}: block is absent from the shard file")
            spans.append(Span(name, offset, offset + nbytes))
        payloads = self._store.read_many(spans)
        return {
            array: zarr_codec.decode_chunk(self._columns[array], payload, where=self._where(shard, block, array))
            for array, payload in zip(arrays, payloads, strict=True)
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
        payload = self._store.read(name, offset, offset + nbytes)
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


def block_reader(name: Format, store: Store, schema: Schema, layout: Layout) -> BlockReader:
    """The reader of a format."""
    return ZarrBlockReader(store, schema, layout) if name == "zarr" else TarBlockReader(store, schema, layout)
