"""Where a model errs: by structure, by element, by size of the force."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from ase.data import chemical_symbols

from jmp_data import ShardDataset, Structure
from jmp_model.finetune.predictions import SplitPredictions
from jmp_model.finetune.tasks import TargetSpec

Array = npt.NDArray[Any]
WORST = 8
_FORCE_BINS = 12


@dataclass(frozen=True)
class ErrorSummary:
    """Errors of one target in report units, over what counts in them.

    Attributes:
        mae: mean absolute error.
        rmse: root of the mean squared error.
        spread: mean absolute deviation of the labels from their mean, after element references: what a model that
            knows nothing but composition would err. For forces: mean absolute component.
        count: numbers compared.
        mae_per_atom: for energies, of energy / number of atoms.
    """

    mae: float
    rmse: float
    spread: float
    count: int
    mae_per_atom: float | None = None


def summarize_errors(predictions: SplitPredictions, name: str, target: TargetSpec) -> ErrorSummary:
    """MAE and what to hold it against; NaN where there are no labels."""
    truth, predicted = predictions.truth[name], predictions.predicted[name]
    known = np.isfinite(truth)
    if target.kind == "forces":
        known &= predictions.free[:, None]
    if not known.any():
        return ErrorSummary(np.nan, np.nan, np.nan, 0)
    scale = target.report_scale
    error = (predicted - truth) * scale
    labels = predictions.relative(truth, name)[known] * scale
    centre = 0.0 if target.kind == "forces" else labels.mean()
    return ErrorSummary(
        mae=float(np.abs(error[known]).mean()),
        rmse=float(np.sqrt((error[known] ** 2).mean())),
        spread=float(np.abs(labels - centre).mean()),
        count=int(known.sum()),
        mae_per_atom=(
            float(np.abs(error / predictions.natoms)[known].mean())
            if target.kind == "energy" or target.references is not None
            else None
        ),
    )


@dataclass(frozen=True)
class WorstStructure:
    """A structure with a large error.

    Attributes:
        structure: with its `source_id`.
        formula: chemical formula.
        error: in report units: |Δ| of a number per structure, mean |ΔF| component of forces.
    """

    structure: Structure
    formula: str
    error: float


def structure_errors(predictions: SplitPredictions, name: str, target: TargetSpec) -> Array:
    """(n,) error of each structure in report units; 1 for a wrong class."""
    truth, predicted = predictions.truth[name], predictions.predicted[name]
    if target.kind == "class":
        chosen = predicted.argmax(axis=-1) if predicted.ndim > 1 else predicted > 0
        return np.asarray(chosen.astype(np.int64) != truth, np.float64)
    error = np.asarray(np.abs(predicted - truth) * target.report_scale)
    if target.kind != "forces":
        return error
    totals = np.bincount(predictions.structure_of_atom, weights=error.mean(axis=1), minlength=len(predictions.natoms))
    return np.asarray(totals / predictions.natoms)


def worst_structures(
    predictions: SplitPredictions, name: str, target: TargetSpec, dataset: ShardDataset, *, count: int = WORST
) -> list[WorstStructure]:
    """Structures with the largest errors, worst first."""
    errors = structure_errors(predictions, name, target)
    order = np.argsort(-np.nan_to_num(errors))[:count]
    found = []
    for row in order.tolist():
        structure = dataset[int(predictions.index[row])]
        formula = structure.to_ase().get_chemical_formula()
        found.append(WorstStructure(structure, formula, float(errors[row])))
    return found


def error_by_element(predictions: SplitPredictions, name: str, target: TargetSpec) -> dict[str, tuple[float, int]]:
    """Element → mean error in report units, and of how many.

    Of forces: over the components of the element's free atoms. Of other targets: over structures that contain it.
    """
    numbers, structures = predictions.atomic_numbers, predictions.structure_of_atom
    if target.kind == "forces":
        per_atom = np.abs(predictions.predicted[name] - predictions.truth[name]).mean(axis=1) * target.report_scale
        per_atom = np.where(predictions.free, per_atom, np.nan)
    else:
        per_structure = structure_errors(predictions, name, target)
    found = {}
    for z in np.unique(numbers):
        here = numbers == z
        values = per_atom[here] if target.kind == "forces" else per_structure[np.unique(structures[here])]
        values = values[np.isfinite(values)]
        if len(values):
            found[chemical_symbols[z]] = (float(values.mean()), len(values))
    return found


def error_by_force(predictions: SplitPredictions, name: str, target: TargetSpec) -> tuple[Array, Array]:
    """Upper ends of bins of the true force's length, eV/Å, with equal numbers of atoms, and the mean error in each."""
    length = np.linalg.norm(predictions.truth[name], axis=1)
    error = np.abs(predictions.predicted[name] - predictions.truth[name]).mean(axis=1) * target.report_scale
    known = np.isfinite(length) & predictions.free
    length, error = length[known], error[known]
    ends = np.unique(np.quantile(length, np.linspace(0, 1, _FORCE_BINS + 1)[1:]))
    place = np.minimum(np.searchsorted(ends, length), len(ends) - 1)
    counts = np.bincount(place, minlength=len(ends))
    return ends, np.bincount(place, weights=error, minlength=len(ends)) / np.maximum(counts, 1)
