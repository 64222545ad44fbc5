"""Sums per task from which losses and errors follow; they add up over batches and ranks, and divide only at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jmp_model.train.losses import ForceLoss, StructureLosses
from jmp_model.train.targets import NormalizedTargets

_COLUMNS = (
    "structures", "atoms", "energy_loss", "force_loss", "force_loss_atoms", "energy_error", "force_error",
    "free_components",
)  # fmt: skip


@dataclass(frozen=True)
class TaskSums:
    """Sums over some structures, one row per task.

    Attributes:
        values: (T, 8) float64: structures, atoms; Σ of the loss terms of structures (energy; force as the loss
            counts it; force over atoms); Σ|ΔE| in eV; Σ|ΔF| over components of free atoms in eV/Å, and their number.
        force_loss: how forces are averaged.
    """

    values: Tensor
    force_loss: ForceLoss

    @classmethod
    def zeros(cls, num_tasks: int, force_loss: ForceLoss, device: torch.device) -> TaskSums:
        """No structure yet."""
        return cls(torch.zeros(num_tasks, len(_COLUMNS), dtype=torch.float64, device=device), force_loss)

    def __add__(self, other: TaskSums) -> TaskSums:
        return TaskSums(self.values + other.values, self.force_loss)

    def column(self, name: str) -> Tensor:
        """(T,) one of the sums."""
        return self.values[:, _COLUMNS.index(name)]

    def energy_loss_per_task(self) -> Tensor:
        """(T,) contribution of each task to the energy loss; adds up to it."""
        return self.column("energy_loss") / self.column("structures").sum()

    def force_loss_per_task(self) -> Tensor:
        """(T,) contribution of each task to the force loss; adds up to it."""
        count = "structures" if self.force_loss == "structurewise" else "atoms"
        return self.column("force_loss") / self.column(count).sum()

    def mean_energy_loss(self) -> Tensor:
        """(T,) mean over each task's own structures; 0 for an absent task."""
        return self.column("energy_loss") / self.column("structures").clamp(min=1)

    def mean_force_loss(self) -> Tensor:
        """(T,) mean over each task's own atoms, whichever way the loss averages; 0 for an absent task."""
        return self.column("force_loss_atoms") / self.column("atoms").clamp(min=1)

    def energy_mae(self) -> Tensor:
        """(T,) eV per structure; NaN for an absent task."""
        return self.column("energy_error") / self.column("structures")

    def force_mae(self) -> Tensor:
        """(T,) eV/Å over components of free atoms; NaN where there are none."""
        return self.column("force_error") / self.column("free_components")

    def by_task(self, tasks: Sequence[str]) -> dict[str, dict[str, float]]:
        """Errors of the tasks that occurred, JSON-ready."""
        energy, force = self.energy_mae().tolist(), self.force_mae().tolist()
        count = self.column("structures").tolist()
        return {
            task: {"energy_mae": energy[i], "force_mae": force[i], "structures": int(count[i])}
            for i, task in enumerate(tasks)
            if count[i]
        }


@torch.no_grad()
def task_sums(
    energy: Tensor,
    forces: Tensor,
    targets: NormalizedTargets,
    losses: StructureLosses,
    *,
    num_tasks: int,
    force_loss: ForceLoss,
) -> TaskSums:
    """Sums of one batch.

    Args:
        energy: (B,) normalised prediction.
        forces: (N, 3) normalised prediction.
        targets: normalised targets.
        losses: their loss terms.
        num_tasks: T.
        force_loss: how forces are averaged.
    """
    free = targets.free.double()
    error = (forces - targets.forces).double().abs().sum(-1) * targets.force_std[targets.batch] * free
    of_structure = torch.zeros(2, targets.num_structures, dtype=torch.float64, device=energy.device)
    of_structure.index_add_(1, targets.batch, torch.stack([error, 3.0 * free]))
    columns = [
        torch.ones_like(targets.energy_std),
        targets.natoms,
        losses.energy,
        losses.force,
        losses.force_sum,
        (energy - targets.energy).double().abs() * targets.energy_std,
        of_structure[0],
        of_structure[1],
    ]
    sums = TaskSums.zeros(num_tasks, force_loss, energy.device)
    sums.values.index_add_(0, targets.task, torch.stack([c.detach().double() for c in columns], dim=1))
    return sums
