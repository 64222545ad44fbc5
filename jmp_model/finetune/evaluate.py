"""Errors of a model on a split, in the units that papers report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import nn

from jmp_data import ShardDataset
from jmp_data.errors import CheckpointError, ManifestError
from jmp_model.finetune.config import DataSettings
from jmp_model.finetune.data import SplitName, attach, open_split, stream
from jmp_model.finetune.model import KIND, build_model, keep_heads, load_pretrained, restore_model
from jmp_model.finetune.objective import Objective, Sums
from jmp_model.finetune.predictions import predict_split, score
from jmp_model.finetune.report import ReportContext, write_report
from jmp_model.finetune.scales import TargetScale
from jmp_model.finetune.step import add_over_ranks
from jmp_model.finetune.tasks import TaskSpec, find_task
from jmp_model.model import FineTuningModel
from jmp_model.train.checkpoint import Checkpoint
from jmp_model.train.config import CONFIG_FILE
from jmp_model.train.sharding import reshard
from jmp_model.weights.any_checkpoint import read_any_checkpoint


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
    for batch in batches:
        targets = objective.targets(batch).to(fabric.device)
        sums.add(objective.loss(forward(attach(fabric.to_device(batch), task.graph)), targets, {})[1])
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
        fold: of a task with folds.
        structures: how many.
        primary: target that the paper reports.
        metrics: target → MAE in report units, or balanced accuracy.
        kinds: target → mae or balanced_accuracy.
        units: target → report unit.
        published: model of the paper → its figure for the primary target, where there is one.
        notes: what a reader must know about the comparison.
    """

    task: str
    split: str
    fold: int | None
    structures: int
    primary: str
    metrics: dict[str, float]
    kinds: dict[str, str]
    units: dict[str, str]
    published: dict[str, float]
    notes: tuple[str, ...] = ()


def evaluate_checkpoint(
    path: Path,
    *,
    task: str | TaskSpec | None = None,
    data: DataSettings | None = None,
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
        data: where the split lies; by default where the run had it.
        split: which one.
        fold: of a task with folds; by default the one that the model was trained on.
        heads: pre-training task whose heads to use, for a pre-trained model.
        batch_size: the task's by default.
        device: where to compute.
        report: folder for a report page.

    Raises:
        ManifestError: no such split, or a pre-trained model without `task` or `heads`.
        CheckpointError: not a checkpoint, or of a model that the task does not fit.
    """
    spec = find_task(task) if isinstance(task, str) else task
    if spec is not None:
        spec.check_fold(fold)
    _refuse_series(path)
    checkpoint = read_any_checkpoint(path)
    tuned = checkpoint.extra.get("kind") == KIND
    module, scales, spec = _restore(checkpoint, path, spec, heads)
    if tuned:
        fold = _checked_fold(checkpoint, path, spec, fold)
    if data is None:
        data = DataSettings.model_validate(checkpoint.config["data"]) if tuned else DataSettings(root=Path("shards"))
    dataset = open_split(spec, data, split, fold)
    if dataset is None:
        where = f" in {data.root}" if data.root is not None else ""
        raise ManifestError(
            f"{spec.name}: no {split} split{where}; name the output folder of jmp-data build, or the split itself"
        )
    objective = Objective(spec, scales)
    predictions = predict_split(
        module.to(device), objective, dataset, batch_size=batch_size or max(8, spec.batch_size), device=device
    )
    if report is not None:
        report.mkdir(parents=True, exist_ok=True)
        context = ReportContext(
            lead=f"Weights of {path}, measured on {len(predictions.natoms):,} structures.",
            tiles={},
            facts={"weights": str(path), "structures": str(dataset.path)},
            fold=fold or 0,
            run=path if tuned else None,
        )
        write_report(report, spec, predictions, dataset, context)
    folds = fold or 0
    return Evaluation(
        task=spec.name,
        split=dataset.split,
        fold=None if spec.folds is None else folds,
        structures=len(predictions.natoms),
        primary=spec.primary,
        metrics={name: score(predictions, name, spec.targets[name]) for name in predictions.truth},
        kinds={name: target.metric for name, target in spec.targets.items()},
        units={name: target.report_unit or target.unit for name, target in spec.targets.items()},
        published={} if spec.published is None else spec.published.figures(fold=folds),
        notes=_notes(spec, fold),
    )


def _refuse_series(path: Path) -> None:
    runs = sorted(file.parent.name for file in path.glob(f"*/{CONFIG_FILE}")) if path.is_dir() else []
    if runs and not (path / CONFIG_FILE).exists():
        raise ManifestError(
            f"{path} holds several runs, {', '.join(runs)}: name one, or see all with jmp results {path}"
        )


def _notes(task: TaskSpec, fold: int | None) -> tuple[str, ...]:
    notes = []
    if task.published is not None and task.folds is not None and fold:
        notes.append("published figures: means over five folds, for single ones are published for fold 0 only")
    untrained = [name for name, target in task.targets.items() if target.coefficient == 0.0]
    if untrained:
        notes.append(f"{', '.join(untrained)}: not trained, its error means nothing")
    return tuple(notes)


def _checked_fold(checkpoint: Checkpoint, path: Path, task: TaskSpec, fold: int | None) -> int | None:
    trained: int | None = checkpoint.config.get("fold")
    if task.folds is None or fold is None or fold == (trained or 0):
        return trained if fold is None else fold
    raise ManifestError(
        f"{path} was trained on fold {trained or 0} of {task.name}: the other folds' test structures are among those "
        "that it learned from"
    )


def _restore(
    checkpoint: Checkpoint, path: Path, task: TaskSpec | None, heads: str | None
) -> tuple[FineTuningModel, dict[str, TargetScale], TaskSpec]:
    if checkpoint.extra.get("kind") == KIND:
        own = TaskSpec.model_validate(checkpoint.extra["task"])
        if heads is not None:
            raise ManifestError(f"{path} was tuned for {own.name} and has its own heads: leave heads out")
        if task is not None:
            _check_targets(own, task, path)
        module, scales = restore_model(checkpoint, str(path), averaged=True)
        return module, scales, task or own
    if task is None or heads is None:
        raise ManifestError(
            f"{path} is a pre-trained model: name a task, and with --heads the pre-training task whose heads to use "
            f"({', '.join(checkpoint.tasks)})"
        )
    module = build_model(task, checkpoint.backbone, kept_heads=True)
    load_pretrained(module, checkpoint, str(path))
    scales = keep_heads(module, task, checkpoint, heads, str(path))
    lacking = [name for name in task.targets if name not in scales]
    if lacking:
        raise ManifestError(f"{task.name}: a pre-trained model has no head for {', '.join(lacking)}")
    return module, scales, task


def _check_targets(own: TaskSpec, task: TaskSpec, path: Path) -> None:
    """Refuse a task that asks for what the model does not predict."""
    for name, target in task.targets.items():
        if name not in own.targets or own.targets[name].kind != target.kind:
            raise CheckpointError(
                f"{path} was tuned for {own.name} and predicts {', '.join(own.targets)}; {task.name} is about {name}"
            )
    if own.forces != task.forces:
        raise CheckpointError(f"{path} makes forces as {own.forces}; {task.name} has {task.forces}")
