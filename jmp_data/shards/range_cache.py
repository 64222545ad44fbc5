"""A bounded cache of remote byte ranges on local disk, shared by all processes of a machine.

Each range is one file, written under a temporary name and renamed, so a crash leaves no half range and many processes
may fill the cache at once. They add up what they write in `.size`, a few times a second; when that exceeds the bound,
one of them looks at all files, removes the least recently used, and notes the true size. What a killed process had not
added up is counted then. `JMP_DATA_CACHE` moves the cache, `JMP_DATA_CACHE_BYTES` bounds it (0 turns it off).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from jmp_data.shards.checksums import crc32c

_DEFAULT_BYTES = 10 << 30
_REPORT_BYTES = 16 << 20  # written by one process before it adds them to the common size
_SHRINK_TO = 0.8
_CRC = struct.Struct("<I")


@dataclass
class RangeCache:
    """Byte ranges in a folder.

    Attributes:
        folder: where.
        max_bytes: bound on the total size; exceeded by at most 16 MiB per process, or a 64th of it where that is less.
    """

    folder: Path
    max_bytes: int
    _unreported: int = field(default=0, repr=False)

    @classmethod
    def default(cls) -> RangeCache | None:
        """The cache that the environment asks for; None where it is turned off."""
        max_bytes = int(os.environ.get("JMP_DATA_CACHE_BYTES", _DEFAULT_BYTES))
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = Path(os.environ.get("JMP_DATA_CACHE") or home / "jmp-data")
        return cls(folder, max_bytes) if max_bytes > 0 else None

    def _path(self, origin: str, name: str, start: int | None, stop: int | None) -> Path:
        key = hashlib.sha256(f"{origin}\n{name}\n{start}\n{stop}".encode()).hexdigest()
        return self.folder / key[:2] / key[2:]

    def get(self, origin: str, name: str, start: int | None, stop: int | None) -> bytes | None:
        """A cached range, or None; a damaged entry counts as absent."""
        path = self._path(origin, name, start, stop)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        payload, checksum = content[: -_CRC.size], content[-_CRC.size :]
        if len(content) < _CRC.size or _CRC.unpack(checksum)[0] != crc32c(payload):
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return payload

    def put(self, origin: str, name: str, start: int | None, stop: int | None, payload: bytes | memoryview) -> None:
        """Keep a range; a full disk only means that it is not kept."""
        path = self._path(origin, name, start, stop)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(b"".join((payload, _CRC.pack(crc32c(payload)))))
            temporary.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            return
        self._unreported += len(payload) + _CRC.size
        if self._unreported >= min(_REPORT_BYTES, self.max_bytes // 64):
            with contextlib.suppress(OSError):
                self._report()

    def _report(self) -> None:
        """Add what this process wrote to the common size; shrink if that is too much."""
        with self._locked() as sizes:
            written, self._unreported = self._unreported, 0
            try:
                total = int(sizes.read_text()) + written
            except (OSError, ValueError):
                total = self.max_bytes + 1
            if total > self.max_bytes:
                total = self._remove_oldest()
            sizes.write_text(str(total))

    def shrink(self) -> None:
        """Look at all files, and remove the least recently used ranges if the bound is exceeded."""
        with self._locked() as sizes:
            self._unreported = 0
            sizes.write_text(str(self._remove_oldest()))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[Path]:
        """Holds the cache's lock, which dies with its process; yields the file of the common size."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield self.folder / ".size"

    def _remove_oldest(self) -> int:
        """Bring the files under the bound; returns their size."""
        entries = []
        for path in self.folder.glob("??/*"):
            with contextlib.suppress(OSError):
                status = path.stat()
                entries.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in entries)
        if total <= self.max_bytes:
            return total
        for _, size, path in sorted(entries):
            if total <= self.max_bytes * _SHRINK_TO:
                break
            with contextlib.suppress(OSError):
                path.unlink()
                total -= size
        return total
