"""Digests of files, and the ledger that remembers those of files whose publisher states none.

``digests.json`` lies in the download folder. An entry says what a file was when it was first verified here; where no
digest is published, later downloads must equal it. It also keeps the modification time, so that an unchanged file of
hundreds of gigabytes is not read again at every start.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from jmp_data.errors import DownloadError
from jmp_data.raw.file_lock import exclusive_lock

LEDGER_NAME = "digests.json"
_FORMAT = 1
_BLOCK = 1 << 20


class RunningDigest:
    """SHA-256 and MD5 of bytes as they arrive; MD5 only because several publishers state nothing else."""

    def __init__(self) -> None:
        self.size = 0
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False)

    def update(self, block: bytes) -> None:
        """Adds the next bytes."""
        self.size += len(block)
        self._sha256.update(block)
        self._md5.update(block)

    @property
    def sha256(self) -> str:
        """Hexadecimal SHA-256 so far."""
        return self._sha256.hexdigest()

    @property
    def md5(self) -> str:
        """Hexadecimal MD5 so far."""
        return self._md5.hexdigest()


def digest_file(path: Path, *, on_block: Callable[[int], None] | None = None) -> RunningDigest:
    """Reads a file once; ``on_block`` gets the number of bytes read so far."""
    digest = RunningDigest()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            if on_block is not None:
                on_block(digest.size)
    return digest


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """What one file was when it was last verified.

    Attributes:
        size: bytes.
        sha256: hexadecimal digest.
        md5: hexadecimal digest.
        mtime_ns: modification time of the verified file.
        url: where it came from; empty when it was already there.
    """

    size: int
    sha256: str
    md5: str
    mtime_ns: int
    url: str

    def describes(self, path: Path) -> bool:
        """Whether the file is untouched since it was verified."""
        stat = path.stat()
        return stat.st_size == self.size and stat.st_mtime_ns == self.mtime_ns


def read_ledger(folder: Path) -> dict[str, LedgerEntry]:
    """Reads ``digests.json``; an absent one is empty.

    Raises:
        DownloadError: it is damaged or of a newer format.
    """
    path = folder / LEDGER_NAME
    try:
        content = json.loads(path.read_text("utf-8"))
        if content["format"] != _FORMAT:
            raise ValueError(f"format {content['format']} is not {_FORMAT}")
        return {name: LedgerEntry(**entry) for name, entry in content["files"].items()}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DownloadError(f"{path}: cannot be read ({error}); delete it to record digests anew") from error


def record_digest(folder: Path, name: str, entry: LedgerEntry) -> None:
    """Adds or replaces one entry, whole or not at all, safe against other processes that do the same."""
    with exclusive_lock(folder / ".download" / "digests.lock"):
        entries = {**read_ledger(folder), name: entry}
        write_json(
            folder / LEDGER_NAME, {"format": _FORMAT, "files": {k: asdict(v) for k, v in sorted(entries.items())}}
        )


def write_json(path: Path, content: object) -> None:
    """Writes a JSON file that is never seen half-written."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
