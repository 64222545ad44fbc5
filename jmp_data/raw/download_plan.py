"""What a download would do: compares the published files with what lies on disk, without effects or network."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal
from urllib.parse import quote, urlsplit

from jmp_data.errors import DownloadError
from jmp_data.raw.digests import LEDGER_NAME, LedgerEntry, read_ledger

Action = Literal["keep", "check", "resume", "fetch"]

STATE_FOLDER = ".download"
_HEXADECIMAL = {"md5": re.compile(r"[0-9a-f]{32}"), "sha256": re.compile(r"[0-9a-f]{64}")}


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One published file.

    Attributes:
        url: HTTP(S) address.
        name: where it goes, relative to the target folder, with forward slashes.
        size: exact size in bytes, where published.
        md5: hexadecimal digest, where published.
        sha256: hexadecimal digest, where published.
        mirrors: further addresses of the same bytes, tried in order when the first fails.
    """

    url: str
    name: str
    size: int | None = None
    md5: str | None = None
    sha256: str | None = None
    mirrors: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for url in self.urls:
            if urlsplit(url).scheme not in ("http", "https"):
                raise DownloadError(f"{self.name}: {url} is no http or https address")
        path = PurePosixPath(self.name)
        reserved = path.parts[:1] in ((STATE_FOLDER,), (LEDGER_NAME,)) or path.suffix == ".part"
        if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in self.name or reserved:
            raise DownloadError(
                f"{self.name!r}: a file name must be relative, inside the target folder and not reserved"
            )
        for kind, pattern in _HEXADECIMAL.items():
            digest = getattr(self, kind)
            if digest is not None and not pattern.fullmatch(digest):
                raise DownloadError(f"{self.name}: {digest!r} is no {kind} digest in lower-case hexadecimal")
        if self.size is not None and self.size <= 0:
            raise DownloadError(f"{self.name}: a size of {self.size} bytes cannot be right")

    @property
    def urls(self) -> tuple[str, ...]:
        """All addresses, the preferred one first."""
        return (self.url, *self.mirrors)

    @property
    def has_digest(self) -> bool:
        """Whether the publisher states what the content must be."""
        return self.md5 is not None or self.sha256 is not None

    def objection(self, size: int, sha256: str, md5: str) -> str | None:
        """Says how a content differs from what is published; None where it does not."""
        if self.size is not None and size != self.size:
            return f"it has {size} bytes instead of {self.size}"
        if self.sha256 is not None and sha256 != self.sha256:
            return f"its sha256 is {sha256} instead of {self.sha256}"
        if self.md5 is not None and md5 != self.md5:
            return f"its md5 is {md5} instead of {self.md5}"
        return None


@dataclass(frozen=True, slots=True)
class LocalPaths:
    """Where one file, its unfinished part, the part's state and its lock lie."""

    final: Path
    part: Path
    state: Path
    lock: Path

    @classmethod
    def of(cls, file: RemoteFile, target: Path) -> LocalPaths:
        """The paths of ``file`` below ``target``."""
        final = target / file.name
        hidden = target / STATE_FOLDER / quote(file.name, safe="")
        return cls(final, final.with_name(f"{final.name}.part"), Path(f"{hidden}.json"), Path(f"{hidden}.lock"))


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """What will happen to one file.

    Attributes:
        file: the published file.
        path: its final place.
        action: ``keep`` it (verified earlier, untouched since), ``check`` it (there, but never verified), ``resume`` an
            unfinished part, or ``fetch`` it.
        present_bytes: bytes that are already there.
        missing_bytes: bytes still to come; None where no size is published.
    """

    file: RemoteFile
    path: Path
    action: Action
    present_bytes: int
    missing_bytes: int | None


@dataclass(frozen=True, slots=True)
class DownloadPlan:
    """All files of a download.

    Attributes:
        target: the folder that they go to.
        files: one entry a file, in the given order.
    """

    target: Path
    files: tuple[PlannedFile, ...]

    @property
    def missing_bytes(self) -> int:
        """Bytes still to come from files of published size."""
        return sum(planned.missing_bytes or 0 for planned in self.files)

    @property
    def files_of_unknown_size(self) -> int:
        """How many of the files to come have no published size."""
        return sum(planned.missing_bytes is None for planned in self.files)


def plan_download(files: Sequence[RemoteFile], target: Path) -> DownloadPlan:
    """Decides for each file what a download has to do.

    Args:
        files: the published files; names must differ.
        target: local folder, which need not exist.

    Raises:
        DownloadError: two files have one name, or the ledger of digests is damaged.
    """
    names = [file.name for file in files]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise DownloadError(f"{target}: several files would be called {doubled[0]}; download them to different folders")
    ledger = read_ledger(target)
    return DownloadPlan(target, tuple(plan_file(file, target, ledger.get(file.name)) for file in files))


def plan_file(file: RemoteFile, target: Path, entry: LedgerEntry | None) -> PlannedFile:
    """Decides for one file; see :func:`plan_download`."""
    paths = LocalPaths.of(file, target)
    size = paths.final.stat().st_size if paths.final.is_file() else 0
    if size and entry is not None and entry.describes(paths.final):
        if file.objection(entry.size, entry.sha256, entry.md5) is None:
            return PlannedFile(file, paths.final, "keep", size, 0)
    elif size and file.size in (None, size):
        return PlannedFile(file, paths.final, "check", size, 0)
    part = paths.part.stat().st_size if paths.part.is_file() else 0
    missing = None if file.size is None else max(0, file.size - part)
    return PlannedFile(file, paths.final, "resume" if part else "fetch", part, missing)
