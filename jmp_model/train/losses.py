"""The pre-training loss, kept as sums over structures, so that ranks and micro-batches of unequal size add up exactly.

The mean over a global batch is taken once, by the optimiser step: the sums of all micro-batches of all ranks, divided
by the number of structures (or atoms) in all of them.

Shapes: B structures, N atoms, T tasks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from jmp_model.gemnet_oc.ragged import sum_by_group
from jmp_model.train.targets import NormalizedTargets

ForceLoss = Literal["structurewise", "atomwise"]

DISTANCE_EPS = 1e-6
"""Added to each component of prediction − target, as torch's pairwise distance does."""


@dataclass(frozen=True)
class LossWeights:
    """Coefficients of the loss.

    Attributes:
        energy: (T,) λ of the energy term.
        force: (T,) λ of the force term.
        force_loss: "structurewise" averages over the atoms of each structure first, then over structures; "atomwise"
            averages over all atoms at once.
    """

    energy: Tensor
    force: Tensor
    force_loss: ForceLoss = "structurewise"

    def to(self, device: torch.device) -> LossWeights:
        """Copy to a device."""
        return LossWeights(self.energy.to(device), self.force.to(device), self.force_loss)


@dataclass(frozen=True)
class StructureLosses:
    """Loss terms of each structure, in normalised units, λ included.

    Attributes:
        energy: (B,) λ_E·|Ê − E|.
        force_sum: (B,) Σ over the atoms of λ_F·‖F̂ − F‖.
        force: (B,) what each structure adds to the numerator of the force loss.
    """

    energy: Tensor
    force_sum: Tensor
    force: Tensor


@dataclass(frozen=True)
class Denominators:
    """What the sums are divided by: numbers of structures and atoms in the whole global batch."""

    structures: float
    atoms: float

    def of_force(self, force_loss: ForceLoss) -> float:
        """The denominator of the force loss."""
        return self.structures if force_loss == "structurewise" else self.atoms


def select_task(energy: Tensor, forces: Tensor, targets: NormalizedTargets) -> tuple[Tensor, Tensor]:
    """Pick each structure's own head from the outputs of all heads.

    Args:
        energy: (B, T).
        forces: (N, 3, T).
        targets: tells the task of each structure and the structure of each atom.

    Returns:
        (B,) and (N, 3).
    """
    task = targets.task
    of_atom = task[targets.batch][:, None, None].expand(-1, 3, 1)
    return energy.gather(1, task[:, None]).squeeze(1), forces.gather(2, of_atom).squeeze(2)


def structure_losses(
    energy: Tensor, forces: Tensor, targets: NormalizedTargets, weights: LossWeights
) -> StructureLosses:
    """Loss terms of each structure; fixed atoms count like all others.

    Args:
        energy: (B,) prediction of the right head, normalised.
        forces: (N, 3) likewise.
        targets: what they should be.
        weights: λ per task, and how forces are averaged.
    """
    energy_loss = weights.energy[targets.task] * (energy - targets.energy).abs()
    distance = (forces - targets.forces + DISTANCE_EPS).norm(dim=-1)
    force_sum = weights.force[targets.task] * sum_by_group(distance, targets.batch, targets.num_structures)
    force = force_sum / targets.natoms if weights.force_loss == "structurewise" else force_sum
    return StructureLosses(energy_loss, force_sum, force)


def total_loss(losses: StructureLosses, denominators: Denominators, force_loss: ForceLoss) -> Tensor:
    """This micro-batch's share of the loss of the global batch, a scalar."""
    energy = losses.energy.sum() / denominators.structures
    return energy + losses.force.sum() / denominators.of_force(force_loss)
