"""The raw files of a split: their digests, and whether a file changed since parts were made from it.

Sizes and modification times tell cheaply that a file is the one seen before; digests settle it when they differ. A
file whose content changed makes every part that read it stale.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jmp_data.errors import MissingFileError
from jmp_data.shards.atomic import write_atomic
from jmp_data.shards.formats import digest_file
from jmp_data.shards.manifest import FileDigest
from jmp_data.shards.staging import BUILD_FOLDER


@dataclass(frozen=True, slots=True)
class RawFile:
    """What is known about one raw file."""

    bytes: int
    modified_ns: int
    sha256: str | None = None

    def same_stamp(self, other: RawFile) -> bool:
        """Same size and modification time."""
        return (self.bytes, self.modified_ns) == (other.bytes, other.modified_ns)


def _stamp(path: Path) -> RawFile:
    try:
        status = path.stat()
    except FileNotFoundError:
        raise MissingFileError(f"{path}: raw file vanished; put it back and run the same command again") from None
    return RawFile(status.st_size, status.st_mtime_ns)


class RawLedger:
    """`.build/raw.json` of one split."""

    def __init__(self, dataset: Path, raw: Path) -> None:
        self._path = dataset / BUILD_FOLDER / "raw.json"
        self._raw = raw
        entries: Mapping[str, Mapping[str, Any]] = {}
        if self._path.exists():
            entries = json.loads(self._path.read_bytes())
        self._known = {name: RawFile(**entry) for name, entry in entries.items()}

    def _save(self) -> None:
        plain = {
            name: {"bytes": file.bytes, "modified_ns": file.modified_ns, "sha256": file.sha256}
            for name, file in sorted(self._known.items())
        }
        write_atomic(self._path, json.dumps(plain, indent=1).encode())

    def changed(self, names: Iterable[str]) -> set[str]:
        """Files whose content is not what earlier parts were made from; all files are noted as they are now."""
        stale, before = set(), dict(self._known)
        for name in names:
            now, known = _stamp(self._raw / name), self._known.get(name)
            if known is not None and not known.same_stamp(now):
                content = digest_file(self._raw / name).sha256 if known.sha256 else None
                if content is None or content != known.sha256:
                    stale.add(name)
                now = RawFile(now.bytes, now.modified_ns, content)
            elif known is not None:
                now = known
            self._known[name] = now
        if self._known != before:
            self._save()
        return stale

    def undigested(self, names: Iterable[str]) -> list[str]:
        """Files whose digest is not known yet."""
        return sorted({name for name in names if self._known[name].sha256 is None})

    def record(self, digests: Mapping[str, FileDigest]) -> None:
        """Note digests."""
        for name, digest in digests.items():
            stamp = _stamp(self._raw / name)
            self._known[name] = RawFile(stamp.bytes, stamp.modified_ns, digest.sha256)
        self._save()

    def digests(self, names: Iterable[str]) -> dict[str, FileDigest]:
        """Known digests of the given files."""
        known = {name: self._known[name] for name in sorted(set(names))}
        return {name: FileDigest(file.bytes, file.sha256 or "") for name, file in known.items()}
