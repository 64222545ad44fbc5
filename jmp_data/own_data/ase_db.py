"""ASE databases: SQLite `.db` and `.json`, rows by id.

Labels may be calculator results, key-value pairs or in `data`, where some libraries keep all of them, in units that
only the database's metadata tells.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jmp_data.errors import RawFileError
from jmp_data.own_data.ase_records import ASE_ERRORS, fixed_atoms, join_values, quiet
from jmp_data.own_data.records import FileIndex, Outcome, PlainReader, Record, Rows, StatedUnits, Unreadable, formula

_JSON_START = re.compile(rb'\s*\{\s*"\d+"\s*:\s*\{')
_SQLITE_MAGIC = b"SQLite format 3\x00"
_RESULTS = ("energy", "forces", "stress", "dipole", "magmom", "magmoms", "charges", "free_energy", "energies")
_ARRAYS = ("initial_magmoms", "initial_charges", "momenta", "masses")
_UNIT_TABLE, _DISTANCE_UNIT = "_property_unit_dict", "_distance_unit"


class AseDatabase(PlainReader):
    """See `Reader`."""

    format = "ase_db"

    def index(self, path: Path) -> FileIndex:
        """See `Reader`."""
        return FileIndex(len(_row_ids(path, _connect(path))))

    def read(self, path: Path, rows: Rows) -> Iterator[Outcome]:
        """See `Reader`."""
        database = _connect(path)
        ids = _row_ids(path, database)
        for row in rows.numbers:
            if row >= len(ids):
                raise RawFileError(f"{path}: has no row {row} any more; it changed since the build was planned")
            label = str(ids[row])
            try:
                with quiet():
                    yield _read_row(database.get(id=ids[row]), row, label)
            except ASE_ERRORS as error:
                yield Unreadable(row, label, "unreadable_row", f"cannot be decoded ({type(error).__name__}: {error})")

    def formulas(self, path: Path) -> Iterator[str]:
        """See `Reader`."""
        database = _connect(path)
        for row_id in _row_ids(path, database):
            try:
                yield formula(database.get(id=row_id).numbers)
            except ASE_ERRORS:
                yield ""

    def stated_units(self, path: Path) -> StatedUnits:
        """See `Reader`; the metadata that schnetpack writes."""
        metadata = _connect(path).metadata
        units = metadata.get(_UNIT_TABLE)
        if not isinstance(units, Mapping):
            return StatedUnits()
        by_key = {f"{place}{key}": str(unit) for key, unit in units.items() for place in ("", "data.")}
        return StatedUnits(f"metadata {_UNIT_TABLE}", str(metadata.get(_DISTANCE_UNIT, "")), by_key)


def is_ase_json(start: bytes) -> bool:
    """Whether the first bytes of a `.json` file are those of an ASE database."""
    return _JSON_START.match(start) is not None


def is_sqlite(start: bytes) -> bool:
    """Whether the first bytes of a file are those of an SQLite database."""
    return start.startswith(_SQLITE_MAGIC)


def _connect(path: Path) -> Any:
    from ase.db import connect

    if not path.is_file():  # ASE would create one
        raise RawFileError(f"{path}: no such file")
    kind = "json" if path.suffix.lower() == ".json" else "db"
    return connect(str(path.absolute()), type=kind, use_lock_file=False)


def _row_ids(path: Path, database: Any) -> list[int]:
    try:
        with quiet():
            # Without data and in one query: ids may have gaps.
            return sorted(row.id for row in database.select(columns=["id"], include_data=False))
    except (*ASE_ERRORS, _sqlite_error()) as error:
        raise RawFileError(f"{path}: cannot be read as an ASE database ({error})") from error


def _sqlite_error() -> type[Exception]:
    import sqlite3

    return sqlite3.Error


def _read_row(row: Any, number: int, label: str) -> Record:
    results = {name: row[name] for name in (*_RESULTS, *_ARRAYS) if name in row}
    data = {f"data.{key}": value for key, value in row.data.items()}
    natoms = len(row.numbers)
    return Record(
        row=number,
        label=label,
        atomic_numbers=row.numbers,
        positions=row.positions,
        cell=np.asarray(row.cell),
        pbc=np.asarray(row.pbc, bool),
        tags=row.tags if "tags" in row else None,
        fixed=fixed_atoms(row.constraints, natoms),
        values=join_values({"": results, "pairs": dict(row.key_value_pairs), "data": data}),
    )
