"""Predictions of a model on a whole split, in physical units, and their errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from jmp_data import ShardDataset
from jmp_model.finetune.data import stream, with_graphs
from jmp_model.finetune.objective import Objective
from jmp_model.finetune.scales import count_elements
from jmp_model.finetune.tasks import TargetSpec
from jmp_model.model import FineTuningModel

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class SplitPredictions:
    """Labels and predictions of n structures with N atoms in all, in the order of the split.

    Attributes:
        truth: target → (n,) or (N, 3), in the unit of the data set; NaN where there is none.
        predicted: the same; logits for classes.
        natoms: (n,).
        atomic_numbers: (N,).
        free: (N,) atoms that count in force errors.
        index: (n,) structure of the data set.
        reference: target → (n,) Σ element references of each structure + mean, for targets that have some.
    """

    truth: Mapping[str, Array]
    predicted: Mapping[str, Array]
    natoms: Array
    atomic_numbers: Array
    free: Array
    index: Array
    reference: Mapping[str, Array] = field(default_factory=dict)

    def relative(self, values: Array, name: str) -> Array:
        """Values of a target, (n,) or (N, 3), without their element references."""
        return values - self.reference[name] if name in self.reference else values

    def element_counts(self) -> Array:
        """(n, elements) how many atoms of each element each structure has."""
        return count_elements(self.atomic_numbers, self.natoms)

    @property
    def structure_of_atom(self) -> Array:
        """(N,) row of each atom's structure."""
        return np.repeat(np.arange(len(self.natoms)), self.natoms)


@torch.no_grad()
def predict_split(
    module: FineTuningModel,
    objective: Objective,
    dataset: ShardDataset,
    *,
    batch_size: int,
    first: int | None = None,
    device: torch.device | str = "cpu",
) -> SplitPredictions:
    """Evaluate a model on a split.

    Args:
        module: on the device.
        objective: task and scales.
        dataset: split.
        batch_size: structures per pass.
        first: only the first so many structures.
        device: where to compute.
    """
    module.eval()
    truth: dict[str, list[Array]] = {}
    predicted: dict[str, list[Array]] = {}
    reference: dict[str, list[Array]] = {}
    rows: dict[str, list[Array]] = {"natoms": [], "atomic_numbers": [], "free": [], "index": []}
    batches = stream(dataset, objective.task, batch_size=batch_size, first=first, shuffle=False)
    for batch in with_graphs(batches, objective.task.graph):
        outputs = objective.physical(objective.outputs(module(batch.clone().to(device))), batch)
        for name, value in outputs.items():
            column = objective.task.column(name)
            predicted.setdefault(name, []).append(value.cpu().numpy())
            label = batch[column].cpu().numpy() if column in batch else np.full(value.shape, np.nan)
            truth.setdefault(name, []).append(label.reshape(value.shape))
        for name, scale in objective.scales.items():
            if scale.reference and name in outputs:
                offset = scale.offset(batch.atomic_numbers.long(), batch.batch.long(), batch.natoms.shape[0])
                reference.setdefault(name, []).append(offset.numpy())
        rows["natoms"].append(batch.natoms.cpu().numpy())
        rows["atomic_numbers"].append(batch.atomic_numbers.cpu().numpy())
        rows["free"].append(~batch.fixed.bool().cpu().numpy())
        rows["index"].append(batch.structure_index.cpu().numpy())
    joined = {name: np.concatenate(parts) for name, parts in rows.items()}
    return SplitPredictions(
        {name: np.concatenate(parts) for name, parts in truth.items()},
        {name: np.concatenate(parts) for name, parts in predicted.items()},
        **joined,
        reference={name: np.concatenate(parts) for name, parts in reference.items()},
    )


def score(predictions: SplitPredictions, name: str, target: TargetSpec) -> float:
    """MAE in report units, or balanced accuracy; NaN where there are no labels."""
    truth, predicted = predictions.truth[name], predictions.predicted[name]
    if target.kind == "class":
        return _balanced_accuracy(truth, predicted)
    known = np.isfinite(truth)
    if target.kind == "forces":
        known &= predictions.free[:, None]
    return float(np.abs(predicted - truth)[known].mean()) * target.report_scale if known.any() else float("nan")


def _balanced_accuracy(truth: Array, logits: Array) -> float:
    chosen = logits.argmax(axis=-1) if logits.ndim > 1 else (logits > 0).astype(np.int64)
    classes = np.unique(truth)
    return float(np.mean([(chosen[truth == c] == c).mean() for c in classes]))
