"""Compressed chunks out of shard files: range reads of many chunks at once; the shards' indexes are kept.

Far away, a request costs more than a few kilobytes: shard files of small columns (atom counts, periodicity, energies)
are then read as a whole, instead of their index and every chunk on its own. That leaves the large columns to ask for.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy.typing as npt

from jmp_data.errors import ShardError
from jmp_data.shards import zarr_codec
from jmp_data.shards.stores import Store
from jmp_data.shards.transports import Payload, Span

_CACHED_INDEXES = 4096
_WHOLE_BYTES = 256 << 10
"""Remote files up to this size are read whole: about what travels in the time that a request waits."""
_CACHED_WHOLE_BYTES = 64 << 20

NO_SIZES: Mapping[str, int] = MappingProxyType({})


class _Shard(NamedTuple):
    """What is known of a shard file: its index, and all of it, if it is small and far away."""

    extents: npt.NDArray[Any]
    content: bytes


class ShardChunks:
    """Reads chunks of the shard files of one store.

    Args:
        store: where the bytes lie.
        blocks_per_shard: entries of each index.
        sizes: bytes of each file, where it pays to read small files as a whole.
    """

    def __init__(self, store: Store, blocks_per_shard: int, sizes: Mapping[str, int] = NO_SIZES) -> None:
        self._store, self._blocks, self._sizes = store, blocks_per_shard, sizes
        self._known: OrderedDict[str, _Shard] = OrderedDict()
        self._whole_bytes = 0
        self._change = threading.Lock()
        self._asked: dict[tuple[str, ...], Future[dict[str, _Shard]]] = {}

    def read(self, block: int, files: Sequence[str], where: Mapping[str, str]) -> list[Payload]:
        """The chunk of one block in each of several files, checksum still on it.

        Args:
            block: number of the block inside the shard.
            files: names relative to the store.
            where: file → shard, array and block in words, for errors.

        Raises:
            ShardError: a file is missing, its index is damaged, or it has no chunk for this block.
        """
        shards = self._load(files, where)
        found: dict[str, Payload] = {}
        spans = []
        for file in files:
            extents, content = shards[file]
            offset, nbytes = (int(value) for value in extents[block])
            if offset == zarr_codec.ABSENT:
                raise ShardError(f"{where[file]}: block is absent from the shard file")
            if content:
                found[file] = content[offset : offset + nbytes]
            else:
                spans.append(Span(file, offset, offset + nbytes))
        for span, payload in zip(spans, self._store.read_many(spans), strict=True):
            found[span.name] = payload
        return [found[file] for file in files]

    def _load(self, files: Sequence[str], where: Mapping[str, str]) -> dict[str, _Shard]:
        """What is known of each file. Other threads may make the cache forget any of them at any time."""
        shards = self._known_of(files)
        if len(shards) == len(files):
            return shards
        # Many threads want blocks of one shard at once: one of them asks, the others get what it got.
        key = tuple(files)
        with self._change:
            shards, under_way = self._known_of(files), self._asked.get(key)
            answer = self._asked[key] = under_way or Future()
        if under_way is not None:
            return under_way.result()
        try:
            self._ask([file for file in files if file not in shards], shards, where)
            answer.set_result(shards)
        except BaseException as error:
            answer.set_exception(error)
            raise
        finally:
            with self._change:
                del self._asked[key]
        return shards

    def _known_of(self, files: Sequence[str]) -> dict[str, _Shard]:
        return {file: shard for file in files if (shard := self._known.get(file)) is not None}

    def _ask(self, unknown: Sequence[str], shards: dict[str, _Shard], where: Mapping[str, str]) -> None:
        """Add what the store says of unknown files."""
        tails = [bytes(tail) for tail in self._store.read_many([self._tail(file) for file in unknown])]
        nbytes = zarr_codec.index_nbytes(self._blocks)
        for file, tail in zip(unknown, tails, strict=True):
            index = zarr_codec.decode_index(tail[-nbytes:], self._blocks, where=where[file])
            shards[file] = _Shard(index, tail if len(tail) == self._sizes.get(file) else b"")
            self._keep(file, shards[file])

    def _tail(self, file: str) -> Span:
        """The whole of a small file, the index of others."""
        size, nbytes = self._sizes.get(file), zarr_codec.index_nbytes(self._blocks)
        if size is None:
            return Span(file, -nbytes)
        return Span(file, 0 if size <= _WHOLE_BYTES else max(0, size - nbytes), size)

    def _keep(self, file: str, shard: _Shard) -> None:
        with self._change:
            replaced = self._known.pop(file, None)
            self._whole_bytes += len(shard.content) - (0 if replaced is None else len(replaced.content))
            self._known[file] = shard
            while len(self._known) > _CACHED_INDEXES or self._whole_bytes > _CACHED_WHOLE_BYTES:
                self._whole_bytes -= len(self._known.popitem(last=False)[1].content)
