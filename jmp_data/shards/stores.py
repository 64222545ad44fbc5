"""Where shard bytes lie: a local folder or a URL, behind one small protocol of range reads.

Remote reads are retried, checked for their length and kept in a bounded local cache (see `range_cache`).
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from jmp_data.errors import MissingFileError, ShardError
from jmp_data.shards.range_cache import RangeCache
from jmp_data.shards.transports import Payload, Span, Transport, open_transport

_ATTEMPTS = 11  # to read; a minute, so that a run outlives a server's restart
_OPEN_ATTEMPTS = 7  # to open; a wrong address is told sooner
_FIRST_PAUSE = 0.05  # seconds; doubles with each attempt


class AbsentFileError(ShardError, FileNotFoundError):
    """There is no such file."""


class Store(Protocol):
    """Read-only access to the files of one data set; names are relative, POSIX separators."""

    url: str

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """Bytes [start, stop) of a file; a negative start counts from the end. Raises ShardError if it is missing."""
        ...

    def read_many(self, spans: Sequence[Span]) -> Sequence[Payload]:
        """Several ranges, concurrently where that pays; as the transport has them, which saves copying large ones."""
        ...

    def local_path(self, name: str) -> Path | None:
        """The file's path if it is on this machine (it can be memory-mapped), else None."""
        ...


class LocalStore:
    """Files of a local folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = str(root)

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """See `Store.read`."""
        try:
            descriptor = os.open(f"{self.url}/{name}", os.O_RDONLY)
        except FileNotFoundError:
            raise AbsentFileError(f"{self.url}/{name}: file is missing (jmp-data verify lists what else is)") from None
        try:
            size = os.fstat(descriptor).st_size
            begin = 0 if start is None else start if start >= 0 else max(0, size + start)
            end = size if stop is None else min(stop, size)
            return os.pread(descriptor, max(0, end - begin), begin)
        finally:
            os.close(descriptor)

    def read_many(self, spans: Sequence[Span]) -> list[bytes]:
        """See `Store.read_many`."""
        return [self.read(*span) for span in spans]

    def local_path(self, name: str) -> Path | None:
        """See `Store.local_path`."""
        return self.root / name


class RemoteStore:
    """Files under a URL; picklable, connects lazily."""

    def __init__(self, url: str, cache: RangeCache | None = None) -> None:
        self.url = url.rstrip("/")
        self.cache = cache
        self.version = ""  # digest of the content behind the URL; ranges are cached only once it is known
        self._opened: tuple[int, Transport] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "cache": self.cache, "version": self.version, "_opened": None}

    def _transport(self) -> Transport:
        # Connections do not survive a fork.
        opened = self._opened
        if opened is None or opened[0] != os.getpid():
            opened = self._opened = (os.getpid(), open_transport(self.url))
        return opened[1]

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """See `Store.read`."""
        return bytes(self.read_many([Span(name, start, stop)])[0])

    def read_many(self, spans: Sequence[Span]) -> list[Payload]:
        """See `Store.read_many`.

        Raises:
            ShardError: a file is missing, access is refused, or the range still fails after several attempts.
        """
        cache, origin = (self.cache if self.version else None), f"{self.url} {self.version}"
        found: dict[int, Payload] = {}
        if cache is not None:
            cached = {number: cache.get(origin, *span) for number, span in enumerate(spans)}
            found = {number: payload for number, payload in cached.items() if payload is not None}
        missing = [number for number in range(len(spans)) if number not in found]
        for number, payload in zip(missing, self._fetch([spans[n] for n in missing]), strict=True):
            found[number] = payload
            if cache is not None and spans[number].length is not None:
                cache.put(origin, *spans[number], payload)
        return [found[number] for number in range(len(spans))]

    def _fetch(self, spans: Sequence[Span]) -> list[Payload]:
        """Ask until every range is there."""
        results: dict[int, Payload] = {}
        problem: object = None
        attempts = _ATTEMPTS if self.version else _OPEN_ATTEMPTS
        for attempt in range(attempts):
            left = [number for number in range(len(spans)) if number not in results]
            if not left:
                break
            if attempt:
                time.sleep(_FIRST_PAUSE * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))
            for number, answer in zip(left, self._transport().fetch([spans[n] for n in left]), strict=True):
                payload = self._checked(spans[number], answer)
                if isinstance(payload, bytes | memoryview):
                    results[number] = payload
                else:
                    problem = payload
        if len(results) == len(spans):
            return [results[number] for number in range(len(spans))]
        failed = next(spans[number] for number in range(len(spans)) if number not in results)
        raise ShardError(f"{self.url}/{failed.name}: cannot be read after {attempts} attempts ({problem})")

    def _checked(self, span: Span, answer: Payload | Exception) -> Payload | Exception | str:
        """The range that was asked for, or what is wrong and may pass; raises where asking again cannot help."""
        if isinstance(answer, FileNotFoundError):
            raise AbsentFileError(f"{self.url}/{span.name}: file is missing")
        if isinstance(answer, PermissionError):
            raise ShardError(f"{self.url}/{span.name}: access is refused ({answer})")
        if isinstance(answer, Exception) or span.length is None:
            return answer
        return answer if len(answer) == span.length else f"got {len(answer)} of {span.length} bytes"

    def local_path(self, name: str) -> Path | None:
        """See `Store.local_path`."""
        return None


def open_store(path: str | Path) -> Store:
    """A local folder, or a URL with a scheme; remote bytes go through the default cache.

    Raises:
        MissingFileError: a local folder does not exist.
    """
    text = str(path)
    if "://" in text and not text.startswith("file://"):
        return RemoteStore(text, RangeCache.default())
    root = Path(text.removeprefix("file://")).expanduser()
    if not root.is_dir():
        raise MissingFileError(f"{root}: no such data set folder")
    return LocalStore(root.resolve())
