"""The Zarr v3 sharding format, byte for byte: one shard file holds the compressed chunks of one array and their index.

Layout (Zarr v3 specification, `sharding_indexed` with the index at the end): chunks one after the other, then one
(offset, nbytes) pair of little-endian uint64 per chunk, 2**64 - 1 twice for an absent chunk, then the CRC-32C of the
index. A chunk is: little-endian bytes → Blosc (Zstandard, bit shuffle) → CRC-32C appended.

Chunks of edges are large, and a reader wants a few rows of one: their Blosc blocks hold `GRANULE` rows each, any of
which is decompressed alone (see `granules`).

Reading one chunk here is a range read and one decompression; zarr-python opens the same files (tests compare the two)
but spends a millisecond of scheduling on each chunk, which a shuffling loader cannot afford.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from numcodecs import Blosc, blosc

from jmp_data.errors import ShardError
from jmp_data.shards.checksums import crc32c
from jmp_data.shards.layout import Column, Layout

ABSENT = (1 << 64) - 1
CRC_BYTES = 4
GRANULE = 16384
"""Edges that are compressed together, a part of the format. Fewer compress worse, more are decompressed in vain."""

_COMPRESSION_LEVEL = 5
_SHUFFLES = {"noshuffle": Blosc.NOSHUFFLE, "shuffle": Blosc.SHUFFLE, "bitshuffle": Blosc.BITSHUFFLE}

# Blosc's own threads neither pay at this chunk size nor mix with worker processes.
blosc.set_nthreads(1)


def index_nbytes(blocks_per_shard: int) -> int:
    """Size of the index at the end of a shard file, checksum included."""
    return 16 * blocks_per_shard + CRC_BYTES


def _blosc_configuration(column: Column) -> dict[str, Any]:
    if column.level == "edge":
        shuffle, typesize, blocksize = "shuffle", column.row_nbytes, GRANULE * column.row_nbytes
    else:
        shuffle, typesize, blocksize = "bitshuffle", column.dtype.itemsize, 0
    return {
        "cname": "zstd",
        "clevel": _COMPRESSION_LEVEL,
        "shuffle": shuffle if typesize > 1 else "noshuffle",
        "typesize": typesize,
        "blocksize": blocksize,
    }


def encode_chunk(column: Column, rows: npt.NDArray[Any]) -> bytes:
    """Pad the rows of one block to the chunk's capacity, compress, append the checksum."""
    blosc_settings = _blosc_configuration(column)
    padded = np.zeros(column.chunk, column.dtype.newbyteorder("<"))
    padded[: len(rows)] = rows
    items = padded.reshape(-1).view(f"V{blosc_settings['typesize']}") if column.level == "edge" else padded
    compressor = Blosc(
        blosc_settings["cname"],
        blosc_settings["clevel"],
        _SHUFFLES[blosc_settings["shuffle"]],
        blosc_settings["blocksize"],
    )
    payload: bytes = compressor.encode(items)
    return payload + struct.pack("<I", crc32c(payload))


def verified(payload: bytes | memoryview, *, where: str) -> bytes | memoryview:
    """A chunk without its checksum.

    Raises:
        ShardError: the checksum does not match; `where` names shard, array and block.
    """
    content, checksum = payload[:-CRC_BYTES], payload[-CRC_BYTES:]
    if not content or struct.unpack("<I", checksum)[0] != crc32c(content):
        raise ShardError(
            f"{where}: checksum does not match; the file is damaged (jmp-data verify --repair rebuilds it)"
        )
    return content


def decode_chunk(column: Column, payload: bytes | memoryview, *, where: str) -> npt.NDArray[Any]:
    """Inverse of `encode_chunk`, padding included; raises as `verified` does."""
    flat = np.frombuffer(blosc.decompress(verified(payload, where=where)), column.dtype.newbyteorder("<"))
    return flat.reshape(column.chunk)


def encode_index(extents: npt.NDArray[np.uint64], blocks_per_shard: int) -> bytes:
    """The end of a shard file: where the chunks of its first blocks lie; those of further blocks are absent.

    Args:
        extents: (blocks, 2) offset and size of each chunk, `ABSENT` twice where a block has none.
        blocks_per_shard: capacity.
    """
    index = np.full((blocks_per_shard, 2), ABSENT, "<u8")
    index[: len(extents)] = extents
    tail = index.tobytes()
    return tail + struct.pack("<I", crc32c(tail))


def encode_shard(chunks: Sequence[bytes], blocks_per_shard: int) -> bytes:
    """A whole shard file from its encoded chunks; the shard's remaining chunks are absent."""
    sizes = np.array([len(chunk) for chunk in chunks], np.uint64)
    extents = np.stack([np.cumsum(sizes, dtype=np.uint64) - sizes, sizes], axis=1)
    return b"".join([*chunks, encode_index(extents, blocks_per_shard)])


def decode_index(payload: bytes, blocks_per_shard: int, *, where: str) -> npt.NDArray[np.uint64]:
    """(blocks_per_shard, 2) offsets and sizes from the last `index_nbytes` bytes of a shard file.

    Raises:
        ShardError: too short, or the checksum does not match.
    """
    if len(payload) != index_nbytes(blocks_per_shard):
        raise ShardError(f"{where}: file is truncated, its index is missing")
    tail = payload[:-CRC_BYTES]
    if struct.unpack("<I", payload[-CRC_BYTES:])[0] != crc32c(tail):
        raise ShardError(f"{where}: index checksum does not match; the file is damaged or truncated")
    return np.frombuffer(tail, "<u8").reshape(blocks_per_shard, 2)


def array_metadata(column: Column, layout: Layout, num_shards: int, *, pieces: int = 1) -> dict[str, Any]:
    """The `zarr.json` of one array.

    Args:
        column: the array.
        layout: capacities.
        num_shards: shards of the data set.
        pieces: chunks that a block may have, each in a file of its own.
    """
    codecs = [
        {"name": "bytes", "configuration": {"endian": "little"}} if column.dtype.itemsize > 1 else {"name": "bytes"},
        {"name": "blosc", "configuration": _blosc_configuration(column)},
        {"name": "crc32c"},
    ]
    sharding = {
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": [1, *column.chunk],
            "codecs": codecs,
            "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
            "index_location": "end",
        },
    }
    blocks, capacity, *row = layout.blocks_per_shard, *column.chunk
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [num_shards * blocks, pieces * capacity, *row],
        "data_type": column.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [blocks, *column.chunk]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": False if column.dtype == bool else (0.0 if column.dtype.kind == "f" else 0),
        "codecs": [sharding],
        "attributes": {},
    }


def group_metadata(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The `zarr.json` of a group."""
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def documents(nodes: Mapping[str, dict[str, Any]]) -> dict[str, bytes]:
    """The `zarr.json` files of groups and arrays; that of a group repeats those of all below it.

    Args:
        nodes: folder ("" for the root) → metadata.

    Returns:
        File name → content.
    """
    files = {}
    for folder, node in nodes.items():
        prefix = f"{folder}/" if folder else ""
        if node["node_type"] == "group":
            below = {name[len(prefix) :]: other for name, other in nodes.items() if name and name.startswith(prefix)}
            inline = {"kind": "inline", "must_understand": False, "metadata": below}
            node = {**node, "consolidated_metadata": inline}
        files[f"{prefix}zarr.json"] = (json.dumps(node, indent=1) + "\n").encode()
    return files
