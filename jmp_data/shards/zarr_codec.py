"""The Zarr v3 sharding format, byte for byte: one shard file holds the compressed chunks of one array and their index.

Layout (Zarr v3 specification, `sharding_indexed` with the index at the end): chunks one after the other, then one
(offset, nbytes) pair of little-endian uint64 per chunk, 2**64 - 1 twice for an absent chunk, then the CRC-32C of the
index. A chunk is: little-endian bytes → Blosc (Zstandard, bit shuffle) → CRC-32C appended.

Reading one chunk here is a range read and one decompression; zarr-python opens the same files (tests compare the two)
but spends a millisecond of scheduling on each chunk, which a shuffling loader cannot afford.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
from numcodecs import Blosc, blosc

from jmp_data.errors import ShardError
from jmp_data.shards.layout import Column, Layout

ABSENT = (1 << 64) - 1
CRC_BYTES = 4
_COMPRESSION_LEVEL = 5

# Blosc's own threads neither pay at this chunk size nor mix with worker processes.
blosc.set_nthreads(1)


def index_nbytes(blocks_per_shard: int) -> int:
    """Size of the index at the end of a shard file, checksum included."""
    return 16 * blocks_per_shard + CRC_BYTES


def _compressor(column: Column) -> Blosc:
    shuffle = Blosc.BITSHUFFLE if column.dtype.itemsize > 1 else Blosc.NOSHUFFLE
    return Blosc(cname="zstd", clevel=_COMPRESSION_LEVEL, shuffle=shuffle)


def encode_chunk(column: Column, rows: npt.NDArray[Any]) -> bytes:
    """Pad the rows of one block to the chunk's capacity, compress, append the checksum."""
    padded = np.zeros(column.chunk, column.dtype.newbyteorder("<"))
    padded[: len(rows)] = rows
    payload: bytes = _compressor(column).encode(padded)
    return payload + struct.pack("<I", google_crc32c.value(payload))


def decode_chunk(column: Column, payload: bytes, *, where: str) -> npt.NDArray[Any]:
    """Inverse of `encode_chunk`, padding included.

    Raises:
        ShardError: the checksum does not match; `where` names shard, array and block.
    """
    if len(payload) <= CRC_BYTES or struct.unpack("<I", payload[-CRC_BYTES:])[0] != google_crc32c.value(
        payload[:-CRC_BYTES]
    ):
        raise ShardError(
            f"{where}: checksum does not match; the file is damaged (jmp-data verify --repair rebuilds it)"
        )
    flat = np.frombuffer(blosc.decompress(payload[:-CRC_BYTES]), column.dtype.newbyteorder("<"))
    return flat.reshape(column.chunk)


def encode_shard(chunks: Sequence[bytes], blocks_per_shard: int) -> bytes:
    """A whole shard file from its encoded chunks; the shard's remaining chunks are absent."""
    index = np.full((blocks_per_shard, 2), ABSENT, "<u8")
    sizes = np.array([len(chunk) for chunk in chunks], np.uint64)
    ends = np.cumsum(sizes)
    index[: len(chunks), 0] = ends - sizes
    index[: len(chunks), 1] = sizes
    tail = index.tobytes()
    return b"".join([*chunks, tail, struct.pack("<I", google_crc32c.value(tail))])


def decode_index(payload: bytes, blocks_per_shard: int, *, where: str) -> npt.NDArray[np.uint64]:
    """(blocks_per_shard, 2) offsets and sizes from the last `index_nbytes` bytes of a shard file.

    Raises:
        ShardError: too short, or the checksum does not match.
    """
    if len(payload) != index_nbytes(blocks_per_shard):
        raise ShardError(f"{where}: file is truncated, its index is missing")
    tail = payload[:-CRC_BYTES]
    if struct.unpack("<I", payload[-CRC_BYTES:])[0] != google_crc32c.value(tail):
        raise ShardError(f"{where}: index checksum does not match; the file is damaged or truncated")
    return np.frombuffer(tail, "<u8").reshape(blocks_per_shard, 2)


def array_metadata(column: Column, layout: Layout, num_shards: int) -> dict[str, Any]:
    """The `zarr.json` of one array."""
    codecs = [
        {"name": "bytes", "configuration": {"endian": "little"}} if column.dtype.itemsize > 1 else {"name": "bytes"},
        {
            "name": "blosc",
            "configuration": {
                "cname": "zstd",
                "clevel": _COMPRESSION_LEVEL,
                "shuffle": "bitshuffle" if column.dtype.itemsize > 1 else "noshuffle",
                "typesize": column.dtype.itemsize,
                "blocksize": 0,
            },
        },
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
    blocks = layout.blocks_per_shard
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [num_shards * blocks, *column.chunk],
        "data_type": column.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [blocks, *column.chunk]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": False if column.dtype == bool else (0.0 if column.dtype.kind == "f" else 0),
        "codecs": [sharding],
        "attributes": {},
    }
