"""HDF5 with a group for each molecule or each number of atoms, and one row of every array for each structure.

AIMNet, ANI and SPICE files and their relatives look like this. Numbers of atoms are the same within a group; atomic
numbers may be given once for the group or for each structure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from jmp_data.errors import RawFileError
from jmp_data.own_data.records import Array, FileIndex, Outcome, PlainReader, Record, Rows, StatedUnits, as_pbc
from jmp_data.sources.hdf5_frames import open_hdf5

NUMBERS = ("atomic_numbers", "numbers", "species", "z", "Z")
POSITIONS = ("positions", "coordinates", "coord", "conformations", "geometries", "R")
_CELLS, _PBC = ("cell", "cells", "lattice"), ("pbc",)
_UNIT_ATTRIBUTES = ("units", "unit")
_ROWS_AT_ONCE = 512


@dataclass(frozen=True, slots=True)
class _Group:
    """One group with structures, and what its arrays are called."""

    name: str
    numbers: str
    positions: str
    count: int


class GroupedHdf5(PlainReader):
    """See `Reader`."""

    format = "grouped_hdf5"

    def index(self, path: Path) -> FileIndex:
        """See `Reader`."""
        with open_hdf5(path) as file:
            return FileIndex(sum(group.count for group in _find_groups(file, path)))

    def read(self, path: Path, rows: Rows) -> Iterator[Outcome]:
        """See `Reader`."""
        numbers = np.array(rows.numbers, np.int64)
        with open_hdf5(path) as file:
            first = 0
            for group in _find_groups(file, path):
                mine = numbers[(numbers >= first) & (numbers < first + group.count)] - first
                for start in range(0, len(mine), _ROWS_AT_ONCE):
                    yield from _read_rows(file, path, group, mine[start : start + _ROWS_AT_ONCE], first)
                first += group.count
        if len(numbers) and numbers[-1] >= first:
            raise RawFileError(f"{path}: has no structure {numbers[-1]} any more; it changed since it was planned")

    def stated_units(self, path: Path) -> StatedUnits:
        """See `Reader`; the `units` attributes of the arrays of the first group."""
        with open_hdf5(path) as file:
            group = _find_groups(file, path)[0]
            units = {name: _unit(array) for name, array in file[group.name].items()}
        by_key = {name: unit for name, unit in units.items() if unit and name != group.positions}
        return StatedUnits("attributes of the HDF5 arrays", units.get(group.positions, ""), by_key)


def _find_groups(file: h5py.File, path: Path) -> list[_Group]:
    """All groups with atomic numbers and positions, in alphabetic order.

    Raises:
        RawFileError: there is none.
    """
    found: list[_Group] = []

    def visit(name: str, entry: Any) -> None:
        if isinstance(entry, h5py.Group):
            numbers, positions = _first(entry, NUMBERS), _first(entry, POSITIONS)
            if numbers and positions and entry[positions].ndim == 3:
                found.append(_Group(name, numbers, positions, entry[positions].shape[0]))

    visit("/", file)
    file.visititems(visit)
    if not found:
        raise RawFileError(
            f"{path}: no group has atomic numbers ({', '.join(NUMBERS)}) and positions ({', '.join(POSITIONS)}) "
            "of shape (structures, atoms, 3)"
        )
    return sorted(found, key=lambda group: group.name)


def _first(group: h5py.Group, names: Sequence[str]) -> str:
    return next((name for name in names if isinstance(group.get(name), h5py.Dataset)), "")


def _unit(entry: Any) -> str:
    for name in _UNIT_ATTRIBUTES if isinstance(entry, h5py.Dataset) else ():
        if name in entry.attrs:
            value = entry.attrs[name]
            return value.decode() if isinstance(value, bytes) else str(value)
    return ""


def _read_rows(file: h5py.File, path: Path, group: _Group, rows: Array, first: int) -> Iterator[Outcome]:
    low, high = int(rows[0]), int(rows[-1]) + 1
    rowwise = {name for name, array in file[group.name].items() if _is_rowwise(name, array, group)}
    try:
        arrays = {
            name: array[low:high] if name in rowwise else array[()]
            for name, array in file[group.name].items()
            if isinstance(array, h5py.Dataset)
        }
    except OSError as error:
        raise RawFileError(f"{path}: group {group.name}, rows {low} to {high - 1} cannot be read ({error})") from error
    cell_name, pbc_name = _first(file[group.name], _CELLS), _first(file[group.name], _PBC)
    for row in rows.tolist():
        values = {name: array[row - low] if name in rowwise else array for name, array in arrays.items()}
        numbers, positions = values.pop(group.numbers), values.pop(group.positions)
        cell, pbc = values.pop(cell_name, None), values.pop(pbc_name, None)
        yield Record(
            row=first + row,
            label=f"{group.name}/{row}",
            atomic_numbers=_elements(numbers),
            positions=positions,
            cell=np.zeros((3, 3)) if cell is None else np.asarray(cell).reshape(3, 3),
            pbc=as_pbc(pbc),
            tags=None,
            fixed=None,
            values=values,
        )


def _is_rowwise(name: str, entry: Any, group: _Group) -> bool:
    """Whether an array has a row for each structure. Atomic numbers in one row are shared by all of them."""
    if not isinstance(entry, h5py.Dataset) or entry.shape[:1] != (group.count,):
        return False
    return name != group.numbers or entry.ndim == 2


def _elements(values: Array) -> Array:
    """Atomic numbers, from symbols where the file has those."""
    if values.dtype.kind not in "SOU":
        return values
    from ase.data import atomic_numbers

    symbols = [value.decode() if isinstance(value, bytes) else str(value) for value in values]
    return np.array([atomic_numbers.get(symbol, 0) for symbol in symbols])
