"""Where shard bytes lie: a local folder or any fsspec URL, behind one small protocol of range reads.

Remote reads are retried, checked for their length and kept in a bounded local cache (see `range_cache`).
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from jmp_data.errors import ManifestError, MissingExtraError, MissingFileError, ShardError
from jmp_data.shards.range_cache import RangeCache

_ATTEMPTS = 9  # to read; a minute, so that a run outlives a server's restart
_OPEN_ATTEMPTS = 5  # to open; a wrong address is told sooner
_FIRST_PAUSE = 0.2  # seconds; doubles with each attempt
_STALL = 30.0  # seconds without a byte after which a connection counts as dropped
_CONNECTIONS = 256  # at a time; a far server answers each of them slowly, but all at once
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "http": "http", "https": "http"}


class AbsentFileError(ShardError, FileNotFoundError):
    """There is no such file."""


class Span(NamedTuple):
    """Bytes [start, stop) of a file; a negative start counts from the end, None means open."""

    name: str
    start: int | None = None
    stop: int | None = None

    @property
    def length(self) -> int | None:
        """Bytes asked for, where that is known."""
        if self.start is not None and self.stop is not None:
            return self.stop - self.start
        return -self.start if self.start is not None and self.start < 0 else None


class Store(Protocol):
    """Read-only access to the files of one data set; names are relative, POSIX separators."""

    url: str

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """Bytes [start, stop) of a file; a negative start counts from the end. Raises ShardError if it is missing."""
        ...

    def read_many(self, spans: Sequence[Span]) -> list[bytes]:
        """Several ranges, concurrently where that pays."""
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


class FsspecStore:
    """Files under any URL that fsspec knows (s3://, gs://, https://, memory://); picklable, connects lazily."""

    def __init__(self, url: str, cache: RangeCache | None = None) -> None:
        self.url = url.rstrip("/")
        self.cache = cache
        self.version = ""  # digest of the content behind the URL; ranges are cached only once it is known
        self._opened: tuple[int, Any, str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "cache": self.cache, "version": self.version, "_opened": None}

    def _filesystem(self) -> tuple[Any, str]:
        # A filesystem object's event loop does not survive a fork.
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), *_open_filesystem(self.url))
        return self._opened[1], self._opened[2]

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """See `Store.read`."""
        return self.read_many([Span(name, start, stop)])[0]

    def read_many(self, spans: Sequence[Span]) -> list[bytes]:
        """See `Store.read_many`.

        Raises:
            ShardError: a file is missing, access is refused, or the range still fails after several attempts.
        """
        cache, origin = (self.cache if self.version else None), f"{self.url} {self.version}"
        found: dict[int, bytes] = {}
        if cache is not None:
            cached = {number: cache.get(origin, *span) for number, span in enumerate(spans)}
            found = {number: payload for number, payload in cached.items() if payload is not None}
        missing = [number for number in range(len(spans)) if number not in found]
        for number, payload in zip(missing, self._fetch([spans[n] for n in missing]), strict=True):
            found[number] = payload
            if cache is not None and spans[number].length is not None:
                cache.put(origin, *spans[number], payload)
        return [found[number] for number in range(len(spans))]

    def _fetch(self, spans: Sequence[Span]) -> list[bytes]:
        results: dict[int, bytes] = {}
        problem: object = None
        attempts = _ATTEMPTS if self.version else _OPEN_ATTEMPTS
        for attempt in range(attempts):
            left = [number for number in range(len(spans)) if number not in results]
            if not left:
                return [results[number] for number in range(len(spans))]
            if attempt:
                time.sleep(_FIRST_PAUSE * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))
            for number, answer in zip(left, self._cat([spans[n] for n in left]), strict=True):
                span = spans[number]
                if isinstance(answer, FileNotFoundError):
                    raise AbsentFileError(f"{self.url}/{span.name}: file is missing")
                if isinstance(answer, Exception) and _is_refusal(answer):
                    raise ShardError(f"{self.url}/{span.name}: access is refused ({answer})")
                if isinstance(answer, Exception):
                    problem = answer
                    continue
                payload = self._trim(span, answer)
                if span.length is not None and len(payload) != span.length:
                    problem = f"got {len(payload)} of {span.length} bytes"
                    continue
                results[number] = payload
        if len(results) == len(spans):
            return [results[number] for number in range(len(spans))]
        failed = next(spans[number] for number in range(len(spans)) if number not in results)
        raise ShardError(f"{self.url}/{failed.name}: cannot be read after {attempts} attempts ({problem})")

    def _cat(self, spans: Sequence[Span]) -> list[bytes | Exception]:
        filesystem, root = self._filesystem()
        paths = [f"{root}/{span.name}" for span in spans]
        starts, stops = [span.start for span in spans], [span.stop for span in spans]
        try:
            if all(start is None and stop is None for start, stop in zip(starts, stops, strict=True)):
                answers = filesystem.cat(paths, on_error="return")
                return [answers[path] for path in paths] if isinstance(answers, dict) else [answers]
            return list(filesystem.cat_ranges(paths, starts, stops, on_error="return"))
        except Exception as error:  # noqa: BLE001 - every file system has errors of its own, all are retried
            return [error] * len(spans)

    @staticmethod
    def _trim(span: Span, payload: bytes) -> bytes:
        """The asked range, where a server ignored the range and sent the whole file."""
        if span.length is not None and len(payload) > span.length:
            return payload[span.start : span.stop]
        return payload

    def local_path(self, name: str) -> Path | None:
        """See `Store.local_path`."""
        return None


def _open_filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path in it."""
    import fsspec

    scheme = url.partition("://")[0]
    settings: dict[str, Any] = {}
    if scheme in ("http", "https"):
        settings = {"get_client": _http_client}
    elif scheme in ("s3", "s3a"):
        waits = {"connect_timeout": _STALL, "read_timeout": _STALL}
        settings = {"config_kwargs": {"max_pool_connections": _CONNECTIONS, **waits}}
    try:
        filesystem, root = fsspec.core.url_to_fs(url, **settings)
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        hint = f"pip install 'jmp-data[{extra}]'" if extra else str(error)
        raise MissingExtraError(f"{url}: reading {scheme}:// needs another package: {hint}") from error
    except ValueError as error:
        raise ManifestError(f"{url}: not a URL that can be read ({error})") from error
    return filesystem, root


async def _http_client(**settings: Any) -> Any:
    """A session that holds many connections, and gives a silent one up."""
    import aiohttp

    timeout = aiohttp.ClientTimeout(sock_connect=_STALL, sock_read=_STALL)
    connector = aiohttp.TCPConnector(limit=_CONNECTIONS)
    return aiohttp.ClientSession(**{"timeout": timeout, "connector": connector, **settings})


def _is_refusal(error: Exception) -> bool:
    """Whether asking again cannot help."""
    return isinstance(error, PermissionError) or type(error).__name__ == "NoCredentialsError"


def open_store(path: str | Path) -> Store:
    """A local folder, or a URL with a scheme; remote bytes go through the default cache.

    Raises:
        MissingFileError: a local folder does not exist.
    """
    text = str(path)
    if "://" in text and not text.startswith("file://"):
        return FsspecStore(text, RangeCache.default())
    root = Path(text.removeprefix("file://")).expanduser()
    if not root.is_dir():
        raise MissingFileError(f"{root}: no such data set folder")
    return LocalStore(root.resolve())
