"""A look at the user's files: which there are, how many records they hold, and a sample of them.

The sample is spread over all files, in pairs of neighbours, so that it shows both what the set holds and whether frames
that follow each other are steps of one trajectory. It depends only on the files.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np

from jmp_data.errors import ManifestError, MissingFileError, RawFileError, UnsafePickleError
from jmp_data.own_data.cif_folder import TargetTable, read_table, structure_name
from jmp_data.own_data.formats import READERS, Format, find_format
from jmp_data.own_data.manifest import OwnManifest, OwnTable
from jmp_data.own_data.records import FileIndex, Outcome, Record, Rows, StatedUnits, Unreadable

Item = TypeVar("Item")

SAMPLE = 200
_SAMPLED_FILES = 50


@dataclass(frozen=True, slots=True, eq=False)
class DataFile:
    """One file of the data set.

    Attributes:
        name: relative to the folder of the data set, or absolute where it was given so.
        path: where it lies.
        format: what reads it.
        index: its records.
    """

    name: str
    path: Path
    format: Format
    index: FileIndex


@dataclass(frozen=True, slots=True, eq=False)
class Inspection:
    """What a look at the files showed.

    Attributes:
        files: all files, in order.
        table: targets joined to them by name, where there is a table.
        records: sampled records.
        unreadable: (file name, what is wrong) for sampled records that could not be read.
        stated: what the first file that states units says.
    """

    files: tuple[DataFile, ...]
    table: TargetTable | None
    records: tuple[Record, ...]
    unreadable: tuple[tuple[str, Unreadable], ...]
    stated: StatedUnits

    @property
    def count(self) -> int:
        """Records in all files."""
        return sum(file.index.count for file in self.files)


def inspect_data(manifest: OwnManifest, root: Path) -> Inspection:
    """Look at the files that a manifest names.

    Args:
        manifest: names files and, where they are known, formats.
        root: folder that they are relative to.

    Raises:
        MissingFileError: a pattern matches nothing.
        RawFileError: a file is not readable at all, or no sampled record is.
    """
    names = find_files(manifest, root)
    stamps = tuple(_stamp(root / name) for name in names)
    table = () if manifest.table is None else (_stamp(root / manifest.table.file),)
    return _inspect(root, tuple(names), manifest.format, manifest.table, (*stamps, *table))


def find_files(manifest: OwnManifest, root: Path) -> list[str]:
    """Names of all files of a data set, in order, each once."""
    patterns = (*manifest.files, *(pattern for some in manifest.splits.files.values() for pattern in some))
    names = [name for pattern in patterns for name in match_files(pattern, root)]
    table = None if manifest.table is None else manifest.table.file
    return [name for name in dict.fromkeys(names) if name != table]


def match_files(pattern: str, root: Path) -> list[str]:
    """Files that a pattern stands for, sorted; a folder stands for the files in it.

    Raises:
        MissingFileError: there is none.
    """
    found = []
    exact = [pattern] if (root / pattern).exists() else []
    for name in exact or sorted(glob.glob(pattern, root_dir=root, recursive=True)):  # noqa: PTH207 - takes absolute patterns
        path = root / name
        if path.is_dir():
            inside = sorted(entry.name for entry in path.iterdir() if entry.is_file() and entry.name[:1] != ".")
            # An LMDB may be a folder of its own, with a lock file beside the data.
            found += [f"{name.rstrip('/')}/{entry}" for entry in inside if entry != "lock.mdb"]
        elif not name.endswith("-lock"):
            found.append(name)
    if not found:
        raise MissingFileError(f"no file matches {pattern!r} in {root}; correct files: in the manifest, or give --raw")
    return [Path(name).as_posix() for name in found]


def has_files(manifest: OwnManifest, root: Path) -> bool:
    """Whether the files of a manifest are in a folder."""
    try:
        return bool(find_files(manifest, root))
    except MissingFileError:
        return False


def join_table(outcome: Outcome, path: Path, table: TargetTable | None) -> Outcome:
    """A record with the values of its row of the table; one without such a row is unreadable."""
    if table is None or isinstance(outcome, Unreadable):
        return outcome
    name = structure_name(path)
    values = table.values(name)
    if values is None:
        message = f"{table.path.name} has no row {name!r} in column {table.id_column!r}"
        return Unreadable(outcome.row, outcome.label, "not_in_table", message)
    return replace(outcome, values={**outcome.values, **values})


def open_table(entry: OwnTable | None, root: Path, names: Sequence[str]) -> TargetTable | None:
    """The table of targets of a manifest."""
    if entry is None:
        return None
    return read_table(root / entry.file, id_column=entry.id, names=[structure_name(Path(name)) for name in names])


def _stamp(path: Path) -> tuple[str, int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise MissingFileError(f"{path}: cannot be read ({error.strerror})") from error
    return str(path), status.st_size, status.st_mtime_ns


@lru_cache(maxsize=4)
def _inspect(
    root: Path,
    names: tuple[str, ...],
    declared: str,
    table_entry: OwnTable | None,
    stamps: tuple[tuple[str, int, int], ...],
) -> Inspection:
    del stamps  # a file with another stamp is looked at again
    table = open_table(table_entry, root, names)
    files = tuple(_open_file(root, name, declared) for name in names)
    if not any(file.index.count for file in files):
        raise RawFileError(f"{files[0].path}: holds no records" if files else f"{root}: no files")
    _refuse_several_in_one(files, table)
    records: list[Record] = []
    unreadable: list[tuple[str, Unreadable]] = []
    for file in _spread([file for file in files if file.index.count], _SAMPLED_FILES):
        for outcome in _sample(file, -(-SAMPLE // min(len(files), _SAMPLED_FILES))):
            outcome = join_table(outcome, file.path, table)
            if isinstance(outcome, Unreadable):
                unreadable.append((file.name, outcome))
                continue
            records.append(outcome)
    if not records:
        _raise_unreadable(*unreadable[0], count=sum(file.index.count for file in files))
    stated = next((found for file in files[:1] if (found := READERS[file.format].stated_units(file.path)).where), None)
    return Inspection(files, table, tuple(records), tuple(unreadable), stated or StatedUnits())


def _open_file(root: Path, name: str, declared: str) -> DataFile:
    path = root / name
    format = find_format(path) if declared == "auto" else declared
    return DataFile(name, path, format, READERS[format].index(path))  # type: ignore[arg-type]


def _refuse_several_in_one(files: Sequence[DataFile], table: TargetTable | None) -> None:
    several = [file for file in files if file.index.count > 1]
    if table is not None and several:
        raise ManifestError(
            f"{several[0].path}: holds {several[0].index.count} structures, "
            "but a table of targets joins to files of one structure each"
        )


def _spread(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` items, evenly spread, the first and the last among them."""
    places = np.unique(np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int))
    return [items[place] for place in places]


def _sample(file: DataFile, budget: int) -> Iterator[Outcome]:
    count = file.index.count
    firsts = np.unique(np.linspace(0, max(0, count - 2), max(1, budget // 2)).round().astype(np.int64))
    rows = np.unique(np.concatenate([firsts, np.minimum(firsts + 1, count - 1)]))
    if count <= budget:
        rows = np.arange(count)
    yield from READERS[file.format].read(file.path, Rows.of(rows, file.index))


def _raise_unreadable(name: str, first: Unreadable, count: int) -> None:
    message = f"{name}: record {first.label}: {first.message.removeprefix('the record: ')}"
    if first.unsafe:
        raise UnsafePickleError(message)
    raise RawFileError(f"{message} (none of the {count} records could be read; this is the first)")
