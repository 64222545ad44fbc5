"""Errors of a model on a split, in the units that papers report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import nn

from jmp_data import ShardDataset
from jmp_data.errors import ManifestError
from jmp_model.finetune.config import DataSettings
from jmp_model.finetune.data import SplitName, open_split, stream, with_graphs
from jmp_model.finetune.model import KIND, build_model, keep_heads, load_pretrained, restore_model
from jmp_model.finetune.objective import Objective, Sums
from jmp_model.finetune.predictions import predict_split, score
from jmp_model.finetune.report import write_report
from jmp_model.finetune.scales import TargetScale
from jmp_model.finetune.step import add_over_ranks
from jmp_model.finetune.tasks import Published, TaskSpec, find_task
from jmp_model.model import FineTuningModel
from jmp_model.train.checkpoint import Checkpoint
from jmp_model.train.sharding import reshard


@torch.no_grad()
def evaluate_split(
    module: nn.Module,
    forward: nn.Module,
    dataset: ShardDataset,
    objective: Objective,
    *,
    fabric: Fabric,
    batch_size: int,
    first: int | None = None,
) -> dict[str, float]:
    """Target → MAE in report units (or balanced accuracy); and `loss`. Collective.

    Args:
        module: the bare model, holding the weights to evaluate.
        forward: the same, as set up by Fabric.
        dataset: split.
        objective: task and scales.
        fabric: device and ranks.
        batch_size: structures per pass and rank.
        first: only the first so many structures.
    """
    was_training = forward.training
    forward.eval()
    task = objective.task
    # A split with fewer structures than ranks is evaluated by all of them, and counted once.
    shared = min(len(dataset), first or len(dataset)) >= fabric.world_size
    batches = stream(
        dataset,
        task,
        batch_size=batch_size,
        first=first,
        shuffle=False,
        rank=fabric.global_rank if shared else 0,
        world_size=fabric.world_size if shared else 1,
    )
    sums = Sums({})
    for batch in with_graphs(batches, task.graph):
        targets = objective.targets(batch).to(fabric.device)
        sums.add(objective.loss(forward(fabric.to_device(batch)), targets, {})[1])
    forward.train(was_training)
    reshard(module)
    if shared:
        sums = add_over_ranks(fabric, sums)
    return {"loss": objective.total(sums), **objective.metrics(sums)}


@dataclass(frozen=True)
class Evaluation:
    """Errors of a checkpoint on a split.

    Attributes:
        task: name.
        split: name of the split.
        structures: how many.
        metrics: target → MAE in report units, or balanced accuracy.
        units: target → report unit.
        published: figures of the paper for the primary target.
    """

    task: str
    split: str
    structures: int
    metrics: dict[str, float]
    units: dict[str, str]
    published: Published | None


def evaluate_checkpoint(
    path: Path,
    *,
    task: str | TaskSpec | None = None,
    data: DataSettings,
    split: SplitName = "test",
    fold: int | None = None,
    heads: str | None = None,
    batch_size: int | None = None,
    device: str = "cpu",
    report: Path | None = None,
) -> Evaluation:
    """Measure a model on a task's split.

    Args:
        path: run folder (its best weights), checkpoint, or released file.
        task: what a fine-tuned model was trained on, by default; needed for a pre-trained model.
        data: where the split lies.
        split: which one.
        fold: of a task with folds.
        heads: pre-training task whose heads to use, for a pre-trained model.
        batch_size: the task's by default.
        device: where to compute.
        report: folder for a report page.

    Raises:
        ManifestError: no such split, or a pre-trained model without `task` or `heads`.
        CheckpointError: not a checkpoint, or of a model that the task does not fit.
    """
    from jmp_model.inference import read_any_checkpoint

    spec = find_task(task) if isinstance(task, str) else task
    checkpoint = read_any_checkpoint(path)
    module, scales, spec = _restore(checkpoint, path, spec, heads)
    dataset = open_split(spec, data, split, fold)
    if dataset is None:
        raise ManifestError(f"{spec.name}: no {split} split; give data.root, the output folder of jmp-data build")
    objective = Objective(spec, scales)
    predictions = predict_split(
        module.to(device), objective, dataset, batch_size=batch_size or max(8, spec.batch_size), device=device
    )
    if report is not None:
        report.mkdir(parents=True, exist_ok=True)
        write_report(
            report, spec, predictions, dataset, facts=[f"{path}", f"{len(dataset)} structures of {dataset.path}"]
        )
    return Evaluation(
        task=spec.name,
        split=dataset.split,
        structures=len(predictions.natoms),
        metrics={name: score(predictions, name, spec.targets[name]) for name in predictions.truth},
        units={name: target.report_unit or target.unit for name, target in spec.targets.items()},
        published=spec.published,
    )


def _restore(
    checkpoint: Checkpoint, path: Path, task: TaskSpec | None, heads: str | None
) -> tuple[FineTuningModel, dict[str, TargetScale], TaskSpec]:
    if checkpoint.extra.get("kind") == KIND:
        module, scales = restore_model(checkpoint, str(path), averaged=True)
        return module, scales, task or TaskSpec.model_validate(checkpoint.extra["task"])
    if task is None or heads is None:
        raise ManifestError(
            f"{path} is a pre-trained model: name a task, and the pre-training task whose heads to use "
            f"({', '.join(checkpoint.tasks)})"
        )
    module = build_model(task, checkpoint.backbone, kept_heads=True)
    load_pretrained(module, checkpoint, str(path))
    return module, keep_heads(module, task, checkpoint, heads, str(path)), task
