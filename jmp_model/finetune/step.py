"""One optimiser step of fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from jmp_model.finetune.objective import BatchTargets, Objective, Sums
from jmp_model.train.ema import WeightAverage
from jmp_model.train.optimizer import divide_shared_gradients, fill_missing_gradients
from jmp_model.train.step import NonFiniteError


@dataclass(frozen=True)
class MicroBatch:
    """What one forward and backward pass reads, on the device."""

    inputs: Any
    targets: BatchTargets


@dataclass(frozen=True)
class StepReport:
    """What a step did, over all ranks; computed with the weights before the update.

    Attributes:
        step: number of the step, from 0.
        lr: largest rate of all groups.
        loss: of the global batch.
        sums: by target.
        skipped: the loss scaler found an overflow and left the weights alone.
    """

    step: int
    lr: float
    loss: float
    sums: Sums
    skipped: bool


@dataclass
class FineTuneStep:
    """Everything that takes part in a step; calling it does one.

    Attributes:
        fabric: device, precision, ranks.
        module: the bare model.
        forward: the same, as set up by Fabric.
        bare_optimizer: one parameter group per group of layers.
        optimizer: the same, as set up by Fabric.
        objective: loss.
        clip_value: largest gradient component, or None.
        clip_norm: largest global gradient norm, or None.
        shared_divisors: parameter name → what its gradient is divided by.
        average: weight average, or None.
    """

    fabric: Fabric
    module: nn.Module
    forward: nn.Module
    bare_optimizer: torch.optim.Optimizer
    optimizer: torch.optim.Optimizer
    objective: Objective
    clip_value: float | None
    clip_norm: float | None
    shared_divisors: Mapping[str, int]
    average: WeightAverage | None

    def __call__(self, step: int, micro_batches: Sequence[MicroBatch], rates: Sequence[float]) -> StepReport:
        """Do step number `step` with the given rate of each parameter group.

        Raises:
            NonFiniteError: on all ranks alike, before anything was updated.
        """
        for group, rate in zip(self.bare_optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        sums = self._accumulate_gradients(micro_batches)
        loss = self.objective.total(sums)
        divide_shared_gradients(self.module, self.shared_divisors)
        finite = self._clip_gradients()
        skipped = not finite and getattr(self.fabric.strategy.precision, "scaler", None) is not None
        if not math.isfinite(loss) or not (finite or skipped):
            which = "" if finite else " not"
            raise NonFiniteError(f"step {step}: the loss is {loss}, gradients are{which} finite")
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.module)
        return StepReport(step, max(rates), loss, sums, skipped)

    def _accumulate_gradients(self, micro_batches: Sequence[MicroBatch]) -> Sums:
        self.forward.train()
        counts = self._counts(micro_batches)
        self.optimizer.zero_grad()
        sums = Sums({})
        for index, micro in enumerate(micro_batches):
            waiting = index + 1 < len(micro_batches)
            with self.fabric.no_backward_sync(self.forward, enabled=waiting):
                share, found = self.objective.loss(self.forward(micro.inputs), micro.targets, counts)
                self.fabric.backward(share * self.fabric.world_size)
            sums.add(found)
        fill_missing_gradients(self.module)
        return add_over_ranks(self.fabric, sums)

    def _counts(self, micro_batches: Sequence[MicroBatch]) -> dict[str, float]:
        total: dict[str, float] = {}
        for micro in micro_batches:
            for name, count in self.objective.counts(micro.targets).items():
                total[name] = total.get(name, 0.0) + count
        if self.fabric.world_size == 1:
            return total
        values = torch.tensor(list(total.values()), dtype=torch.float64, device=self.fabric.device)
        return dict(zip(total, self.fabric.all_reduce(values, reduce_op="sum").tolist(), strict=True))

    def _clip_gradients(self) -> bool:
        """Clip; whether all gradients are finite."""
        norm = self.fabric.clip_gradients(
            self.forward, self.optimizer, max_norm=self.clip_norm or math.inf, error_if_nonfinite=False
        )
        if self.clip_value is not None:
            # After unscaling, which the norm has done: Fabric would unscale 16-bit gradients a second time.
            torch.nn.utils.clip_grad_value_(list(self.module.parameters()), self.clip_value)
        return bool(torch.isfinite(norm))


def add_over_ranks(fabric: Fabric, sums: Sums) -> Sums:
    """Add sums of all ranks; collective, with the same targets on each."""
    if fabric.world_size == 1:
        return sums
    return Sums({name: fabric.all_reduce(value, reduce_op="sum") for name, value in sums.values.items()})
