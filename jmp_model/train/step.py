"""One optimiser step of the published recipe, in its exact order: run by the training loop and by the parity replay.

1. Forward in training mode, on each structure the heads of its task, which is all that its loss reads. 2. Loss over the
global batch. 3. Backward; every parameter gets a gradient. 4. Gradients of shared bases are divided. 5. Clipping.
6. AdamW. 7. Weight average. 8. The schedule moves on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from jmp_data.errors import JmpDataError
from jmp_model.train.ema import WeightAverage
from jmp_model.train.losses import Denominators, LossWeights, select_task, structure_losses, total_loss
from jmp_model.train.metrics import TaskSums, task_sums
from jmp_model.train.optimizer import divide_shared_gradients, fill_missing_gradients, set_learning_rate
from jmp_model.train.schedules import WarmupCosine
from jmp_model.train.targets import NormalizedTargets

Stage = Literal["backward", "divided", "clipped", "updated"]


class NonFiniteError(JmpDataError, FloatingPointError):
    """The loss or a gradient is NaN or infinite; nothing was updated."""


@dataclass(frozen=True)
class MicroBatch:
    """What one forward and backward pass reads.

    Attributes:
        inputs: batch with its four graphs, on the model's device.
        targets: normalised, on the same device.
    """

    inputs: Any
    targets: NormalizedTargets


@dataclass(frozen=True)
class StepReport:
    """What one optimiser step did, over all ranks; computed with the weights before the update.

    Attributes:
        step: number of the step, from 0.
        lr: learning rate applied.
        loss, energy_loss, force_loss: of the global batch.
        grad_norm: after the shared-basis division, before clipping.
        skipped: the loss scaler of 16-bit training found an overflow and left the weights alone.
        sums: per task.
    """

    step: int
    lr: float
    loss: float
    energy_loss: float
    force_loss: float
    grad_norm: float
    skipped: bool
    sums: TaskSums


class OptimizerStep:
    """Everything that takes part in a step; calling it does one.

    Args:
        fabric: device, precision, ranks.
        module: the bare model, whose parameters have their checkpoint names.
        forward: what to call for a forward pass: `module`, as set up by Fabric.
        bare_optimizer: holds the moments.
        optimizer: the same, as set up by Fabric.
        average: of the weights; updated after each step.
        schedule: step → learning rate.
        weights: of the loss, on the device.
        shared_divisors: parameter name → what its gradient is divided by.
        clip_norm: largest global gradient norm; infinity switches clipping off.
    """

    def __init__(
        self,
        *,
        fabric: Fabric,
        module: nn.Module,
        forward: nn.Module,
        bare_optimizer: torch.optim.Optimizer,
        optimizer: torch.optim.Optimizer,
        average: WeightAverage,
        schedule: WarmupCosine,
        weights: LossWeights,
        shared_divisors: dict[str, int],
        clip_norm: float = 1.0,
    ) -> None:
        self.fabric = fabric
        self.module = module
        self.forward = forward
        self.bare_optimizer = bare_optimizer
        self.optimizer = optimizer
        self.average = average
        self.schedule = schedule
        self.weights = weights
        self.shared_divisors = shared_divisors
        self.clip_norm = clip_norm

    def __call__(
        self, step: int, micro_batches: Sequence[MicroBatch], *, on_stage: Callable[[Stage], None] | None = None
    ) -> StepReport:
        """Do step number `step`.

        Args:
            step: from 0; picks the learning rate.
            micro_batches: this rank's share of the global batch; gradients add up over them.
            on_stage: told each stage when it is done, to look at gradients and weights.

        Raises:
            NonFiniteError: on all ranks alike, before anything was updated.
        """
        tell = on_stage if on_stage is not None else _ignore
        lr = self.schedule(step)
        set_learning_rate(self.optimizer, lr)
        sums = self._accumulate_gradients(micro_batches)
        tell("backward")
        divide_shared_gradients(self.module, self.shared_divisors)
        tell("divided")
        norm = self._clip_gradients()
        tell("clipped")
        report = self._report(step, lr, norm, sums)
        self._check_finite(report)
        self.optimizer.step()
        self.average.update(self.module)
        tell("updated")
        return report

    def _accumulate_gradients(self, micro_batches: Sequence[MicroBatch]) -> TaskSums:
        self.forward.train()
        denominators = self._denominators(micro_batches)
        self.optimizer.zero_grad()
        sums: TaskSums | None = None
        for index, micro in enumerate(micro_batches):
            waiting = index + 1 < len(micro_batches)
            with self.fabric.no_backward_sync(self.forward, enabled=waiting):
                found = self._backward(micro, denominators)
            sums = found if sums is None else sums + found
        if sums is None:
            raise ValueError("a step needs at least one micro-batch on every rank")
        fill_missing_gradients(self.module)
        return TaskSums(self._add_over_ranks(sums.values), sums.force_loss)

    def _denominators(self, micro_batches: Sequence[MicroBatch]) -> Denominators:
        structures = sum(micro.targets.num_structures for micro in micro_batches)
        atoms = sum(micro.targets.batch.shape[0] for micro in micro_batches)
        if self.fabric.world_size > 1:
            counts = torch.tensor([structures, atoms], dtype=torch.float64, device=self.fabric.device)
            structures, atoms = self._add_over_ranks(counts).tolist()
        return Denominators(structures, atoms)

    def _backward(self, micro: MicroBatch, denominators: Denominators) -> TaskSums:
        out = self.forward(micro.inputs, task_index=micro.targets.task)
        energy, forces = select_task(out.energy, out.forces, micro.targets)
        losses = structure_losses(energy, forces, micro.targets, self.weights)
        # Data-parallel strategies average gradients over ranks; the loss is a sum over ranks.
        share = total_loss(losses, denominators, self.weights.force_loss) * self.fabric.world_size
        self.fabric.backward(share)
        return task_sums(
            energy,
            forces,
            micro.targets,
            losses,
            num_tasks=out.energy.shape[1],
            force_loss=self.weights.force_loss,
        )

    def _clip_gradients(self) -> Tensor:
        norm = self.fabric.clip_gradients(
            self.forward, self.optimizer, max_norm=self.clip_norm, error_if_nonfinite=False
        )
        full: Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # sharded parameters
        return full

    def _report(self, step: int, lr: float, norm: Tensor, sums: TaskSums) -> StepReport:
        parts = torch.stack([sums.energy_loss_per_task().sum(), sums.force_loss_per_task().sum(), norm.double()])
        energy, force, grad_norm = parts.tolist()
        skipped = not math.isfinite(grad_norm) and self._scales_loss()
        return StepReport(step, lr, energy + force, energy, force, grad_norm, skipped, sums)

    def _check_finite(self, report: StepReport) -> None:
        if not math.isfinite(report.loss):
            raise NonFiniteError(
                f"step {report.step}: the loss is {report.loss} "
                f"(energy {report.energy_loss}, force {report.force_loss})"
            )
        if not math.isfinite(report.grad_norm) and not report.skipped:
            raise NonFiniteError(f"step {report.step}: the gradient norm is {report.grad_norm}, the loss {report.loss}")

    def _scales_loss(self) -> bool:
        return getattr(self.fabric.strategy.precision, "scaler", None) is not None

    def _add_over_ranks(self, values: Tensor) -> Tensor:
        if self.fabric.world_size == 1:
            return values
        reduced: Tensor = self.fabric.all_reduce(values, reduce_op="sum")
        return reduced


def _ignore(stage: Stage) -> None:
    del stage
