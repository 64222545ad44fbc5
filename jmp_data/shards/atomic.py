"""Files that exist whole or not at all: write under a temporary name, flush to disk, rename."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path


def write_atomic(path: Path, payload: bytes) -> None:
    """Write a file so that a crash at any moment leaves the old content, the new content or nothing."""
    write_atomic_pieces(path, [payload])


def write_atomic_pieces(path: Path, pieces: Iterable[bytes]) -> None:
    """As `write_atomic`, for content that need not be in memory at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_durable(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files that nobody reads until something else, written later, says that they are whole."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, payload in contents.items():
        with (folder / name).open("wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
