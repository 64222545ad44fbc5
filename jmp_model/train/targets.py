"""What the heads are trained on: energies relative to element references, and forces, in units of each task's spread.

Energies of structures are 1e2 to 1e5 eV and their references nearly as large, so the subtraction is done in float64 and
only the difference is cast to the model's precision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jmp_data.errors import ManifestError

NUM_ELEMENTS = 121
"""Length of a reference table: it is indexed by atomic number, 1 to 120 as the embeddings."""


@dataclass(frozen=True)
class TaskNormalizer:
    """Reference and scale of one task: target = (E − Σ reference_Z − energy_mean) / energy_std and F / force_std.

    Attributes:
        task: name of the task.
        reference: atomic number → eV; elements that are missing count 0.
        energy_mean: eV; 0 in the published recipe, whose references leave next to nothing.
        energy_std: eV.
        force_std: eV/Å.
        origin: where the numbers come from, for people.
    """

    task: str
    reference: Mapping[int, float]
    energy_std: float
    force_std: float
    energy_mean: float = 0.0
    origin: str = ""

    def __post_init__(self) -> None:
        for name in ("energy_std", "force_std"):
            value = getattr(self, name)
            if not 0.0 < value < float("inf"):
                raise ManifestError(
                    f"task {self.task}: {name} is {value}; normalising needs a positive number: "
                    "the training split must hold more than one structure, with labels that vary"
                )

    def to_json(self) -> dict[str, Any]:
        """JSON-ready; `from_json` reads it back."""
        return {
            "task": self.task,
            "reference": {str(z): value for z, value in sorted(self.reference.items())},
            "energy_mean": self.energy_mean,
            "energy_std": self.energy_std,
            "force_std": self.force_std,
            "origin": self.origin,
        }

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> TaskNormalizer:
        """Inverse of `to_json`."""
        return cls(**{**entry, "reference": {int(z): float(value) for z, value in entry["reference"].items()}})


@dataclass(frozen=True)
class NormalizedTargets:
    """Targets of a batch with all that the loss and the metrics need.

    Attributes:
        energy: (B,) normalised.
        forces: (N, 3) normalised.
        task: (B,) int64 index of the task.
        batch: (N,) int64 structure of each atom.
        natoms: (B,) int64.
        free: (N,) bool, atoms that count in force metrics.
        energy_std: (B,) eV.
        force_std: (B,) eV/Å.
    """

    energy: Tensor
    forces: Tensor
    task: Tensor
    batch: Tensor
    natoms: Tensor
    free: Tensor
    energy_std: Tensor
    force_std: Tensor

    @property
    def num_structures(self) -> int:
        """B."""
        return self.natoms.shape[0]

    def to(self, device: torch.device) -> NormalizedTargets:
        """Copy to a device."""
        return NormalizedTargets(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


class TargetNormalizer:
    """Normalises the labels of a mixed batch, each structure by the constants of its own task."""

    def __init__(self, tasks: Sequence[TaskNormalizer]) -> None:
        self.tasks = tuple(tasks)
        table = np.zeros((len(self.tasks), NUM_ELEMENTS))
        for row, task in zip(table, self.tasks, strict=True):
            row[list(task.reference)] = list(task.reference.values())
        self._reference = torch.from_numpy(table)
        self._mean = torch.tensor([task.energy_mean for task in self.tasks], dtype=torch.float64)
        self._energy_std = torch.tensor([task.energy_std for task in self.tasks], dtype=torch.float64)
        self._force_std = torch.tensor([task.force_std for task in self.tasks], dtype=torch.float64)

    def normalize(
        self, batch: Any, *, task: Tensor | None = None, dtype: torch.dtype | None = None
    ) -> NormalizedTargets:
        """Targets of a batch; both are on the CPU, which has float64 wherever the model runs.

        Args:
            batch: `torch_geometric` batch with energy (B,) float64 eV, forces (N, 3) eV/Å, atomic_numbers, batch,
                natoms and fixed; `dataset_index` (B,) names the task unless `task` does.
            task: (B,) overrides `batch.dataset_index`, for a batch of a single data set.
            dtype: of the result; the default dtype where not given.
        """
        task = (batch.dataset_index if task is None else task).long().view(-1)
        index = batch.batch.long()
        energy = (
            batch.energy.double().view(-1) - self.reference_energy(batch.atomic_numbers, index, task) - self._mean[task]
        )
        energy_std, force_std = self._energy_std[task], self._force_std[task]
        dtype = torch.get_default_dtype() if dtype is None else dtype
        return NormalizedTargets(
            energy=(energy / energy_std).to(dtype),
            forces=(batch.forces.double() / force_std[index][:, None]).to(dtype),
            task=task,
            batch=index,
            natoms=batch.natoms.long().view(-1),
            free=~batch.fixed.bool().view(-1),
            energy_std=energy_std,
            force_std=force_std,
        )

    def reference_energy(self, atomic_numbers: Tensor, batch: Tensor, task: Tensor) -> Tensor:
        """(B,) float64 sum of element references, eV."""
        of_atom = self._reference[task[batch], atomic_numbers.long().view(-1)]
        return torch.zeros(task.shape[0], dtype=torch.float64, device=of_atom.device).index_add_(0, batch, of_atom)
