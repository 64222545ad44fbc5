"""LMDB files of pickled PyTorch Geometric objects, as Open Catalyst tools and JMP write them, decoded and never run.

A pickle that names any other class is refused. Labels are called `y` and `force`, or `energy` and `forces` since June
2024 (fairchem#726); older files have no `pbc`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jmp_data.errors import RawFileError, UnsafePickleError
from jmp_data.own_data.records import Array, FileIndex, Outcome, PlainReader, Record, Rows, Unreadable, as_pbc
from jmp_data.raw.lmdb_records import open_lmdb
from jmp_data.raw.restricted_pickle import load_record

_GEOMETRY = ("pos", "cell", "atomic_numbers", "natoms", "tags", "fixed", "pbc")
_GRAPH = ("edge_index", "cell_offsets", "distances", "edge_attr", "neighbors")


class OcpLmdb(PlainReader):
    """See `Reader`."""

    format = "ocp_lmdb"

    def index(self, path: Path) -> FileIndex:
        """See `Reader`; a key that should be there and is not counts as a record."""
        with open_lmdb(path) as records:
            return FileIndex(len(records))

    def read(self, path: Path, rows: Rows) -> Iterator[Outcome]:
        """See `Reader`."""
        with open_lmdb(path) as records:
            for row in rows.numbers:
                try:
                    payload = records.read(row)
                except RawFileError as error:
                    message = str(error).replace(str(records.path), path.name)
                    yield Unreadable(row, str(row), "missing_record", message, damaged_file=True)
                    continue
                yield _read(payload, row)


def _read(payload: bytes, row: int) -> Outcome:
    try:
        values = load_record(payload, where="the record")
        return _record(values, row)
    except UnsafePickleError as error:
        return Unreadable(row, str(row), "unsafe_pickle", str(error), payload.hex(), unsafe=True)
    except (RawFileError, KeyError, ValueError, TypeError) as error:
        lacks = f"has no {error}" if isinstance(error, KeyError) else str(error)
        return Unreadable(row, str(row), "damaged_record", lacks, payload.hex())


def _record(values: Mapping[str, Any], row: int) -> Record:
    numbers = _integers(values["atomic_numbers"], "atomic_numbers").reshape(-1)
    cell = values.get("cell")
    tags, fixed = values.get("tags"), values.get("fixed")
    labels = {key: value for key, value in values.items() if value is not None and key not in (*_GEOMETRY, *_GRAPH)}
    return Record(
        row=row,
        label=str(row),
        atomic_numbers=numbers,
        positions=np.asarray(values["pos"]).reshape(-1, 3),
        cell=np.zeros((3, 3)) if cell is None else np.asarray(cell).reshape(3, 3),
        pbc=as_pbc(values.get("pbc")),
        tags=None if tags is None else _integers(tags, "tags").reshape(-1),
        fixed=None if fixed is None else np.asarray(fixed).reshape(-1) != 0,
        values=labels,
    )


def _integers(value: Any, name: str) -> Array:
    """Atomic numbers are stored as floats; a fraction is a mistake, not something to round."""
    array = np.asarray(value)
    whole: Array = np.rint(array).astype(np.int64)
    if not np.array_equal(whole, array):
        raise ValueError(f"{name} are no integers")
    return whole
