"""Compressed chunks out of shard files: range reads of many chunks at once; the shards' indexes are kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt

from jmp_data.errors import ShardError
from jmp_data.shards import zarr_codec
from jmp_data.shards.stores import Span, Store

_CACHED_INDEXES = 4096


class ShardChunks:
    """Reads chunks of the shard files of one store.

    Args:
        store: where the bytes lie.
        blocks_per_shard: entries of each index.
    """

    def __init__(self, store: Store, blocks_per_shard: int) -> None:
        self._store, self._blocks = store, blocks_per_shard
        self._indexes: OrderedDict[str, npt.NDArray[Any]] = OrderedDict()

    def read(self, block: int, files: Sequence[str], where: Mapping[str, str]) -> list[bytes]:
        """The chunk of one block in each of several files, checksum still on it.

        Args:
            block: number of the block inside the shard.
            files: names relative to the store.
            where: file → shard, array and block in words, for errors.

        Raises:
            ShardError: a file is missing, its index is damaged, or it has no chunk for this block.
        """
        self._load_indexes(files, where)
        spans = []
        for file in files:
            offset, nbytes = (int(value) for value in self._indexes[file][block])
            if offset == zarr_codec.ABSENT:
                raise ShardError(f"{where[file]}: block is absent from the shard file")
            spans.append(Span(file, offset, offset + nbytes))
        while len(self._indexes) > _CACHED_INDEXES:
            self._indexes.popitem(last=False)
        return self._store.read_many(spans)

    def _load_indexes(self, files: Sequence[str], where: Mapping[str, str]) -> None:
        unknown = [file for file in files if file not in self._indexes]
        tails = self._store.read_many([Span(file, -zarr_codec.index_nbytes(self._blocks)) for file in unknown])
        for file, tail in zip(unknown, tails, strict=True):
            self._indexes[file] = zarr_codec.decode_index(tail, self._blocks, where=where[file])
