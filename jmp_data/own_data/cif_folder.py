"""A folder of CIF files, one structure each, and a table of targets joined to them by name, never by position.

Files without symmetry take the fast way; pymatgen expands the others. A partly occupied site is refused: no structure
follows from it.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from jmp_data.errors import MissingFileError, RawFileError
from jmp_data.own_data.ase_records import ASE_ERRORS, quiet
from jmp_data.own_data.records import FileIndex, Outcome, PlainReader, Record, Rows, Unreadable
from jmp_data.own_data.xyz_frames import PACKED, UNPACKING_ERRORS, open_text
from jmp_data.sources.cif_p1 import parse_cif
from jmp_data.sources.pymatgen_json import StructureError

_MISSING = {"", "nan", "none", "null", "na", "n/a", "?"}
_OTHER_LAYOUT = ("no_structure", "symmetry")  # what the fast way does not take, pymatgen may
_FLAGS = {"true": True, "false": False}


class CifFile(PlainReader):
    """One CIF file, which is one record. See `Reader`."""

    format = "cif"

    def index(self, path: Path) -> FileIndex:
        """See `Reader`."""
        if not path.is_file():
            raise MissingFileError(f"{path}: no such file")
        return FileIndex(1)

    def read(self, path: Path, rows: Rows) -> Iterator[Outcome]:
        """See `Reader`."""
        for row in rows.numbers:
            yield _read(path, row)


def _read(path: Path, row: int) -> Outcome:
    name, text = structure_name(path), ""
    try:
        with open_text(path) as file:
            text = file.read().decode("utf-8", "replace")
    except UNPACKING_ERRORS as error:
        return Unreadable(row, name, "damaged_file", f"cannot be unpacked ({error})", damaged_file=True)
    try:
        crystal, columns = parse_cif(text)
        numbers, positions, cell = crystal.atomic_numbers, crystal.positions, crystal.cell
    except StructureError as error:
        if error.reason not in _OTHER_LAYOUT:
            return Unreadable(row, name, error.reason, str(error), text)
        try:
            numbers, positions, cell = _expand(text)
            columns = {}
        except StructureError as general:
            return Unreadable(row, name, general.reason, str(general), text)
    values = {name: column for name, column in columns.items() if np.isfinite(column).any()}
    return Record(row, name, numbers, positions, cell, np.ones(3, bool), None, None, values)


def structure_name(path: Path) -> str:
    """What a table of targets calls the structure of a file: its name without endings of format and packing."""
    return Path(path.stem).stem if path.suffix.lower() in PACKED else path.stem


def _expand(text: str) -> tuple[Any, Any, Any]:
    """Atomic numbers, positions and cell of a CIF with symmetry."""
    from pymatgen.io.cif import CifParser

    try:
        with quiet():
            structures = CifParser.from_str(text).parse_structures(primitive=False)
    except ASE_ERRORS as error:
        raise StructureError(f"cannot be parsed ({error})", "unreadable_cif") from None
    if len(structures) != 1:
        raise StructureError(f"holds {len(structures)} structures, expected one", "unreadable_cif")
    structure = structures[0]
    if not structure.is_ordered:
        raise StructureError("has partly occupied sites", "disordered_site")
    return np.array(structure.atomic_numbers), structure.cart_coords, np.array(structure.lattice.matrix)


@dataclass(frozen=True, slots=True, eq=False)
class TargetTable:
    """Rows of a CSV file by the name of their structure.

    Attributes:
        path: the file.
        id_column: the column with the names.
        columns: all others.
        rows: name → the values as they stand.
    """

    path: Path
    id_column: str
    columns: tuple[str, ...]
    rows: Mapping[str, Sequence[str]]

    def values(self, name: str) -> dict[str, Any] | None:
        """Numbers and flags of one structure by column, text left out; None where the table has no such row.

        A file `name.cif` may stand in the table with or without `.cif`.
        """
        row = self.rows.get(name, self.rows.get(f"{name}.cif"))
        if row is None:
            return None
        parsed = {column: _parse(word) for column, word in zip(self.columns, row, strict=True)}
        return {column: value for column, value in parsed.items() if value is not None}


def read_table(path: Path, *, id_column: str = "", names: Sequence[str] = ()) -> TargetTable:
    """Read a table of targets.

    Args:
        path: CSV with a header line.
        id_column: column with the names of the structures; by default the one that holds most of `names`.
        names: names of the structures.

    Raises:
        RawFileError: no column fits, a name occurs twice, or a row has too few or too many values.
    """
    if not path.is_file():
        raise MissingFileError(f"{path}: no such table")
    status = path.stat()
    header, rows = _read_csv(path, status.st_size, status.st_mtime_ns)
    if id_column and id_column not in header:
        raise RawFileError(f"{path}: has no column {id_column!r}; it has {', '.join(header)}")
    place = header.index(id_column) if id_column else _find_id_column(path, header, rows, names)
    by_name: dict[str, Sequence[str]] = {}
    for line, row in enumerate(rows, 2):
        name = row[place].strip()
        if name in by_name:
            raise RawFileError(f"{path}: row {line}: {name!r} occurs twice in column {header[place]!r}")
        by_name[name] = [*row[:place], *row[place + 1 :]]
    others = tuple(column for number, column in enumerate(header) if number != place)
    return TargetTable(path, header[place], others, by_name)


@lru_cache(maxsize=4)
def _read_csv(path: Path, size: int, modified: int) -> tuple[list[str], list[list[str]]]:
    del size, modified  # a file with another stamp is read again
    csv.field_size_limit(sys.maxsize)
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = [row for row in csv.reader(file) if row]
    if len(rows) < 2:
        raise RawFileError(f"{path}: has no rows below its header")
    for line, row in enumerate(rows[1:], 2):
        if len(row) != len(rows[0]):
            raise RawFileError(f"{path}: row {line} has {len(row)} values, the header has {len(rows[0])}")
    return rows[0], rows[1:]


def _find_id_column(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]], names: Sequence[str]) -> int:
    wanted = {*names, *(f"{name}.cif" for name in names)}
    hits = [len(wanted & {row[column].strip() for row in rows}) for column in range(len(header))]
    best = int(np.argmax(hits))
    if not hits[best]:
        raise RawFileError(f"{path}: no column holds the names of the files, such as {next(iter(names), 'none')!r}")
    return best


def _parse(word: str) -> float | bool | None:
    text = word.strip().lower()
    if text in _FLAGS:
        return _FLAGS[text]
    try:
        return None if text in _MISSING else float(text)
    except ValueError:
        return None
