"""References and scales of the targets of a task: given, per fold, or fitted on the training split.

A head's output o stands for Σ references + mean + std × o, in the unit of the data set.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from ase.data import atomic_numbers
from torch import Tensor

from jmp_data import ShardDataset
from jmp_data.errors import ManifestError
from jmp_model.finetune.tasks import TargetSpec, TaskSpec
from jmp_model.train.targets import NUM_ELEMENTS

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TargetScale:
    """Constants of one target.

    Attributes:
        mean: unit of the data set.
        std: the same.
        reference: atomic number → value per atom; elements that are missing count 0.
    """

    mean: float = 0.0
    std: float = 1.0
    reference: Mapping[int, float] | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON-ready; `from_json` reads it back."""
        reference = None if self.reference is None else {str(z): v for z, v in sorted(self.reference.items())}
        return {"mean": self.mean, "std": self.std, "reference": reference}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> TargetScale:
        """Inverse of `to_json`."""
        reference = entry["reference"]
        return cls(
            entry["mean"], entry["std"], None if reference is None else {int(z): v for z, v in reference.items()}
        )

    def offset(self, atomic_numbers: Tensor, batch: Tensor, num_structures: int) -> Tensor:
        """(B,) float64: Σ references + mean of each structure."""
        offset = torch.full((num_structures,), self.mean, dtype=torch.float64)
        if self.reference:
            table = torch.zeros(NUM_ELEMENTS, dtype=torch.float64)
            table[list(self.reference)] = torch.tensor(list(self.reference.values()), dtype=torch.float64)
            offset.index_add_(0, batch, table[atomic_numbers])
        return offset


def resolve_scales(task: TaskSpec, fold: int | None, train: ShardDataset) -> dict[str, TargetScale]:
    """Constants of all targets.

    Where only gradient forces are trained, the energy head's unit is force std × 1 Å, as in the original: its
    derivative then is a force in units of its std.

    Args:
        task: says what is given and what is to be fitted.
        fold: picks constants given per fold.
        train: split on which to fit.

    Raises:
        ManifestError: nothing to fit on.
    """
    scales = {name: _resolve(task, name, fold, train) for name in task.targets}
    energy = next((name for name, target in task.targets.items() if target.kind == "energy"), None)
    forces = next((name for name, target in task.targets.items() if target.kind == "forces"), None)
    if task.forces == "gradient" and energy and forces and task.targets[energy].coefficient == 0.0:
        scales[energy] = TargetScale(0.0, scales[forces].std)
    return scales


def _resolve(task: TaskSpec, name: str, fold: int | None, train: ShardDataset) -> TargetScale:
    target = task.targets[name]
    if target.kind == "class":
        return TargetScale()
    mean, std = target.of_fold("mean", fold), target.of_fold("std", fold)
    fits_reference = target.references == "fit"
    reference: Mapping[int, float] | None = None
    if isinstance(target.references, dict):
        reference = {atomic_numbers[symbol]: value for symbol, value in target.references.items()}
    if mean is not None and std is not None and not fits_reference:
        return TargetScale(mean, std, reference)
    fitted = fit_scale(train, task.column(name), target, reference=reference, fit_reference=fits_reference)
    return TargetScale(
        fitted.mean if mean is None else mean, fitted.std if std is None else std, fitted.reference or reference
    )


def fit_scale(
    dataset: ShardDataset,
    column: str,
    target: TargetSpec,
    *,
    reference: Mapping[int, float] | None = None,
    fit_reference: bool = False,
) -> TargetScale:
    """Fit references by least squares of values on element counts, then mean and std of what remains.

    For forces: mean 0, std = RMS over components.

    Raises:
        ManifestError: the column has no numbers, or they do not vary.
    """
    if target.kind == "forces":
        square = count = 0.0
        for block in dataset.blocks([column]):
            values = block.columns[column].astype(np.float64)
            square, count = square + float(np.nansum(values**2)), count + float(np.isfinite(values).sum())
        return TargetScale(0.0, _checked_std(math.sqrt(square / max(1.0, count)), dataset, column))
    counts, values = element_counts(dataset, column)
    if fit_reference:
        reference = fit_references(counts, values)
    if reference:
        table = np.zeros(NUM_ELEMENTS)
        table[list(reference)] = list(reference.values())
        values = values - counts @ table
    return TargetScale(float(values.mean()), _checked_std(float(values.std()), dataset, column), reference)


def fit_references(counts: Array, values: Array) -> dict[int, float]:
    """Least squares of values, (n,), on element counts, (n, elements), no intercept; unknown values are left out."""
    known = np.isfinite(values)
    present = np.flatnonzero(counts[known].any(axis=0))
    solution = np.linalg.lstsq(counts[known][:, present], values[known], rcond=1e-10)[0]
    return {int(z): float(value) for z, value in zip(present, solution, strict=True)}


def element_counts(dataset: ShardDataset, column: str) -> tuple[Array, Array]:
    """(n, elements) element counts and (n,) values of the structures that have one.

    Raises:
        ManifestError: none has.
    """
    rows, found = [], []
    for block in dataset.blocks(["atomic_numbers", column]):
        rows.append(count_elements(block.atomic_numbers, block.natoms))
        found.append(block.columns[column].astype(np.float64))
    values = np.concatenate(found) if found else np.zeros(0)
    known = np.isfinite(values)
    if not known.any():
        raise ManifestError(f"{dataset.path}: column {column} has no values to fit a scale on")
    return np.concatenate(rows)[known], values[known]


def count_elements(atomic_numbers: npt.NDArray[Any], natoms: npt.NDArray[Any]) -> Array:
    """(n, elements) how many atoms of each element each structure has."""
    structure = np.repeat(np.arange(len(natoms)), natoms)
    flat = np.bincount(structure * NUM_ELEMENTS + atomic_numbers, minlength=len(natoms) * NUM_ELEMENTS)
    return flat.reshape(len(natoms), NUM_ELEMENTS).astype(np.float64)


def _checked_std(std: float, dataset: ShardDataset, column: str) -> float:
    if not 0.0 < std < math.inf:
        raise ManifestError(f"{dataset.path}: column {column} does not vary (std {std}); give mean and std in the task")
    return std
