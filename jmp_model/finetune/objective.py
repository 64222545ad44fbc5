"""Loss and errors of a batch in fine-tuning: targets normalised, outputs compared, sums kept so that parts add up.

Shapes: B structures, N atoms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from jmp_model.finetune.model import head_name
from jmp_model.finetune.scales import TargetScale
from jmp_model.finetune.tasks import TargetSpec, TaskSpec
from jmp_model.gemnet_oc.ragged import sum_by_group
from jmp_model.train.losses import DISTANCE_EPS

ForceLoss = Literal["structurewise", "atomwise"]


@dataclass(frozen=True)
class BatchTargets:
    """Targets of a batch on the device.

    Attributes:
        values: target → normalised values, (B,) or (N, 3); classes as int64; NaN or −1 where there is none.
            Infinity is no missing label: it makes the loss infinite, which ends the run.
        batch: (N,) structure of each atom.
        natoms: (B,).
        free: (N,) atoms that count in force errors.
    """

    values: Mapping[str, Tensor]
    batch: Tensor
    natoms: Tensor
    free: Tensor

    def to(self, device: torch.device) -> BatchTargets:
        """Copy to a device."""
        values = {name: value.to(device) for name, value in self.values.items()}
        return BatchTargets(values, self.batch.to(device), self.natoms.to(device), self.free.to(device))


@dataclass
class Sums:
    """Numerators and denominators, by target; they add up over batches and ranks.

    Attributes:
        values: target → (4,) float64: Σ loss terms, their number, Σ errors in the unit of the data set, their number;
            for a class target the errors are (classes, 2): correct, and all, of each class, flattened.
    """

    values: dict[str, Tensor]

    def add(self, other: Sums) -> None:
        """Add another batch."""
        for name, value in other.values.items():
            self.values[name] = self.values[name] + value if name in self.values else value

    def loss(self, name: str) -> float:
        """Mean loss term of a target; 0 where there was none."""
        total, count = self.values[name][:2].tolist()
        return float(total / count) if count else 0.0

    def metric(self, name: str, target: TargetSpec) -> float:
        """MAE in report units, or balanced accuracy; NaN where there was no target."""
        if target.kind == "class":
            correct, count = self.values[name][2:].view(-1, 2).T
            seen = count > 0
            return float((correct[seen] / count[seen]).mean()) if seen.any() else float("nan")
        total, count = self.values[name][2:].tolist()
        return float(total / count) * target.report_scale if count else float("nan")


class Objective:
    """Compares outputs with targets.

    Args:
        task: targets and coefficients.
        scales: constants of each target.
        force_loss: how forces are averaged.
        dtype: of normalised targets.
    """

    def __init__(
        self,
        task: TaskSpec,
        scales: Mapping[str, TargetScale],
        *,
        force_loss: ForceLoss = "atomwise",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.task = task
        self.scales = dict(scales)
        self.force_loss = force_loss
        self.dtype = dtype

    def targets(self, batch: Any) -> BatchTargets:
        """Normalise the labels of a batch, on the CPU in float64; a target without labels is left out."""
        index = batch.batch.long()
        values = {}
        for name, target in self.task.targets.items():
            column = self.task.column(name)
            if column in batch:
                values[name] = self._normalized(batch, name, target, batch[column], index)
        return BatchTargets(values, index, batch.natoms.long(), ~batch.fixed.bool())

    def _normalized(self, batch: Any, name: str, target: TargetSpec, label: Tensor, index: Tensor) -> Tensor:
        scale = self.scales[name]
        if target.kind == "class":
            return label.long().view(-1)
        if target.kind == "forces":
            return (label.double() / scale.std).to(self.dtype)
        offset = scale.offset(batch.atomic_numbers.long(), index, batch.natoms.shape[0])
        return ((label.double().view(-1) - offset) / scale.std).to(self.dtype)

    def outputs(self, out: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs by target, in the normalised units of each."""
        found = {}
        for name, target in self.task.targets.items():
            value = out[head_name(name, target)]
            if target.kind == "forces" and self.task.forces == "gradient":
                value = value * self._gradient_scale()
            found[name] = value
        return found

    def physical(self, outputs: Mapping[str, Tensor], batch: Any) -> dict[str, Tensor]:
        """Outputs of `outputs` in the unit of the data set, float64 on the CPU; logits stay as they are.

        Args:
            outputs: normalised, by target.
            batch: that they belong to.
        """
        found = {}
        for name, value in outputs.items():
            target, scale = self.task.targets[name], self.scales[name]
            value = value.detach().cpu()
            if target.kind != "class":
                value = value.double() * scale.std
            if target.kind not in ("class", "forces"):
                numbers, index = batch.atomic_numbers.long().cpu(), batch.batch.long().cpu()
                value = value + scale.offset(numbers, index, batch.natoms.shape[0])
            found[name] = value
        return found

    def _gradient_scale(self) -> float:
        """−∂output/∂x in units of the force std: the head's output is energy in units of the energy std."""
        stds = {self.task.targets[name].kind: scale.std for name, scale in self.scales.items()}
        return stds["energy"] / stds["forces"]

    def loss(
        self, out: Mapping[str, Tensor], targets: BatchTargets, counts: Mapping[str, float]
    ) -> tuple[Tensor, Sums]:
        """This batch's share of the loss, and the sums of its terms and errors.

        Args:
            out: model outputs.
            targets: of the batch.
            counts: target → number of loss terms in the whole global batch.

        Returns:
            Scalar Σ_targets coefficient × Σ terms / count; and sums, detached.
        """
        outputs = self.outputs(out)
        total = torch.zeros((), dtype=torch.float32, device=targets.batch.device)
        sums = {}
        for name, target in self.task.targets.items():
            if name not in targets.values:
                continue
            terms, term_count, errors = self._compare(name, target, outputs[name], targets)
            if target.coefficient > 0.0 and counts.get(name):
                total = total + target.coefficient * terms / counts[name]
            elif not total.requires_grad:
                total = total + 0.0 * outputs[name].sum()  # nothing to learn here, but something to go back through
            head = torch.stack([terms.detach().double(), term_count.double()])
            sums[name] = torch.cat([head, errors.detach().double()])
        return total, Sums(sums)

    def total(self, sums: Sums) -> float:
        """The loss of the batches in `sums`."""
        targets = self.task.targets.items()
        return sum(target.coefficient * sums.loss(name) for name, target in targets if name in sums.values)

    def metrics(self, sums: Sums) -> dict[str, float]:
        """Target → MAE in report units, or balanced accuracy."""
        return {n: sums.metric(n, target) for n, target in self.task.targets.items() if n in sums.values}

    def _compare(
        self, name: str, target: TargetSpec, output: Tensor, targets: BatchTargets
    ) -> tuple[Tensor, Tensor, Tensor]:
        value = targets.values[name]
        if target.kind == "class":
            return _compare_classes(target, output, value)
        if target.kind == "forces":
            return self._compare_forces(output, value, targets, self.scales[name].std)
        known = ~torch.isnan(value)
        error = (output - value)[known].abs()
        number = known.sum()
        return error.sum(), number, torch.stack([error.double().sum() * self.scales[name].std, number.double()])

    def _compare_forces(
        self, output: Tensor, value: Tensor, targets: BatchTargets, std: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        known = ~torch.isnan(value).any(dim=-1)
        value = torch.where(known[:, None], value, output.detach())
        distance = (output - value + DISTANCE_EPS).norm(dim=-1) * known
        if self.force_loss == "structurewise":
            of_structure = sum_by_group(distance, targets.batch, targets.natoms.shape[0])
            labelled = sum_by_group(known.to(distance.dtype), targets.batch, targets.natoms.shape[0])
            terms, number = (of_structure / labelled.clamp(min=1)).sum(), (labelled > 0).sum()
        else:
            terms, number = distance.sum(), known.sum()
        counted = (known & targets.free).double()
        error = ((output - value).double().abs().sum(dim=-1) * counted).sum() * std
        return terms, number, torch.stack([error, 3.0 * counted.sum()])

    def counts(self, targets: BatchTargets) -> dict[str, float]:
        """Target → number of loss terms in a batch, known before the forward pass."""
        found = {}
        for name, value in targets.values.items():
            kind = self.task.targets[name].kind
            if kind == "class":
                found[name] = float((value >= 0).sum())
            elif kind != "forces":
                found[name] = float(~torch.isnan(value).sum())
            else:
                known = ~torch.isnan(value).any(dim=-1)
                if self.force_loss == "atomwise":
                    found[name] = float(known.sum())
                else:
                    found[name] = float(torch.unique(targets.batch[known]).numel())
        return found


def _compare_classes(target: TargetSpec, output: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted cross-entropy; correct and all structures of each class."""
    known = value >= 0
    output, value = output[known], value[known]
    weights = output.new_tensor(target.class_weights or [1.0] * target.num_classes)
    if target.num_classes == 2:
        terms = binary_cross_entropy_with_logits(output, value.to(output.dtype), weight=weights[value], reduction="sum")
        chosen = (output > 0).long()
    else:
        terms = cross_entropy(output, value, weight=weights, reduction="sum")
        chosen = output.argmax(dim=-1)
    per_class = torch.zeros(target.num_classes, 2, dtype=torch.float64, device=output.device)
    per_class[:, 0].index_add_(0, value, (chosen == value).double())
    per_class[:, 1].index_add_(0, value, torch.ones_like(value, dtype=torch.float64))
    return terms, known.sum(), per_class.flatten()
