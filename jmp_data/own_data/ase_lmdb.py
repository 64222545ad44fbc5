"""fairchem's ASE-LMDB (`.aselmdb`): one zlib-compressed JSON text for each row, no pickle; OMat24, OMol25 and others.

Keys are integers from 1, with gaps where rows were deleted; `nextid`, `metadata` and `deleted_ids` are no rows.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jmp_data.errors import RawFileError
from jmp_data.own_data.ase_records import fixed_atoms, join_values
from jmp_data.own_data.records import FileIndex, Outcome, PlainReader, Record, Rows, Unreadable, as_pbc
from jmp_data.raw.lmdb_records import LmdbRecords, open_lmdb

_MOST_JSON = 1 << 28  # bytes; a row of a million atoms is smaller
_GEOMETRY = ("numbers", "positions", "cell", "pbc", "tags", "constraints")
_BOOKKEEPING = (
    *("unique_id", "ctime", "mtime", "user", "calculator", "calculator_parameters", "key_value_pairs", "data", "id"),
)


class AseLmdb(PlainReader):
    """See `Reader`."""

    format = "ase_lmdb"

    def index(self, path: Path) -> FileIndex:
        """See `Reader`."""
        with open_lmdb(path) as records:
            return FileIndex(len(_row_ids(records)))

    def read(self, path: Path, rows: Rows) -> Iterator[Outcome]:
        """See `Reader`."""
        with open_lmdb(path) as records:
            ids = _row_ids(records)
            for row in rows.numbers:
                if row >= len(ids):
                    raise RawFileError(f"{path}: has no row {row} any more; it changed since the build was planned")
                label = str(ids[row])
                try:
                    payload = records.read(ids[row])
                except RawFileError as error:
                    message = str(error).replace(str(records.path), path.name)
                    yield Unreadable(row, label, "missing_record", message, damaged_file=True)
                    continue
                try:
                    yield _read_row(_decode(payload), row, label)
                except (ValueError, TypeError, KeyError, AttributeError, zlib.error) as error:
                    message = f"cannot be decoded ({type(error).__name__}: {error})"
                    yield Unreadable(row, label, "damaged_record", message, payload.hex())


def _row_ids(records: LmdbRecords) -> list[int]:
    deleted: set[int] = set()
    payload = records.read_named("deleted_ids")
    if payload is not None:
        try:
            deleted = {int(key) for key in _decode(payload)}
        except (ValueError, TypeError, zlib.error) as error:
            raise RawFileError(f"{records.path}: key deleted_ids cannot be decoded ({error})") from error
    return [key for key in records.keys.tolist() if key not in deleted]


def _decode(payload: bytes) -> Any:
    machine = zlib.decompressobj()
    text = machine.decompress(payload, _MOST_JSON)
    if not machine.eof:
        raise ValueError(f"holds more than {_MOST_JSON} bytes, or is cut")
    return json.loads(text, object_hook=_array)


def _array(entry: dict[str, Any]) -> Any:
    """ASE's own JSON keeps arrays as shape, type and flat values; fairchem writes plain lists."""
    if list(entry) == ["__ndarray__"]:
        shape, dtype, values = entry["__ndarray__"]
        return np.array(values, dtype=np.dtype(dtype)).reshape(shape)
    return entry


def _read_row(entry: Mapping[str, Any], row: int, label: str) -> Record:
    numbers = np.asarray(entry["numbers"])
    constraints = entry.get("constraints") or ()
    if isinstance(constraints, str):
        constraints = json.loads(constraints)
    results = {key: value for key, value in entry.items() if key not in (*_GEOMETRY, *_BOOKKEEPING)}
    data = {f"data.{key}": value for key, value in (entry.get("data") or {}).items()}
    tags = entry.get("tags")
    return Record(
        row=row,
        label=label,
        atomic_numbers=numbers,
        positions=np.asarray(entry["positions"], np.float64).reshape(-1, 3),
        cell=np.asarray(entry["cell"], np.float64).reshape(3, 3) if entry.get("cell") is not None else np.zeros((3, 3)),
        pbc=as_pbc(entry.get("pbc")),
        tags=None if tags is None else np.asarray(tags),
        fixed=fixed_atoms(constraints, len(numbers)),
        values=join_values({"": results, "pairs": entry.get("key_value_pairs") or {}, "data": data}),
    )
