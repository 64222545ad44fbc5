"""MACE's HDF5: groups `config_batch_K/config_J` with one structure each; what is missing is the text "None"."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from jmp_data.errors import RawFileError
from jmp_data.own_data.records import FileIndex, Outcome, PlainReader, Record, Rows, Unreadable, as_pbc
from jmp_data.sources.hdf5_frames import open_hdf5

_BATCH, _CONFIG = re.compile(r"config_batch_(\d+)"), re.compile(r"config_(\d+)")
_GEOMETRY = ("atomic_numbers", "positions", "cell", "pbc")
_NOT_LABELS = ("property_weights", "weight")


class MaceHdf5(PlainReader):
    """See `Reader`."""

    format = "mace_hdf5"

    def index(self, path: Path) -> FileIndex:
        """See `Reader`."""
        with open_hdf5(path) as file:
            return FileIndex(sum(len(configs) for _, configs in _batches(file)))

    def read(self, path: Path, rows: Rows) -> Iterator[Outcome]:
        """See `Reader`."""
        with open_hdf5(path) as file:
            wanted = iter(rows.numbers)
            number = next(wanted, None)
            first = 0
            for batch, configs in _batches(file):
                while number is not None and number < first + len(configs):
                    yield _read(file, f"{batch}/{configs[number - first]}", number)
                    number = next(wanted, None)
                first += len(configs)
            if number is not None:
                raise RawFileError(f"{path}: has no configuration {number} any more; it changed since it was planned")


def is_mace(file: h5py.File) -> bool:
    """Whether an HDF5 file has this layout."""
    return any(_BATCH.fullmatch(name) for name in file)


def _batches(file: h5py.File) -> Iterator[tuple[str, list[str]]]:
    """Batches and the configurations in them, in numeric order."""
    for batch in _in_order(file, _BATCH):
        yield batch, _in_order(file[batch], _CONFIG)


def _in_order(group: h5py.Group, pattern: re.Pattern[str]) -> list[str]:
    numbers = {name: match for name in group if (match := pattern.fullmatch(name))}
    return sorted(numbers, key=lambda name: int(numbers[name][1]))


def _read(file: h5py.File, name: str, row: int) -> Outcome:
    try:
        group = file[name]
        values = {key: _value(group[key]) for key in group if isinstance(group[key], h5py.Dataset)}
        labels = {key: value for key, value in values.items() if key not in (*_GEOMETRY, *_NOT_LABELS)}
        if "properties" in group:
            labels |= {key: _value(group["properties"][key]) for key in group["properties"]}
        cell = values.get("cell")
        return Record(
            row=row,
            label=name,
            atomic_numbers=values["atomic_numbers"],
            positions=np.asarray(values["positions"]),
            cell=np.zeros((3, 3)) if cell is None else np.asarray(cell).reshape(3, 3),
            pbc=as_pbc(values.get("pbc")),
            tags=None,
            fixed=None,
            values={key: value for key, value in labels.items() if value is not None},
        )
    except (OSError, KeyError, ValueError, AttributeError) as error:
        return Unreadable(row, name, "damaged_record", f"cannot be read ({error})", damaged_file=True)


def _value(dataset: h5py.Dataset) -> Any:
    value = dataset[()]
    if isinstance(value, bytes):
        text = value.decode("utf-8", "replace")
        return None if text == "None" else text
    return value
