"""A columnar ragged block: many structures as concatenated arrays plus `natoms`. The unit of reading and writing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from jmp_data.errors import InvalidStructureError
from jmp_data.schema.fields import CELL, FIXED, PBC, TAGS, Schema
from jmp_data.schema.structure import DEFAULT_TAG, Structure

Array = npt.NDArray[Any]


def ragged_take(ptr: Array, rows: Array) -> Array:
    """Indices of the concatenated elements of the given ragged rows.

    Args:
        ptr: (n + 1,) row boundaries.
        rows: (m,) row numbers, any order, repeats allowed.

    Returns:
        (sum of row lengths,) element indices, row after row.
    """
    starts = ptr[rows]
    lengths = ptr[rows + 1] - starts
    ends = np.cumsum(lengths)
    if len(ends) == 0:
        return np.zeros(0, np.int64)
    indices: Array = np.arange(ends[-1], dtype=np.int64) + np.repeat(starts - (ends - lengths), lengths)
    return indices


@dataclass(frozen=True, eq=False)
class Block:
    """n structures with N atoms in all.

    Attributes:
        natoms: (n,) int32.
        columns: name → array; structure-level (n, *shape), atom-level (N, *shape); geometry and targets of `schema`.
        source_ids: (n,) fixed-width bytes, UTF-8; raw file and record of each structure.
        schema: the field table; `columns` may hold a subset of it (a reader that asked for fewer columns).
    """

    natoms: Array
    columns: Mapping[str, Array]
    source_ids: Array
    schema: Schema = field(default_factory=Schema)

    def __post_init__(self) -> None:
        n, total = len(self.natoms), int(self.natoms.sum())
        for name, column in self.columns.items():
            entry = self.schema[name]
            expected = (n if entry.level == "structure" else total, *entry.shape)
            if column.shape != expected or column.dtype != entry.dtype:
                raise InvalidStructureError(
                    f"column {name} is {column.dtype}{column.shape}, expected {entry.dtype}{expected}", "shape"
                )

    def __len__(self) -> int:
        return len(self.natoms)

    def __getattr__(self, name: str) -> Array:
        columns: Mapping[str, Array] = self.__dict__.get("columns", {})
        if name not in columns:
            raise AttributeError(f"block has no column {name!r}; it has {', '.join(columns)}")
        return columns[name]

    @property
    def num_atoms(self) -> int:
        """Atoms in all structures together."""
        return int(self.natoms.sum())

    @property
    def ptr(self) -> Array:
        """(n + 1,) int64 boundaries of the structures in atom-level columns."""
        ptr = np.zeros(len(self.natoms) + 1, np.int64)
        np.cumsum(self.natoms, out=ptr[1:])
        return ptr

    def take(self, rows: Array | slice) -> Block:
        """The structures at `rows` (index array, boolean mask or slice), in that order."""
        ptr = self.ptr
        atoms: Array | slice
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step != 1:
                return self.take(np.arange(len(self))[rows])
            atoms = slice(int(ptr[start]), int(ptr[max(start, stop)]))
        else:
            rows = np.flatnonzero(rows) if rows.dtype == bool else rows
            atoms = ragged_take(ptr, rows)
        columns = {
            name: column[rows if self.schema[name].level == "structure" else atoms]
            for name, column in self.columns.items()
        }
        source_ids = self.source_ids[rows] if len(self.source_ids) else self.source_ids
        return Block(self.natoms[rows], columns, source_ids, self.schema)

    def structure(self, row: int) -> Structure:
        """One structure as a typed record; a missing (NaN) target is left out."""
        start = int(self.natoms[:row].sum())
        atoms = slice(start, start + int(self.natoms[row]))
        value = {
            name: column[row] if self.schema[name].level == "structure" else column[atoms]
            for name, column in self.columns.items()
        }
        targets = {name: value.pop(name) for name in [entry.name for entry in self.schema.targets] if name in value}
        present = {name: target for name, target in targets.items() if not _is_missing(target)}
        energy, forces = present.pop("energy", None), present.pop("forces", None)
        return Structure(
            atomic_numbers=value["atomic_numbers"],
            positions=value["positions"],
            cell=value["cell"] if value["cell"].any() else None,
            pbc=value["pbc"],
            energy=None if energy is None else float(energy),
            forces=forces,
            tags=value["tags"],
            fixed=value["fixed"],
            source_id=self.source_ids[row].decode() if len(self.source_ids) else "",
            targets=present,
        )

    @classmethod
    def from_columns(
        cls,
        schema: Schema,
        natoms: Array,
        source_ids: Sequence[str] | Array,
        columns: Mapping[str, Array],
    ) -> Block:
        """Cast columns to the schema and fill what has a default.

        Absent `tags` become 2, `fixed` False, `cell` zeros and `pbc` False; other absent columns are an error.

        Raises:
            InvalidStructureError: a column is missing or has the wrong shape.
        """
        n, total = len(natoms), int(np.sum(natoms))
        filled: dict[str, Array] = {}
        for entry in schema:
            rows = n if entry.level == "structure" else total
            if entry.name in columns:
                filled[entry.name] = np.ascontiguousarray(columns[entry.name], dtype=entry.dtype)
            elif entry.name == TAGS.name:
                filled[entry.name] = np.full(rows, DEFAULT_TAG, np.uint8)
            elif entry.name in (FIXED.name, CELL.name, PBC.name):
                filled[entry.name] = np.zeros((rows, *entry.shape), entry.dtype)
            else:
                raise InvalidStructureError(f"column {entry.name} is missing", "missing_column")
        return cls(np.asarray(natoms, np.int32), filled, encode_ids(source_ids), schema)

    @classmethod
    def from_structures(cls, structures: Sequence[Structure], schema: Schema) -> Block:
        """Pack structures; a target that a structure lacks becomes NaN (floats) or 0.

        Raises:
            InvalidStructureError: a target has another shape than the schema says.
        """
        columns = {entry.name: [_row(entry.name, entry, s) for s in structures] for entry in schema}
        packed = {
            entry.name: (
                np.stack(columns[entry.name]) if entry.level == "structure" else np.concatenate(columns[entry.name])
            ).astype(entry.dtype)
            for entry in schema
        }
        natoms = np.array([s.natoms for s in structures], np.int32)
        return cls.from_columns(schema, natoms, [s.source_id for s in structures], packed)

    @classmethod
    def concatenate(cls, blocks: Iterable[Block]) -> Block:
        """One block of all structures, in order."""
        parts = list(blocks)
        if len(parts) == 1:
            return parts[0]
        columns = {name: np.concatenate([p.columns[name] for p in parts]) for name in parts[0].columns}
        source_ids = np.concatenate([p.source_ids for p in parts])
        return cls(np.concatenate([p.natoms for p in parts]), columns, source_ids, parts[0].schema)


def encode_ids(source_ids: Sequence[str] | Array) -> Array:
    """Fixed-width UTF-8 bytes, as blocks keep them."""
    if isinstance(source_ids, np.ndarray) and source_ids.dtype.kind == "S":
        return source_ids
    return np.array([text.encode() if isinstance(text, str) else text for text in source_ids], dtype="S")


def _is_missing(target: Array) -> bool:
    return target.dtype.kind == "f" and bool(np.isnan(target).all())


def _row(name: str, entry: Any, structure: Structure) -> Array:
    shape = (structure.natoms, *entry.shape) if entry.level == "atom" else entry.shape
    value = structure.targets.get(name) if name in structure.targets else getattr(structure, name, None)
    if value is None:
        return np.full(shape, entry.missing_value if name != "cell" else 0.0, entry.dtype)
    array = np.asarray(value)
    if array.shape != shape:
        where = structure.source_id or "structure"
        raise InvalidStructureError(f"{where}: {name} has shape {array.shape}, the schema says {shape}", "shape")
    return array
