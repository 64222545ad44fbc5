"""Extracts archives so that nothing leaves the target, nothing is overwritten, and a part never passes for the whole.

All members first go to a hidden folder below the target. Only when the archive has been read to its end, checksums
included, are they renamed into place, a whole top-level folder at a time where possible, and only then is a receipt
written. Extracting again goes by the receipt, or finishes what an interrupted run began.
"""

from __future__ import annotations

import filecmp
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO

from jmp_data.errors import JmpDataError, RawFileError
from jmp_data.raw.archive_members import ArchiveLimits, ArchiveMember, MemberFilter, iter_members
from jmp_data.raw.digests import write_json
from jmp_data.raw.file_lock import exclusive_lock

__all__ = ["ArchiveLimits", "ArchiveMember", "extract", "iter_members"]

_STATE_FOLDER = ".extracted"
_BLOCK = 1 << 20


def extract(
    archive: Path,
    target: Path,
    *,
    members: MemberFilter | None = None,
    limits: ArchiveLimits | None = None,
    progress: Callable[[ArchiveMember], None] | None = None,
) -> list[Path]:
    """Extracts an archive below ``target``.

    Links become hard links to the member that they point at; folders come into being with their files; owners, modes
    and times of the archive are not taken over.

    Args:
        archive: tar (plain, gzip, bzip2, xz) or zip.
        target: local folder, created where needed.
        members: picks members by name; everything by default.
        limits: on what may come out.
        progress: called before each member is written.

    Returns:
        The extracted files, in the archive's order.

    Raises:
        RawFileError: as :func:`iter_members`, or a member would replace a different file that is already there. Nothing
            of the archive is then below ``target``, except what was there before.
    """
    state = target / _STATE_FOLDER
    with exclusive_lock(state / f"{archive.name}.lock"):
        done = None if members is not None else _extracted_before(archive, target)
        if done is not None:
            return done
        staging = state / f"{archive.name}.staging"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        try:
            names = _write_members(archive, staging, members, limits, progress)
            _require_no_conflict(staging, target, names, archive)
            os.sync()
            _move_into_place(staging, target)
        except JmpDataError:
            raise
        except OSError as error:
            raise RawFileError(f"{archive}: cannot be extracted to {target}: {error}") from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        paths = [target / name for name in names]
        if members is None:
            _write_receipt(archive, target, names)
        return paths


def _write_members(
    archive: Path,
    staging: Path,
    members: MemberFilter | None,
    limits: ArchiveLimits | None,
    progress: Callable[[ArchiveMember], None] | None,
) -> list[str]:
    names: list[str] = []
    for member, stream in iter_members(archive, members=members, limits=limits):
        if member.name.split("/")[0] == _STATE_FOLDER:
            raise RawFileError(f"{archive}: member {member.name} has a reserved name")
        if progress is not None:
            progress(member)
        path = staging / member.name
        path.parent.mkdir(parents=True, exist_ok=True)
        if member.link_target is None:
            _write_file(stream, path, member, archive)
        else:
            _write_link(staging, path, member, archive)
        names.append(member.name)
    return names


def _write_file(stream: IO[bytes], path: Path, member: ArchiveMember, archive: Path) -> None:
    with path.open("xb") as file:
        shutil.copyfileobj(stream, file, _BLOCK)
        written = file.tell()
    if written != member.size:
        raise RawFileError(
            f"{archive}: member {member.name} holds {written} bytes instead of {member.size}; get it again"
        )


def _write_link(staging: Path, path: Path, member: ArchiveMember, archive: Path) -> None:
    source = staging / str(member.link_target)
    if not source.is_file():
        raise RawFileError(f"{archive}: member {member.name} is a link to {member.link_target}, which is not extracted")
    os.link(source, path)


def _require_no_conflict(staging: Path, target: Path, names: list[str], archive: Path) -> None:
    """A file that is there already must be the same, as an interrupted run leaves it."""
    for name in names:
        final = target / name
        if final.is_symlink() or (final.exists() and not _same(staging / name, final)):
            raise RawFileError(
                f"{archive}: member {name} differs from {final}, which is there already; move that away first"
            )
        for parent in list(final.parents)[: len(Path(name).parents) - 1]:
            if parent.is_symlink() or (parent.exists() and not parent.is_dir()):
                raise RawFileError(f"{archive}: member {name} would be written through {parent}, which is no folder")


def _same(first: Path, second: Path) -> bool:
    return second.is_file() and filecmp.cmp(first, second, shallow=False)


def _move_into_place(staging: Path, target: Path) -> None:
    """Renames the largest possible units: a whole folder where the target has none of that name."""
    for entry in sorted(staging.iterdir()):
        final = target / entry.name
        if final.is_dir() and entry.is_dir():
            _move_into_place(entry, final)
        else:
            entry.replace(final)


def _receipt_path(archive: Path, target: Path) -> Path:
    return target / _STATE_FOLDER / f"{archive.name}.json"


def _write_receipt(archive: Path, target: Path, names: list[str]) -> None:
    stat = archive.stat()
    files = {name: (target / name).stat().st_size for name in names}
    write_json(
        _receipt_path(archive, target),
        {"archive_size": stat.st_size, "archive_mtime_ns": stat.st_mtime_ns, "files": files},
    )


def _extracted_before(archive: Path, target: Path) -> list[Path] | None:
    """Returns the files of an earlier, complete extraction of this very archive; None where there is none."""
    try:
        receipt = json.loads(_receipt_path(archive, target).read_text("utf-8"))
        stat = archive.stat()
        if (receipt["archive_size"], receipt["archive_mtime_ns"]) != (stat.st_size, stat.st_mtime_ns):
            return None
        paths = {target / name: size for name, size in receipt["files"].items()}
        return list(paths) if all(path.stat().st_size == size for path, size in paths.items()) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
