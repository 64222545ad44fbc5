"""The field table: name, level, dtype, shape, unit and kind of every column that a block may hold.

A target of any shape is a field like any other; nothing downstream knows a target by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from jmp_data.errors import ManifestError

Level = Literal["structure", "atom"]
Kind = Literal["extensive", "intensive", "label", "geometry"]


@dataclass(frozen=True, slots=True)
class Field:
    """One column.

    Attributes:
        name: field-standard name.
        level: one row per structure or one row per atom.
        dtype: NumPy dtype name on disk.
        shape: trailing shape of one row; () for a scalar.
        unit: unit on disk ("" where dimensionless).
        kind: extensive or intensive for targets, geometry and label for the rest.
        description: one line.
    """

    name: str
    level: Level
    dtype: str
    shape: tuple[int, ...] = ()
    unit: str = ""
    kind: Kind = "label"
    description: str = ""

    @property
    def row_size(self) -> int:
        """Number of scalars in one row."""
        return int(np.prod(self.shape, dtype=np.int64)) if self.shape else 1

    @property
    def missing_value(self) -> float | int:
        """What stands for "no value": NaN for floats, 0 otherwise."""
        return float("nan") if np.dtype(self.dtype).kind == "f" else 0

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary for the output manifest."""
        return {**asdict(self), "shape": list(self.shape)}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Field:
        """Inverse of `to_json`."""
        return cls(**{**entry, "shape": tuple(entry["shape"])})


ATOMIC_NUMBERS = Field("atomic_numbers", "atom", "uint8", (), "", "geometry", "Z, 1 to 118")
POSITIONS = Field("positions", "atom", "float32", (3,), "Å", "geometry", "Cartesian, as published (not wrapped)")
CELL = Field("cell", "structure", "float32", (3, 3), "Å", "geometry", "rows are lattice vectors; zeros without a cell")
PBC = Field("pbc", "structure", "bool", (3,), "", "geometry", "periodic along each lattice vector")
TAGS = Field("tags", "atom", "uint8", (), "", "label", "0 bulk, 1 surface, 2 adsorbate; 2 for molecules and crystals")
FIXED = Field("fixed", "atom", "bool", (), "", "label", "held fixed in the relaxation that the record comes from")
ENERGY = Field("energy", "structure", "float64", (), "eV", "extensive", "energy as published, in eV")
FORCES = Field(
    "forces", "atom", "float32", (3,), "eV/Å", "intensive", "minus the energy gradient, raw on fixed atoms too"
)
STRESS = Field("stress", "structure", "float32", (3, 3), "eV/Å³", "intensive", "ASE sign: positive is tension")

GEOMETRY_FIELDS = (ATOMIC_NUMBERS, POSITIONS, CELL, PBC, TAGS, FIXED)
STANDARD_TARGETS = {field.name: field for field in (ENERGY, FORCES, STRESS)}


@dataclass(frozen=True, slots=True)
class Schema:
    """The ordered columns of a data set: geometry first, then targets (energy, forces, stress, others)."""

    targets: tuple[Field, ...] = (ENERGY, FORCES)

    def __post_init__(self) -> None:
        names = [field.name for field in self]
        repeated = sorted({name for name in names if names.count(name) > 1} | ({"natoms", "source_id"} & set(names)))
        if repeated:
            raise ManifestError(f"schema names {', '.join(repeated)} twice or uses a reserved name; rename the target")

    def __iter__(self) -> Iterator[Field]:
        return iter((*GEOMETRY_FIELDS, *self.targets))

    def __contains__(self, name: str) -> bool:
        return any(field.name == name for field in self)

    def __getitem__(self, name: str) -> Field:
        for field in self:
            if field.name == name:
                return field
        raise KeyError(name)

    @property
    def names(self) -> tuple[str, ...]:
        """All column names in storage order."""
        return tuple(field.name for field in self)

    def to_json(self) -> list[dict[str, Any]]:
        """Targets as plain dictionaries; the geometry fields are the same everywhere."""
        return [field.to_json() for field in self.targets]

    @classmethod
    def from_json(cls, entries: Iterable[Mapping[str, Any]]) -> Schema:
        """Inverse of `to_json`."""
        return cls(tuple(Field.from_json(entry) for entry in entries))
