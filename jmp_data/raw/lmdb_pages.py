"""Finds every value of an LMDB file by walking its pages with all bounds checked.

The LMDB library maps the file into memory and follows the page numbers it finds there, so that a truncated download
or a flipped byte in an inner page ends the whole process with SIGBUS instead of an error. It also refuses to open one
file twice in one process. Published data files are only ever read, and reading needs little: two meta pages, branch
pages, leaf pages (the format of LMDB 0.9, ``mdb.c``). Everything is read with ``pread``; a page that is not what its
parent promises is an error.

Page header, 16 bytes: number (u64), pad (u16), flags (u16), then lower and upper (u16 each), or the page count (u32)
of an overflow run.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from jmp_data.errors import RawFileError

_MAGIC = 0xBEEFC0DE
_VERSION = 1
_BRANCH, _LEAF, _OVERFLOW, _META = 0x01, 0x02, 0x04, 0x08
_BIG_DATA, _SUB_DATABASE, _DUPLICATES = 0x01, 0x02, 0x04
_NO_PAGE = (1 << 64) - 1
_MAX_DEPTH = 32

_HEADER = struct.Struct("<QHHHH")
_NODE = struct.Struct("<HHHH")
_PAGE_NUMBER = struct.Struct("<Q")
_META_HEAD = struct.Struct("<IIQQ")
_DATABASE = struct.Struct("<IHHQQQQQ")
_META_TAIL = struct.Struct("<QQ")


@dataclass(frozen=True, slots=True)
class ValueLocation:
    """Where a value lies in the file, in bytes."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class _Meta:
    page_size: int
    root: int
    depth: int
    entries: int
    last_page: int
    transaction: int


class PageReader:
    """Walks the main database of an open LMDB file.

    Args:
        descriptor: of the file, opened for reading.
        name: of the file, for error messages.

    Raises:
        RawFileError: the file is no LMDB file, or is shorter than it says.
    """

    def __init__(self, descriptor: int, name: str) -> None:
        self._descriptor = descriptor
        self._name = name
        self._file_size = os.fstat(descriptor).st_size
        self._meta = self._newest_meta()
        promised = (self._meta.last_page + 1) * self._meta.page_size
        self._is_short = self._file_size < promised
        self._promised = promised

    @property
    def entries(self) -> int:
        """How many keys the file says it holds."""
        return self._meta.entries

    def read(self, location: ValueLocation) -> bytes:
        """Reads one value; raises RawFileError when the file has shrunk since it was indexed."""
        data = os.pread(self._descriptor, location.size, location.offset)
        if len(data) != location.size:
            raise RawFileError(
                f"{self._name}: ends at byte {location.offset + len(data)}, inside a value; get it again"
            )
        return data

    def locations(self) -> Iterator[tuple[bytes, ValueLocation]]:
        """Yields every key with the place of its value, in key order.

        Raises:
            RawFileError: a page is damaged or lies beyond the end of the file, or keys are missing.
        """
        found = 0
        if self._meta.root != _NO_PAGE:
            for item in self._walk(self._meta.root, 1, [0]):
                found += 1
                yield item
        if found != self._meta.entries:
            raise self._damaged(f"{found} of {self._meta.entries} keys were found")

    def _damaged(self, what: str) -> RawFileError:
        if self._is_short:
            what += f"; it has {self._file_size} of the {self._promised} bytes that its header promises"
        return RawFileError(f"{self._name}: damaged LMDB file: {what}; get it again")

    def _newest_meta(self) -> _Meta:
        first = self._read_meta(0)
        sizes = [first.page_size] if first else [4096 << shift for shift in range(5)]
        seconds = (self._read_meta(size) for size in sizes)
        metas = [meta for meta in (first, next((m for m in seconds if m is not None), None)) if meta is not None]
        if not metas:
            raise RawFileError(f"{self._name}: not an LMDB file of format {_VERSION}")
        return max(metas, key=lambda meta: meta.transaction)

    def _read_meta(self, offset: int) -> _Meta | None:
        raw = os.pread(self._descriptor, 16 + _META_HEAD.size + 2 * _DATABASE.size + _META_TAIL.size, offset)
        if len(raw) < 16 + _META_HEAD.size + 2 * _DATABASE.size + _META_TAIL.size:
            return None
        flags = _HEADER.unpack_from(raw)[2]
        magic, version, _, _ = _META_HEAD.unpack_from(raw, 16)
        if not flags & _META or magic != _MAGIC or version != _VERSION:
            return None
        page_size = _DATABASE.unpack_from(raw, 16 + _META_HEAD.size)[0]
        _, _, depth, _, _, _, entries, root = _DATABASE.unpack_from(raw, 16 + _META_HEAD.size + _DATABASE.size)
        last_page, transaction = _META_TAIL.unpack_from(raw, 16 + _META_HEAD.size + 2 * _DATABASE.size)
        if page_size < 512 or page_size > 65536 or page_size & (page_size - 1):
            return None
        return _Meta(page_size, root, depth, entries, last_page, transaction)

    def _page(self, number: int) -> tuple[bytes, int, tuple[int, ...]]:
        """Reads a branch or leaf page: its bytes, its flags, the offsets of its nodes."""
        size = self._meta.page_size
        raw = os.pread(self._descriptor, size, number * size) if number <= self._meta.last_page else b""
        if len(raw) != size:
            raise self._damaged(f"page {number} lies beyond its end")
        own_number, _, flags, lower, upper = _HEADER.unpack_from(raw)
        kind = flags & (_BRANCH | _LEAF | _OVERFLOW | _META)
        if own_number != number or kind not in (_BRANCH, _LEAF) or not 16 <= lower <= upper <= size or lower % 2:
            raise self._damaged(f"page {number} is not the page that the index promises")
        offsets = struct.unpack_from(f"<{(lower - 16) // 2}H", raw, 16)
        if any(not lower <= offset <= size - _NODE.size for offset in offsets):
            raise self._damaged(f"page {number} points outside of itself")
        return raw, kind, offsets

    def _walk(self, number: int, depth: int, visited: list[int]) -> Iterator[tuple[bytes, ValueLocation]]:
        visited[0] += 1
        if depth > _MAX_DEPTH or visited[0] > self._meta.last_page:
            raise self._damaged("its pages form a loop")
        raw, kind, offsets = self._page(number)
        if kind == _BRANCH:
            for offset in offsets:
                low, high, top, _ = _NODE.unpack_from(raw, offset)
                yield from self._walk(low | high << 16 | top << 32, depth + 1, visited)
            return
        for offset in offsets:
            yield self._leaf_node(raw, number, offset)

    def _leaf_node(self, raw: bytes, number: int, offset: int) -> tuple[bytes, ValueLocation]:
        low, high, flags, key_size = _NODE.unpack_from(raw, offset)
        size = low | high << 16
        start = offset + _NODE.size + key_size
        big = bool(flags & _BIG_DATA)
        if start + (_PAGE_NUMBER.size if big else size) > len(raw) or flags & (_SUB_DATABASE | _DUPLICATES):
            raise self._damaged(f"page {number} holds a value of an unknown kind or beyond its end")
        key = raw[offset + _NODE.size : start]
        if not big:
            return key, ValueLocation(number * len(raw) + start, size)
        (first,) = _PAGE_NUMBER.unpack_from(raw, start)
        begin = first * len(raw) + 16
        if first > self._meta.last_page or begin + size > self._file_size:
            raise self._damaged(f"the value of key {key[:40]!r} lies beyond its end")
        return key, ValueLocation(begin, size)
