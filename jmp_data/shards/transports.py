"""How bytes behind a URL are asked for: obstore for s3://, gs:// and http(s)://, fsspec for every other scheme.

A transport tries once and says what went wrong; `stores.RemoteStore` decides what to do about it. obstore waits for
answers in threads of its own, outside of Python. They do not survive a fork, so a forked process lets a fresh
interpreter ask in its place.
"""

from __future__ import annotations

import base64
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias
from urllib.parse import unquote, urlsplit

from jmp_data.errors import ManifestError, MissingExtraError
from jmp_data.shards.clouds import aws_settings, google_settings

STALL = 30
"""Seconds without a byte after which a connection counts as dropped."""

_REQUESTS = 128  # at a time; a far server answers each of them slowly, but all at once
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "http": "http", "https": "http"}


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


Payload: TypeAlias = bytes | memoryview
"""Bytes of a range, read-only. They may lie in obstore's memory: copying them costs as much as receiving them."""


class Transport(Protocol):
    """Asks for bytes of files below one URL."""

    def fetch(self, spans: Sequence[Span]) -> list[Payload | Exception]:
        """Each range, or why there is none: FileNotFoundError, PermissionError, or anything that may pass."""
        ...


def open_transport(url: str) -> Transport:
    """The transport of a URL, for this process.

    Raises:
        MissingExtraError: a package is missing that reads this scheme.
        ManifestError: not a URL, or of an unknown scheme.
    """
    global _obstore_process
    scheme = urlsplit(url).scheme
    try:
        if scheme not in _EXTRAS:
            return FsspecTransport(url)
        if _obstore_process not in (None, os.getpid()):
            return HelperTransport(url)
        opened = ObstoreTransport(url)
    except ImportError as error:
        hint = f"pip install 'jmp-data[{_EXTRAS[scheme]}]'" if scheme in _EXTRAS else str(error)
        raise MissingExtraError(f"{url}: reading {scheme}:// needs another package: {hint}") from error
    except ValueError as error:
        raise ManifestError(f"{url}: not a URL that can be read ({error})") from error
    _obstore_process = os.getpid()
    return opened


_obstore_process: int | None = None
"""The process, this one or one that it was forked from, in which obstore started its threads."""


class ObstoreTransport:
    """Files of an object store or a web server."""

    def __init__(self, url: str) -> None:
        import obstore

        untyped: Any = obstore  # where it is not installed, its types are not either
        self._get, self._get_range = untyped.get, untyped.get_range
        self._store, self._url = _obstore_of(url), url
        self._threads = ThreadPoolExecutor(_REQUESTS, thread_name_prefix="jmp-requests")

    def fetch(self, spans: Sequence[Span]) -> list[Payload | Exception]:
        """See `Transport.fetch`."""
        others = [self._threads.submit(self._fetch_one, span) for span in spans[1:]]
        return [self._fetch_one(span) for span in spans[:1]] + [other.result() for other in others]

    def _fetch_one(self, span: Span) -> Payload | Exception:
        from obstore import exceptions

        try:
            return self._ask(span)
        except FileNotFoundError as error:
            return error
        except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
            return PermissionError(_first_line(error))
        except Exception as error:  # noqa: BLE001 - what it is, its text says
            return OSError(_first_line(error))

    def _ask(self, span: Span) -> Payload:
        name, start, stop = span
        if span.length == 0:
            return b""
        try:
            if start is not None and stop is not None and start >= 0:
                return memoryview(self._get_range(self._store, name, start=start, end=stop))
            ranges = {} if start is None else {"range": {"suffix": -start} if start < 0 else {"offset": start}}
            return memoryview(self._get(self._store, name, options=ranges).bytes())
        except Exception as error:
            if not self._url.startswith("http") or not _asks_too_much(error):
                raise
            return _whole_file(f"{self._url}/{name}")[start:stop]


class FsspecTransport:
    """Files of any other file system that fsspec knows, for instance memory://."""

    def __init__(self, url: str) -> None:
        import fsspec

        self._filesystem, self._root = fsspec.core.url_to_fs(url)

    def fetch(self, spans: Sequence[Span]) -> list[Payload | Exception]:
        """See `Transport.fetch`."""
        paths = [f"{self._root}/{span.name}" for span in spans]
        starts, stops = [span.start for span in spans], [span.stop for span in spans]
        try:
            return list(self._filesystem.cat_ranges(paths, starts, stops, on_error="return"))
        except Exception as error:  # noqa: BLE001 - every file system has errors of its own, all are retried
            return [error] * len(spans)


_BOOT = "from jmp_data.shards.transports import answer; answer()"


class HelperTransport:
    """A fresh interpreter that asks in the place of a forked process; it ends with this object."""

    def __init__(self, url: str) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _BOOT, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
            )
        self._connection, self._turn = Connection(ours.detach()), threading.Lock()
        self._connection.send(url)

    def fetch(self, spans: Sequence[Span]) -> list[Payload | Exception]:
        """See `Transport.fetch`."""
        with self._turn:
            try:
                self._connection.send(list(spans))
                answers: list[Payload | Exception] = self._connection.recv()
            except (EOFError, OSError) as error:
                return [OSError(f"the process that reads for a forked one has ended ({error!r})")] * len(spans)
        return answers

    def __del__(self) -> None:
        self._connection.close()
        self._process.wait()


def answer() -> None:
    """The other end of `HelperTransport`."""
    connection = Connection(int(sys.argv[1]))
    try:
        transport = open_transport(connection.recv())
        while True:
            answers = transport.fetch(connection.recv())
            connection.send([bytes(each) if isinstance(each, memoryview) else each for each in answers])
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _obstore_of(url: str) -> Any:
    """obstore's store of the files below a URL. It tries once, and only silence ends a slow answer."""
    from obstore import store as kinds

    store: Any = kinds  # see `ObstoreTransport`
    parts = urlsplit(url)
    client: dict[str, Any] = {"timeout": "1 day", "connect_timeout": f"{STALL} s", "read_timeout": f"{STALL} s"}
    once = {"max_retries": 0}
    if parts.scheme in ("http", "https"):
        if parts.username is not None:
            login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            client["default_headers"] = {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}
        return store.HTTPStore(url, client_options={**client, "allow_http": True}, retry_config=once)
    bucket, prefix = parts.netloc, parts.path.strip("/") or None
    if parts.scheme in ("s3", "s3a"):
        kind, (settings, provider) = store.S3Store, aws_settings(bucket)
    else:
        kind, settings, provider = store.GCSStore, google_settings(), None
    server = settings.get("endpoint", settings.get("base_url", ""))
    return kind(
        bucket,
        prefix=prefix,
        config=settings,
        client_options={**client, "allow_http": server.startswith("http://")},
        retry_config=once,
        credential_provider=provider,
    )


def _asks_too_much(error: Exception) -> bool:
    """Whether a web server knows no ranges, or does not say how much it sends."""
    return type(error).__name__ == "NotSupportedError" or "Content-Length" in str(error)


def _whole_file(url: str) -> bytes:
    import requests

    answer = requests.get(url, timeout=STALL, headers={"Accept-Encoding": "identity"})
    answer.raise_for_status()
    return answer.content


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
