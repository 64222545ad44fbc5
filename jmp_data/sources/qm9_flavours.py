"""The three forms in which QM9's molecules lie on a disk: the published archive, its unpacked files, SDF and CSV.

Each lists the numbers of its molecules and reads those that are asked for, in the order of its file.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from jmp_data.errors import MissingFileError, RawFileError
from jmp_data.sources.protocol import Quarantined
from jmp_data.sources.qm9_records import (
    Molecule,
    molecule_id,
    parse_molblock,
    parse_xyz,
    read_property_table,
    read_sdf_records,
)
from jmp_data.sources.raw_files import find_file, walk_folders

ARCHIVE_NAMES = ("dsgdb9nsd.xyz.tar.bz2", "dsgdb9nsd.xyz.tar")
SDF, TABLE = "gdb9.sdf", "gdb9.sdf.csv"

_MEMBER = re.compile(r"(?:.*/)?dsgdb9nsd_(\d{6})\.xyz")

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Archive:
    """`dsgdb9nsd.xyz.tar.bz2`, never unpacked to disk.

    Attributes:
        files: raw files.
        per_molecule: whether each molecule is a file of its own.
    """

    files: tuple[Path, ...]
    per_molecule: bool = False

    def indices(self) -> Rows:
        """Numbers of the molecules in GDB-9, 1-based, in the order of the file, each once."""
        (path,) = self.files
        status = path.stat()
        return _archive_indices(path, status.st_size, status.st_mtime_ns)

    def source_id(self, index: int) -> str:
        """Raw file and record of a molecule."""
        return f"{self.files[0].name}#dsgdb9nsd_{index:06d}.xyz"

    def read(self, wanted: Collection[int]) -> Iterator[Molecule | Quarantined]:
        """The molecules with these numbers, in the order of the file."""
        (path,) = self.files
        for index, content in _members(path, wanted):
            if index in wanted:
                yield _parse(content, index, self.source_id(index))


@dataclass(frozen=True, slots=True)
class Files:
    """The unpacked archive."""

    files: tuple[Path, ...]
    per_molecule: bool = True

    def indices(self) -> Rows:
        """Numbers of the molecules in GDB-9, 1-based, in the order of the file, each once."""
        return _once(np.array([int(path.stem[-6:]) for path in self.files], np.int64), self.files[0].parent)

    def source_id(self, index: int) -> str:
        """Raw file and record of a molecule."""
        return f"dsgdb9nsd_{index:06d}.xyz"

    def read(self, wanted: Collection[int]) -> Iterator[Molecule | Quarantined]:
        """The molecules with these numbers, in the order of the file."""
        for path in self.files:
            index = int(path.stem[-6:])
            if index in wanted:
                yield _parse(path.read_bytes(), index, self.source_id(index))


@dataclass(frozen=True, slots=True)
class StructureTable:
    """MoleculeNet's pair: structures in `gdb9.sdf`, properties in `gdb9.sdf.csv`, in the same order."""

    files: tuple[Path, ...]
    per_molecule: bool = False

    def indices(self) -> Rows:
        """Numbers of the molecules in GDB-9, 1-based, in the order of the file, each once."""
        return _once(read_property_table(self.files[1])[0], self.files[1])

    def source_id(self, index: int) -> str:
        """Raw file and record of a molecule."""
        return f"{self.files[0].name}#gdb_{index}"

    def read(self, wanted: Collection[int]) -> Iterator[Molecule | Quarantined]:
        """The molecules with these numbers, in the order of the file."""
        sdf, table = self.files
        indices, properties = read_property_table(table)
        count = 0
        with sdf.open() as file:
            for count, lines in enumerate(read_sdf_records(file), 1):
                if count > len(indices):
                    raise RawFileError(f"{sdf}: has more records than {table.name} has rows ({len(indices)})")
                index = int(indices[count - 1])
                named = molecule_id(lines[0]) if lines else None
                if named is not None and named != index:
                    raise RawFileError(
                        f"{sdf}: record {count} is gdb_{named}, but row {count} of {table.name} is gdb_{index}; "
                        "joining them would give molecules the properties of others"
                    )
                if index in wanted:
                    yield _parse_record(lines, index, properties[count - 1], self.source_id(index))
        if count < len(indices):
            raise RawFileError(f"{sdf}: has {count} records, but {table.name} has {len(indices)} rows; get it again")


Flavour: TypeAlias = Archive | Files | StructureTable


def find_flavour(raw: Path) -> Flavour:
    """The form of QM9 below a folder: the archive, else unpacked files, else SDF and CSV.

    Raises:
        MissingFileError: there is none.
    """
    archive = _find_if_there(raw, ARCHIVE_NAMES)
    if archive:
        return Archive((archive,))
    unpacked = _find_unpacked(raw)
    if unpacked:
        return Files(unpacked)
    sdf = _find_if_there(raw, (SDF,))
    if sdf:
        return StructureTable((sdf, find_file(raw, [TABLE], "qm9")))
    raise MissingFileError(
        f"qm9: no {ARCHIVE_NAMES[0]}, no dsgdb9nsd_*.xyz and no {SDF} below {raw}; "
        "run `jmp-data download qm9` or put the published files there"
    )


def _find_if_there(raw: Path, names: tuple[str, ...]) -> Path | None:
    try:
        return find_file(raw, names, "qm9")
    except MissingFileError:
        return None


def _find_unpacked(raw: Path) -> tuple[Path, ...]:
    found = [folder / name for folder, _, names in walk_folders(raw) for name in names if _MEMBER.fullmatch(name)]
    return tuple(sorted(found, key=lambda path: path.name))


def _once(indices: Rows, where: Path) -> Rows:
    numbers, counts = np.unique(indices, return_counts=True)
    if len(numbers) < len(indices):
        raise RawFileError(f"{where}: holds molecule {numbers[counts > 1][0]} more than once; which one is meant?")
    return indices


@lru_cache(maxsize=4)
def _archive_indices(path: Path, size: int, modified: int) -> Rows:
    """Numbers of an archive's molecules. Unpacking takes seconds, so a file with the same stamp is not read again."""
    del size, modified
    indices = _once(np.array([index for index, _ in _members(path, ())], np.int64), path)
    if len(indices) == 0:
        raise RawFileError(f"{path}: holds no dsgdb9nsd_NNNNNN.xyz; get the published archive")
    indices.flags.writeable = False
    return indices


def _members(path: Path, wanted: Collection[int]) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of each molecule's file; bytes only of those wanted."""
    try:
        with tarfile.open(path, "r:*") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep a record of each of 133,885 files
                match = _MEMBER.fullmatch(member.name)
                if match is None or not member.isfile():
                    continue
                index = int(match[1])
                file = archive.extractfile(member) if index in wanted else None
                yield index, file.read() if file else b""
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file; it was there when the work was planned") from None
    except (tarfile.TarError, EOFError, OSError) as error:
        raise RawFileError(f"{path}: not a whole archive ({error}); get the file again") from error


def _parse(content: bytes, index: int, source_id: str) -> Molecule | Quarantined:
    return _attempt(lambda: parse_xyz(content.decode(), index), source_id, content.decode("utf-8", "replace"))


def _parse_record(
    lines: list[str], index: int, properties: npt.NDArray[np.float64], source_id: str
) -> Molecule | Quarantined:
    return _attempt(lambda: parse_molblock(lines, index, properties), source_id, "\n".join(lines))


def _attempt(parse: Callable[[], Molecule], source_id: str, record: str) -> Molecule | Quarantined:
    try:
        return parse()
    except ValueError as error:
        return Quarantined(source_id, "malformed_record", f"{source_id}: {error}", record)
