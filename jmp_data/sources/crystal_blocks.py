"""Crystals with their targets, gathered into blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jmp_data.schema import Block, Schema
from jmp_data.sources.pymatgen_json import Crystal

_CRYSTALS_PER_BLOCK = 1024
_ATOMS_PER_BLOCK = 65_536


@dataclass(slots=True)
class CrystalGatherer:
    """Gathers crystals; every target of the schema is a number, for each crystal or for each of its atoms.

    Attributes:
        schema: targets.
    """

    schema: Schema
    _crystals: list[Crystal] = field(default_factory=list)
    _targets: list[Mapping[str, Any]] = field(default_factory=list)
    _source_ids: list[bytes] = field(default_factory=list)
    _num_atoms: int = 0

    def add(self, crystal: Crystal, targets: Mapping[str, Any], source_id: str) -> Iterator[Block]:
        """Take a crystal in, with all targets of the schema by name; yields a block when there are enough."""
        self._crystals.append(crystal)
        self._targets.append(targets)
        self._source_ids.append(source_id.encode())
        self._num_atoms += len(crystal.atomic_numbers)
        if len(self._crystals) == _CRYSTALS_PER_BLOCK or self._num_atoms >= _ATOMS_PER_BLOCK:
            yield from self.flush()

    def flush(self) -> Iterator[Block]:
        """The block of what is left."""
        if not self._crystals:
            return
        columns = {
            "atomic_numbers": np.concatenate([crystal.atomic_numbers for crystal in self._crystals]),
            "positions": np.concatenate([crystal.positions for crystal in self._crystals]),
            "cell": np.stack([crystal.cell for crystal in self._crystals]),
            "pbc": np.stack([crystal.pbc for crystal in self._crystals]),
        }
        for target in self.schema.targets:
            values = [targets[target.name] for targets in self._targets]
            columns[target.name] = np.concatenate(values) if target.level == "atom" else np.array(values, target.dtype)
        natoms = np.array([len(crystal.atomic_numbers) for crystal in self._crystals])
        yield Block.from_columns(self.schema, natoms, np.array(self._source_ids), columns)
        self._crystals, self._targets, self._source_ids, self._num_atoms = [], [], [], 0
