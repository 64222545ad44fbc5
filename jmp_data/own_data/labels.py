"""From records to columns: which key becomes which column, with unit and sign, and what does not fit is set aside.

A rule is plain values, so that a plan can carry it to any worker: what a sample of the files showed is decided once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from jmp_data.own_data.records import Array, Record
from jmp_data.own_data.survey import is_nothing
from jmp_data.own_data.tags import TagsChoice, choose_tags
from jmp_data.own_data.units import factor_to_stored
from jmp_data.schema import Block, Field, Schema
from jmp_data.schema.structure import DEFAULT_TAG, MAX_ATOMIC_NUMBER
from jmp_data.schema.units import ConstantSet
from jmp_data.sources.protocol import Item, Quarantined

Meaning = Literal["value", "gradient", "tension", "compression", "virial"]

_VOIGT = {"ase": (0, 1, 2, 3, 4, 5), "vasp": (0, 1, 2, 4, 5, 3)}
_FULL = np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2]])  # places of xx yy zz yz xz xy in the full tensor


class LabelError(ValueError):
    """A label of one record does not fit its column. `reason` is a short code."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class LabelRule:
    """How one column is made.

    Attributes:
        field: the column.
        key: under which key the file has it.
        unit: unit of the file.
        meaning: `value` as it is, `gradient` (minus the forces), or for stresses the sign and kind.
        per_atom: the file divides the value by the number of atoms.
        required: a record without it is set aside; otherwise it gets NaN.
        voigt: order of six stress components.
    """

    field: Field
    key: str
    unit: str = ""
    meaning: Meaning = "value"
    per_atom: bool = False
    required: bool = True
    voigt: Literal["ase", "vasp"] = "ase"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "field": self.field.to_json()}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> LabelRule:
        """Inverse of `to_json`."""
        return cls(**{**entry, "field": Field.from_json(entry["field"])})


@dataclass(frozen=True, slots=True)
class Resolved:
    """Everything that turns records into columns; nothing of it is `auto`.

    Attributes:
        labels: the target columns.
        length_unit: of positions and cells.
        pbc: `given`, `true` or `false`.
        tags: rule for tags.
        adsorbate_elements: atomic numbers, for the rules that need them.
        unexpected: standard keys that no sampled record had; a record that has one is set aside rather than stripped.
    """

    labels: tuple[LabelRule, ...]
    length_unit: str = "Å"
    pbc: Literal["given", "true", "false"] = "given"
    tags: TagsChoice = "given"
    adsorbate_elements: tuple[int, ...] = ()
    unexpected: tuple[str, ...] = ()

    @property
    def schema(self) -> Schema:
        """The columns."""
        return Schema(tuple(rule.field for rule in self.labels))

    @property
    def required(self) -> tuple[str, ...]:
        """Columns that must be finite."""
        return tuple(rule.field.name for rule in self.labels if rule.required)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        plain = {name: getattr(self, name) for name in ("length_unit", "pbc", "tags")}
        lists = {name: list(getattr(self, name)) for name in ("adsorbate_elements", "unexpected")}
        return {"labels": [rule.to_json() for rule in self.labels], **plain, **lists}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Resolved:
        """Inverse of `to_json`."""
        lists = {name: tuple(entry[name]) for name in ("adsorbate_elements", "unexpected")}
        labels = tuple(LabelRule.from_json(rule) for rule in entry["labels"])
        return cls(**{**entry, **lists, "labels": labels})


@dataclass(frozen=True, slots=True)
class Gathered:
    """A record and where it comes from."""

    source_id: str
    record: Record


def convert_records(records: Sequence[Gathered], resolved: Resolved, constants: ConstantSet) -> Iterator[Item]:
    """One block of the records that fit, and one quarantined item for each that does not."""
    rows: list[dict[str, Array]] = []
    kept: list[Gathered] = []
    for entry in records:
        try:
            rows.append(_columns_of(entry.record, resolved, constants))
            kept.append(entry)
        except LabelError as error:
            message = f"{entry.source_id}: {error}"
            yield Quarantined(entry.source_id, error.reason, message, record_text(entry.record))
    if not rows:
        return
    schema = resolved.schema
    columns = {
        field.name: (np.stack if field.level == "structure" else np.concatenate)([row[field.name] for row in rows])
        for field in schema
    }
    natoms = np.array([entry.record.natoms for entry in kept])
    yield Block.from_columns(schema, natoms, [entry.source_id for entry in kept], columns)


def _columns_of(record: Record, resolved: Resolved, constants: ConstantSet) -> dict[str, Array]:
    unexpected = [key for key in resolved.unexpected if key in record.values]
    if unexpected:
        raise LabelError(
            f"has {', '.join(unexpected)}, which no sampled structure had; name it under keys: in the manifest",
            "unexpected_label",
        )
    columns = _geometry(record, resolved, constants)
    for rule in resolved.labels:
        columns[rule.field.name] = read_label(record, rule, columns["cell"], constants)
    return columns


def _geometry(record: Record, resolved: Resolved, constants: ConstantSet) -> dict[str, Array]:
    numbers = np.asarray(record.atomic_numbers)
    natoms = len(numbers)
    if natoms == 0:
        raise LabelError("has no atoms", "no_atoms")
    whole = numbers.dtype.kind in "iu" or np.array_equal(numbers, np.rint(numbers))
    if not whole or numbers.min() < 1 or numbers.max() > MAX_ATOMIC_NUMBER:
        raise LabelError(f"holds an atomic number outside 1 to {MAX_ATOMIC_NUMBER}", "atomic_number")
    positions, cell = np.asarray(record.positions, np.float64), np.asarray(record.cell, np.float64)
    if positions.shape != (natoms, 3) or cell.shape != (3, 3):
        raise LabelError(f"has positions {positions.shape} and a cell {cell.shape} for {natoms} atoms", "shape")
    scale = factor_to_stored(resolved.length_unit, constants)
    record = replace(record, positions=positions * scale, cell=cell * scale)
    return {
        "atomic_numbers": numbers.astype(np.uint8),
        "positions": record.positions,
        "cell": record.cell,
        "pbc": _periodicity(record, resolved.pbc),
        "tags": _tags(record, resolved),
        "fixed": np.zeros(natoms, bool) if record.fixed is None else record.fixed,
    }


def _periodicity(record: Record, rule: str) -> Array:
    if rule != "given":
        return np.full(3, rule == "true")
    return record.pbc if record.pbc is not None else np.full(3, bool(record.cell.any(axis=1).all()))


def _tags(record: Record, resolved: Resolved) -> Array:
    tags = choose_tags(record, resolved.tags, resolved.adsorbate_elements)
    if tags is None:
        return np.full(record.natoms, DEFAULT_TAG, np.uint8)
    if len(tags) != record.natoms or tags.min() < 0 or tags.max() > 255:
        raise LabelError(f"has tags from {tags.min()} to {tags.max()}, expected 0, 1 or 2 for each atom", "tags")
    return tags.astype(np.uint8)


def read_label(record: Record, rule: LabelRule, cell: Array, constants: ConstantSet) -> Array:
    """The value of one column for one record.

    Args:
        record: as read.
        rule: how the column is made.
        cell: (3, 3), Å.
        constants: what units are worth.

    Raises:
        LabelError: it is missing though required, or has another shape or kind.
    """
    field = rule.field
    shape = (record.natoms, *field.shape) if field.level == "atom" else field.shape
    value = record.values.get(rule.key)
    if is_nothing(value):
        if rule.required:
            raise LabelError(f"has no {field.name} (key {rule.key!r})", f"missing_{field.name}")
        return np.full(shape, field.missing_value, field.dtype)
    array = np.asarray(value)
    if array.dtype.kind not in ("fiu" if np.dtype(field.dtype).kind == "f" else "fiub"):
        shown = f": {value!r}" if isinstance(value, str | bool) else ""
        raise LabelError(f"{rule.key} is no number{shown}", "not_a_number")
    array = full_stress(array, rule) if field.name == "stress" else _fit(array, shape, rule.key)
    if np.dtype(field.dtype).kind != "f":
        if not np.array_equal(array, array.astype(field.dtype)):
            raise LabelError(f"{rule.key} does not fit {field.dtype}", "dtype")
        return array
    return array.astype(np.float64) * _factor(rule, record.natoms, cell, constants)


def _factor(rule: LabelRule, natoms: int, cell: Array, constants: ConstantSet) -> float:
    factor = factor_to_stored(rule.unit, constants) * (natoms if rule.per_atom else 1)
    if rule.meaning == "virial":
        volume = abs(float(np.linalg.det(cell)))
        if volume < 1e-6:
            raise LabelError("has a virial but no cell", "no_cell")
        return -factor / volume
    return -factor if rule.meaning in ("gradient", "compression") else factor


def full_stress(value: Array, rule: LabelRule) -> Array:
    """(3, 3) from six components, nine or a tensor."""
    if value.size == 9:
        return value.reshape(3, 3)
    if value.size == 6:
        full: Array = value.reshape(6)[list(_VOIGT[rule.voigt])][_FULL]
        return full
    raise LabelError(f"{rule.key} has shape {value.shape}, expected (6,), (9,) or (3, 3)", "shape")


def _fit(array: Array, shape: tuple[int, ...], key: str) -> Array:
    """The array in its column's shape; only axes of length one are added or removed."""
    if array.shape == shape:
        return array
    if array.size == math.prod(shape) and [n for n in array.shape if n != 1] == [n for n in shape if n != 1]:
        return array.reshape(shape)
    raise LabelError(f"{key} has shape {array.shape}, expected {shape}", "shape")


def record_text(record: Record) -> str:
    """A record as JSON, for the quarantine."""
    values = {
        "atomic_numbers": record.atomic_numbers,
        "positions": record.positions,
        "cell": record.cell,
        "pbc": record.pbc,
        "tags": record.tags,
        "fixed": record.fixed,
        **record.values,
    }
    return json.dumps({name: _plain(value) for name, value in values.items()}, separators=(",", ":"))


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if isinstance(value, str | int | bool | None) else str(value)
