"""Where shard bytes lie: a local folder or any fsspec URL, behind one small protocol of range reads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

from jmp_data.errors import MissingFileError, ShardError


class Store(Protocol):
    """Read-only access to the files of one data set; names are relative, POSIX separators."""

    url: str

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """Bytes [start, stop) of a file; a negative start counts from the end. Raises ShardError if it is missing."""
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
            descriptor = os.open(self.root / name, os.O_RDONLY)
        except FileNotFoundError:
            raise ShardError(f"{self.root / name}: file is missing (jmp-data verify lists what else is)") from None
        try:
            size = os.fstat(descriptor).st_size
            begin = 0 if start is None else start if start >= 0 else max(0, size + start)
            end = size if stop is None else min(stop, size)
            return os.pread(descriptor, max(0, end - begin), begin)
        finally:
            os.close(descriptor)

    def local_path(self, name: str) -> Path | None:
        """See `Store.local_path`."""
        return self.root / name


class FsspecStore:
    """Files under any URL that fsspec knows (s3://, gs://, https://, memory://); picklable, connects lazily."""

    def __init__(self, url: str, options: dict[str, Any] | None = None) -> None:
        self.url = url.rstrip("/")
        self.options = options or {}
        self._opened: tuple[int, Any, str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "options": self.options, "_opened": None}

    def _filesystem(self) -> tuple[Any, str]:
        # A filesystem object's event loop does not survive a fork.
        if self._opened is None or self._opened[0] != os.getpid():
            import fsspec

            filesystem, root = fsspec.core.url_to_fs(self.url, **self.options)
            self._opened = (os.getpid(), filesystem, root)
        return self._opened[1], self._opened[2]

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """See `Store.read`."""
        filesystem, root = self._filesystem()
        try:
            return bytes(filesystem.cat_file(f"{root}/{name}", start=start, end=stop))
        except FileNotFoundError:
            raise ShardError(f"{self.url}/{name}: file is missing") from None

    def local_path(self, name: str) -> Path | None:
        """See `Store.local_path`."""
        return None


def open_store(path: str | Path) -> Store:
    """A local folder, or a URL with a scheme.

    Raises:
        MissingFileError: a local folder does not exist.
    """
    text = str(path)
    if "://" in text and not text.startswith("file://"):
        return FsspecStore(text)
    root = Path(text.removeprefix("file://")).expanduser()
    if not root.is_dir():
        raise MissingFileError(f"{root}: no such data set folder")
    return LocalStore(root.resolve())
