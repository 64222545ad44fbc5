"""Look again at a fine-tuning step whose loss or gradients were not finite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from jmp_data.errors import CheckpointError
from jmp_model.finetune.model import KIND, restore_model
from jmp_model.finetune.objective import Objective
from jmp_model.finetune.tasks import TaskSpec
from jmp_model.model import FineTuningModel
from jmp_model.train.checkpoint import read_checkpoint
from jmp_model.train.nonfinite import examine_gradients, stored_batches, watched_forward


def replay(folder: Path) -> list[str]:
    """Run the stored batches of a step through the stored weights, on the CPU in float32.

    Args:
        folder: `nonfinite/step-<n>` of a fine-tuning run.

    Returns:
        Findings, one a line.

    Raises:
        CheckpointError: the folder holds no stored batch, or one of pre-training.
    """
    batches = stored_batches(folder)
    checkpoint = read_checkpoint(folder / "checkpoint", with_optimizer=False)
    if checkpoint.extra.get("kind") != KIND:
        raise CheckpointError(f"{folder}: a step of pre-training; look at it with jmp train pretrain --replay {folder}")
    model, scales = restore_model(checkpoint, str(folder))
    task = TaskSpec.model_validate(checkpoint.extra["task"])
    objective = Objective(task, scales, force_loss=checkpoint.config["force_loss"])
    return [f"{name}: {line}" for name, batch in batches for line in _examine(model, batch, objective)]


def _examine(model: FineTuningModel, batch: Any, objective: Objective) -> list[str]:
    targets = objective.targets(batch)
    out, found = watched_forward(model, batch)
    found += [f"output {name} is not finite" for name, value in out.items() if not torch.isfinite(value).all()]
    for name, value in targets.values.items():
        # Structures without a label have NaN there; infinity is nobody's label.
        infinite = torch.isinf(value).reshape(value.shape[0], -1).any(dim=-1).nonzero().flatten()
        rows = targets.batch[infinite] if value.shape[0] == targets.batch.shape[0] else infinite
        structures = batch.structure_index[rows].unique().tolist()
        found += [f"structure {index}: target {name} is not finite" for index in structures]
    loss, _ = objective.loss(out, targets, objective.counts(targets))
    return found + examine_gradients(model, loss)
