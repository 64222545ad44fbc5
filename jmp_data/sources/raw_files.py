"""Find published raw files below a folder that may hold one source or all of them.

A source is recognised by the names that its publisher gave, at any reasonable depth: users unpack archives into nested
folders, and link them into place.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from jmp_data.errors import MissingFileError, RawFileError

MAX_DEPTH = 8


def walk_folders(raw: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Every folder below `raw` once, links followed: path, sorted names of its folders, sorted names of its files.

    Removing names from the yielded folder list keeps the walk out of them. Hidden folders are left out: an interrupted
    unpacking leaves parts of sets in one.

    Raises:
        MissingFileError: `raw` is not a folder.
    """
    if not raw.is_dir():
        raise MissingFileError(f"raw folder {raw} does not exist; give the folder that holds the published files")
    seen: set[tuple[int, int]] = set()
    for name, names, files in os.walk(raw, followlinks=True):
        folder = Path(name)
        status = folder.stat()
        if (status.st_dev, status.st_ino) in seen or len(folder.relative_to(raw).parts) > MAX_DEPTH:
            names.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        names[:] = sorted(each for each in names if not each.startswith("."))
        yield folder, names, sorted(files)


def find_file(raw: Path, names: Sequence[str], source: str) -> Path:
    """The one raw file with one of the given names (upper or lower case).

    Args:
        raw: folder to search.
        names: names under which the file is published.
        source: for the error message.

    Raises:
        MissingFileError: there is none.
        RawFileError: there are several, or it is empty.
    """
    wanted = {name.lower() for name in names}
    found: dict[Path, Path] = {}
    for folder, _, files in walk_folders(raw):
        for name in files:
            if name.lower() in wanted:
                found.setdefault((folder / name).resolve(), folder / name)
    if not found:
        raise MissingFileError(
            f"{source}: no {names[0]} below {raw}; run `jmp-data download {source}` or put the published file there"
        )
    if len(found) > 1:
        paths = " and ".join(map(str, sorted(found.values())))
        raise RawFileError(f"{source}: found {paths}; which one is meant? Point --raw at the folder of one")
    path = next(iter(found.values()))
    if path.stat().st_size == 0:
        raise RawFileError(f"{path}: 0 bytes, a failed download (figshare answers some clients so); download it again")
    return path


def relative(path: Path, raw: Path) -> str:
    """Path below the raw folder with POSIX separators, as plans and provenance keep it."""
    return path.relative_to(raw).as_posix()
