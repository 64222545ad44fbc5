"""Reads the records of OCP-style and ASE-style LMDB files: integer keys in numeric order, read-only, without locks.

Keys are ASCII integers; everything else (``length``, ``nextid``, ``metadata``) is a named value and never counted as
a record. LMDB orders keys as text (0, 1, 10, 100, …), files are written in numeric order, so numeric order is also
the fast one on disk.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from jmp_data.errors import MissingFileError, RawFileError
from jmp_data.raw.lmdb_pages import PageReader, ValueLocation
from jmp_data.raw.restricted_pickle import load_value

_LENGTH_KEY = "length"


class LmdbRecords:
    """The records of one LMDB file. Use as a context manager, or call :meth:`close`.

    Attributes:
        path: the data file.
        keys: (num_records,) int64, the integer keys that exist, ascending.
        named: the keys that are no integers, with the place of their values; read them with :meth:`read_named`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path / "data.mdb" if path.is_dir() else path
        if not self.path.is_file():
            raise MissingFileError(f"{self.path}: no such LMDB file")
        self._descriptor = os.open(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        try:
            self._pages = PageReader(self._descriptor, str(self.path))
            self._locations: dict[int, ValueLocation] = {}
            self.named: dict[str, ValueLocation] = {}
            for key, location in self._pages.locations():
                self._index(key, location)
            self.keys = np.array(sorted(self._locations), dtype=np.int64)
            self._count = self._expected_count()
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        """The number of keys 0 … n-1 that should exist: the larger of ``length`` and the last key plus one."""
        return self._count

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; harmless when repeated."""
        descriptor, self._descriptor = getattr(self, "_descriptor", -1), -1
        if descriptor >= 0:
            os.close(descriptor)

    def read(self, key: int) -> bytes:
        """Returns the value of one integer key.

        Raises:
            RawFileError: the key is missing, or the file ends inside its value.
        """
        location = self._locations.get(key)
        if location is None:
            raise RawFileError(
                f"{self.where(key)} is missing ({len(self.keys)} of {self._count} are there); get the file again"
            )
        return self._pages.read(location)

    def read_named(self, key: str) -> bytes | None:
        """Returns the value of a key that is no integer, or None where the file has none of that name."""
        location = self.named.get(key)
        return None if location is None else self._pages.read(location)

    def records(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, bytes]]:
        """Yields (key, payload) for the keys ``start`` … ``stop - 1``, every one of which must exist.

        Args:
            start: first key.
            stop: one past the last key; the end of the file by default.

        Raises:
            RawFileError: a key in the range is missing; read on behind it with another range.
        """
        for key in range(start, self._count if stop is None else min(stop, self._count)):
            yield key, self.read(key)

    def where(self, key: int) -> str:
        """File and record as error messages name them."""
        return f"{self.path}: record {key}"

    def _index(self, key: bytes, location: ValueLocation) -> None:
        if key.isdigit() and len(key) < 19 and (key == b"0" or key[:1] != b"0"):
            self._locations[int(key)] = location
        else:
            self.named[key.decode("utf-8", "backslashreplace")] = location

    def _expected_count(self) -> int:
        """Takes the pickled ``length`` into account, and refuses counts that most records do not back."""
        count = int(self.keys[-1]) + 1 if len(self.keys) else 0
        payload = self.read_named(_LENGTH_KEY)
        if payload is not None:
            declared = load_value(payload, where=f"{self.path}: key {_LENGTH_KEY}")
            if not isinstance(declared, int | np.integer) or declared < 0:
                raise RawFileError(f"{self.path}: key {_LENGTH_KEY} holds {declared!r:.40}, not a count")
            count = max(count, int(declared))
        if count > 2 * len(self.keys) + 1000:
            raise RawFileError(f"{self.path}: holds only {len(self.keys)} of {count} records; get the file again")
        return count


def open_lmdb(path: Path | str) -> LmdbRecords:
    """Opens an LMDB file (or a directory that holds ``data.mdb``) for reading and finds its records.

    Args:
        path: local path; nothing beside it is written or locked, and it may be open elsewhere.

    Raises:
        MissingFileError: there is no such file.
        RawFileError: it is damaged, truncated or no LMDB file.
    """
    return LmdbRecords(Path(path))
