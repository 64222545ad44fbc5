"""Kept heads on other people's energies: the zero of energy moves with code and functional, so fit it anew."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from jmp_data import ShardDataset
from jmp_model.finetune.objective import Objective
from jmp_model.finetune.predictions import predict_split
from jmp_model.finetune.scales import TargetScale, element_counts, fit_references
from jmp_model.finetune.tasks import TaskSpec
from jmp_model.model import FineTuningModel

FAR = 10.0
"""Energies this many spreads away from where the references put them are about another zero."""


def energy_target(task: TaskSpec) -> str | None:
    """The target of kind energy, if it is trained."""
    found = (name for name, target in task.targets.items() if target.kind == "energy" and target.coefficient > 0.0)
    return next(found, None)


def distance_from_references(task: TaskSpec, scales: dict[str, TargetScale], train: ShardDataset) -> float:
    """Mean |energy − Σ references − mean| of a split, in units of the scale's std."""
    name = energy_target(task)
    if name is None:
        return 0.0
    counts, values = element_counts(train, task.column(name))
    scale = scales[name]
    table = np.zeros(counts.shape[1])
    for z, value in (scale.reference or {}).items():
        table[z] = value
    return float(np.abs(values - counts @ table - scale.mean).mean() / scale.std)


def refit_references(
    module: FineTuningModel,
    task: TaskSpec,
    scales: dict[str, TargetScale],
    train: ShardDataset,
    *,
    batch_size: int,
    first: int | None,
    device: torch.device | str,
) -> dict[str, TargetScale]:
    """Element references fitted to what the kept energy head leaves unexplained; head and forces stay as they are.

    Args:
        module: with the kept heads.
        task: its energy target is refitted.
        scales: of all targets.
        train: split to fit on, with predictions for all its structures.
        batch_size: structures per pass.
        first: only the first so many structures.
        device: where to compute.

    Returns:
        All scales, that of the energy with new references and no mean.
    """
    name = energy_target(task)
    if name is None:
        return scales
    bare = replace(scales[name], mean=0.0, reference=None)
    objective = Objective(task, {**scales, name: bare})
    predictions = predict_split(module.to(device), objective, train, batch_size=batch_size, first=first, device=device)
    left = predictions.truth[name] - predictions.predicted[name]
    reference = fit_references(predictions.element_counts(), left)
    return {**scales, name: replace(bare, reference=reference)}
