"""Any file that `ase.io` reads frame by frame: trajectories, and inputs and outputs of most codes.

Left out are ASE's formats that are no single file, need another program, or may hold pickles: reading those could run
code.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jmp_data.errors import RawFileError
from jmp_data.own_data.ase_records import ASE_ERRORS, quiet, record_from_atoms
from jmp_data.own_data.records import FileIndex, Outcome, PlainReader, Rows, Unreadable

REFUSED = ("bundletrajectory", "gpw", "db", "json", "mysql", "postgresql", "cif", "extxyz", "xyz")
"""ASE's formats that this reader does not take; some have a reader of their own."""

_ULM_MAGIC = b"- of Ulm"


class Trajectory(PlainReader):
    """ASE `.traj` files: any frame at once, number of atoms may change. See `Reader`."""

    format = "traj"

    def index(self, path: Path) -> FileIndex:
        """See `Reader`."""
        with _open_trajectory(path) as frames:
            return FileIndex(len(frames))

    def read(self, path: Path, rows: Rows) -> Iterator[Outcome]:
        """See `Reader`."""
        with _open_trajectory(path) as frames:
            for row in rows.numbers:
                try:
                    with quiet():
                        yield record_from_atoms(frames[row], row, str(row))
                except ASE_ERRORS as error:
                    # Frames are binary and of one writer: one that cannot be read means a damaged file.
                    message = f"cannot be read ({error})"
                    yield Unreadable(row, str(row), "unreadable_frame", message, damaged_file=True)


class AseReadable(PlainReader):
    """Everything else that ASE reads. See `Reader`."""

    format = "ase"

    def index(self, path: Path) -> FileIndex:
        """See `Reader`; most of these formats can only be counted by reading them."""
        return FileIndex(sum(1 for _ in _iterate(path)))

    def read(self, path: Path, rows: Rows) -> Iterator[Outcome]:
        """See `Reader`."""
        wanted = rows.numbers
        outcomes = iter(_iterate(path))
        row = -1
        for number in wanted:
            while row < number:
                outcome = next(outcomes, None)
                row += 1
                if outcome is None:
                    raise RawFileError(f"{path}: ends before frame {number}; it changed since the build was planned")
            yield outcome if isinstance(outcome, Unreadable) else record_from_atoms(outcome, row, str(row))


def ase_format(path: Path) -> str:
    """The name that ASE has for the format of a file; empty where it knows none or it is refused."""
    from ase.io.formats import UnknownFileTypeError, filetype, ioformats

    try:
        name = filetype(str(path))
    except (UnknownFileTypeError, OSError, UnicodeDecodeError):
        return ""
    known = name in ioformats and ioformats[name].can_read and name not in REFUSED
    return name if known else ""


def _iterate(path: Path) -> Iterator[Any]:
    """The frames as `ase.Atoms`; where one cannot be parsed, it comes as unreadable, and as the last."""
    from ase.io import iread

    row = 0
    try:
        with quiet():
            for atoms in iread(str(path), index=":", format=ase_format(path), do_not_split_by_at_sign=True):
                yield atoms
                row += 1
    except ASE_ERRORS as error:
        message = f"cannot be parsed ({type(error).__name__}: {error})"
        yield Unreadable(row, str(row), "unreadable_frame", message, damaged_file=True)


class _OpenTrajectory:
    """An open `.traj` file; old ones are pickles and are refused by their first bytes."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            if file.read(len(_ULM_MAGIC)) != _ULM_MAGIC:
                raise RawFileError(
                    f"{path}: no ASE trajectory (one from before ASE 3.9 is a pickle; convert it where you trust it)"
                )
        from ase.io.trajectory import TrajectoryReader

        try:
            self._reader = TrajectoryReader(str(path))
        except ASE_ERRORS as error:
            raise RawFileError(f"{path}: damaged trajectory ({error}); get the file again") from error

    def __enter__(self) -> Any:
        return self._reader

    def __exit__(self, *exception: object) -> None:
        self._reader.close()


def _open_trajectory(path: Path) -> _OpenTrajectory:
    return _OpenTrajectory(path)
