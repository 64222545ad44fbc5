"""Mergeable sums over blocks: element counts, the normal equations of the linear reference, force moments, sizes.

Everything that the references and the manifest need is a sum, so parts add up in any grouping; they are merged in plan
order, which makes the floating-point result independent of the number of workers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from jmp_data.schema import Block

NUM_ELEMENTS = 119
_SUMS = (
    *("structures", "atoms", "element_atoms", "element_structures", "with_energy", "energy_sum", "energy_square"),
    *("energy_atoms", "gram", "moment", "force_components", "force_square"),
)


def composition_matrix(block: Block) -> npt.NDArray[np.float64]:
    """(n, 119) atoms of each element per structure; column Z."""
    owner = np.repeat(np.arange(len(block)), block.natoms)
    flat = np.bincount(owner * NUM_ELEMENTS + block.atomic_numbers, minlength=len(block) * NUM_ELEMENTS)
    return flat.reshape(len(block), NUM_ELEMENTS).astype(np.float64)


class StatisticsAccumulator:
    """Sums over structures; `add` blocks, `merge` accumulators."""

    def __init__(self) -> None:
        self.structures = 0
        self.atoms = 0
        self.min_atoms = 0
        self.max_atoms = 0
        self.element_atoms = np.zeros(NUM_ELEMENTS, np.int64)
        self.element_structures = np.zeros(NUM_ELEMENTS, np.int64)
        self.with_energy = 0
        self.energy_sum = 0.0
        self.energy_square = 0.0
        self.energy_atoms = np.zeros(NUM_ELEMENTS, np.int64)
        self.gram = np.zeros((NUM_ELEMENTS, NUM_ELEMENTS))
        self.moment = np.zeros(NUM_ELEMENTS)
        self.force_components = 0
        self.force_square = 0.0
        self.force_max = 0.0

    def add(self, block: Block) -> None:
        """Add the structures of a block; NaN energies and forces do not count."""
        if len(block) == 0:
            return
        counts = composition_matrix(block)
        low, high = int(block.natoms.min()), int(block.natoms.max())
        self.min_atoms = low if self.structures == 0 else min(self.min_atoms, low)
        self.max_atoms = max(self.max_atoms, high)
        self.structures += len(block)
        self.atoms += block.num_atoms
        self.element_atoms += counts.sum(axis=0).astype(np.int64)
        self.element_structures += (counts > 0).sum(axis=0)
        if "energy" in block.columns:
            self._add_energies(counts, block.energy)
        if "forces" in block.columns:
            self._add_forces(block.forces.astype(np.float64))

    def _add_energies(self, counts: npt.NDArray[np.float64], energy: npt.NDArray[np.float64]) -> None:
        known = np.isfinite(energy)
        counts, energy = counts[known], energy[known]
        self.with_energy += int(known.sum())
        self.energy_sum += float(energy.sum())
        self.energy_square += float(energy @ energy)
        # Of 119 elements a block holds few, and the products of all take longer than everything else here.
        present = np.flatnonzero(counts.any(axis=0))
        counts = counts[:, present]
        self.energy_atoms[present] += counts.sum(axis=0).astype(np.int64)
        self.gram[np.ix_(present, present)] += counts.T @ counts
        self.moment[present] += counts.T @ energy

    def _add_forces(self, forces: npt.NDArray[np.float64]) -> None:
        finite = np.isfinite(forces)
        known = forces if finite.all() else forces[finite.all(axis=1)]
        self.force_components += known.size
        self.force_square += float(np.einsum("ij,ij->", known, known))
        if len(known):
            self.force_max = max(self.force_max, float(np.sqrt(np.einsum("ij,ij->i", known, known).max())))

    def merge(self, other: StatisticsAccumulator) -> None:
        """Add another accumulator's sums."""
        if other.structures:
            self.min_atoms = min(self.min_atoms, other.min_atoms) if self.structures else other.min_atoms
        self.max_atoms = max(self.max_atoms, other.max_atoms)
        self.force_max = max(self.force_max, other.force_max)
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def to_json(self) -> dict[str, Any]:
        """Exact sums as plain JSON, restricted to the elements present."""
        present = np.flatnonzero(self.element_atoms)
        entry: dict[str, Any] = {name: value for name, value in vars(self).items() if not isinstance(value, np.ndarray)}
        return entry | {
            "elements": present.tolist(),
            "element_atoms": self.element_atoms[present].tolist(),
            "element_structures": self.element_structures[present].tolist(),
            "energy_atoms": self.energy_atoms[present].tolist(),
            "gram": self.gram[np.ix_(present, present)].tolist(),
            "moment": self.moment[present].tolist(),
        }

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> StatisticsAccumulator:
        """Inverse of `to_json`."""
        total = cls()
        present = np.asarray(entry["elements"], int)
        for name, value in entry.items():
            if name == "gram":
                total.gram[np.ix_(present, present)] = np.asarray(value).reshape(len(present), len(present))
            elif name in ("element_atoms", "element_structures", "energy_atoms", "moment"):
                getattr(total, name)[present] = value
            elif name != "elements":
                setattr(total, name, value)
        return total

    def summary(self) -> dict[str, Any]:
        """The counts and sizes for people, as the manifest shows them."""
        from ase.data import chemical_symbols

        present = np.flatnonzero(self.element_atoms)
        return {
            "atoms_per_structure": {
                "min": self.min_atoms,
                "max": self.max_atoms,
                "mean": self.atoms / max(1, self.structures),
            },
            "elements": {
                chemical_symbols[z]: {
                    "atoms": int(self.element_atoms[z]),
                    "structures": int(self.element_structures[z]),
                }
                for z in present
            },
            "max_force": self.force_max,
        }
