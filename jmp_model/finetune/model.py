"""Models of fine-tuning: a pre-trained or new backbone with the heads that a task asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from jmp_data.errors import CheckpointError, ManifestError
from jmp_model.finetune.scales import TargetScale
from jmp_model.finetune.tasks import TargetSpec, TaskSpec
from jmp_model.gemnet_oc.config import GemNetOCConfig
from jmp_model.heads.finetuning import (
    EnergyHead,
    GraphClassificationHead,
    GraphScalarHead,
    NodeVectorHead,
    SpatialExtentHead,
)
from jmp_model.model import FineTuningModel
from jmp_model.train.checkpoint import Checkpoint

KIND = "fine-tuned"
"""What `extra["kind"]` of a checkpoint says."""


def build_model(task: TaskSpec, backbone: GemNetOCConfig, *, kept_heads: bool = False) -> FineTuningModel:
    """A model with random weights.

    Args:
        task: its targets decide the heads, and whether the force branch of the backbone is kept.
        backbone: configuration; edge dropout is off in fine-tuning.
        kept_heads: give energy (and direct forces) heads the shape of pre-training heads, so that those fit in.
    """
    config = replace(backbone, direct_forces=task.forces == "direct", edge_dropout=0.0)
    heads: dict[str, nn.Module] = {}
    for name, target in task.targets.items():
        if target.kind != "forces" or task.forces == "direct":
            heads[head_name(name, target)] = _build_head(target, config, kept=kept_heads)
    return FineTuningModel(config, heads, forces_from_gradient=task.forces == "gradient")


def head_name(name: str, target: TargetSpec) -> str:
    """Name of the head of a target; energies and forces have fixed ones, whatever the target is called."""
    return target.kind if target.kind in ("energy", "forces") else name


def _build_head(target: TargetSpec, config: GemNetOCConfig, *, kept: bool) -> nn.Module:
    if target.kind == "scalar":
        return GraphScalarHead(config, reduction=target.reduction)
    if target.kind == "extent":
        return SpatialExtentHead(config)
    if target.kind == "class":
        if target.reduction == "max":
            raise ManifestError("a class target is reduced by sum or mean")
        return GraphClassificationHead(
            config, num_classes=target.num_classes, reduction=target.reduction, dropout=target.dropout
        )
    if target.kind == "energy":
        return GraphScalarHead(config, reduction="sum") if kept else EnergyHead(config)
    return NodeVectorHead(config)


def load_pretrained(model: FineTuningModel, checkpoint: Checkpoint, where: str) -> None:
    """Take over embedding, backbone and scale factors: averaged weights where there are any.

    The direct-force branch is left behind if the model has none.

    Raises:
        CheckpointError: a tensor is missing or has another shape.
    """
    weights = checkpoint.weights()
    state = model.state_dict()
    wanted = [name for name in state if not name.startswith("heads.")]
    _check(where, {name: weights.get(name) for name in wanted}, state)
    model.load_state_dict({name: weights[name] for name in wanted}, strict=False)


def keep_heads(
    model: FineTuningModel, task: TaskSpec, checkpoint: Checkpoint, pretraining_task: str, where: str
) -> dict[str, TargetScale]:
    """Put the heads of one pre-training task on a model, and return the scales that they were trained with.

    Raises:
        CheckpointError: no such pre-training task.
        ManifestError: the task has neither an energy nor direct forces.
    """
    if pretraining_task not in checkpoint.tasks:
        raise CheckpointError(f"{where}: no heads of {pretraining_task!r}; it has {', '.join(checkpoint.tasks)}")
    index = checkpoint.tasks.index(pretraining_task)
    normalizer = checkpoint.normalizers[index]
    weights, scales = checkpoint.weights(), {}
    for name, target in task.targets.items():
        if target.kind == "energy":
            _copy_head(model, "energy", weights, f"output.out_energy.{index}.", where)
            scales[name] = TargetScale(normalizer.energy_mean, normalizer.energy_std, dict(normalizer.reference))
        elif target.kind == "forces":
            if task.forces == "direct":
                _copy_head(model, "forces", weights, f"output.out_forces.{index}.", where)
            scales[name] = TargetScale(0.0, normalizer.force_std)
    if not scales:
        raise ManifestError(f"{task.name}: keep_heads needs a target of kind energy or forces")
    return scales


def _copy_head(model: FineTuningModel, name: str, weights: Mapping[str, Tensor], prefix: str, where: str) -> None:
    head = model.heads[name]
    found = {f"out_mlp.{key.removeprefix(prefix)}": value for key, value in weights.items() if key.startswith(prefix)}
    state = head.state_dict()
    _check(where, {key: found.get(key) for key in state}, state)
    head.load_state_dict(found)


def _check(where: str, found: Mapping[str, Tensor | None], expected: Mapping[str, Tensor]) -> None:
    missing = [name for name, value in found.items() if value is None]
    wrong = [name for name, value in found.items() if value is not None and value.shape != expected[name].shape]
    if missing or wrong:
        raise CheckpointError(
            f"{where}: weights do not fit the model: {len(missing)} are missing, {len(wrong)} have another shape, "
            f"first {(missing + wrong)[0]}"
        )


def restore_model(
    checkpoint: Checkpoint, where: str, *, averaged: bool = False
) -> tuple[FineTuningModel, dict[str, TargetScale]]:
    """The model and scales of a fine-tuned checkpoint.

    Args:
        checkpoint: as read.
        where: it was read, for messages.
        averaged: take the averaged weights where there are any.

    Raises:
        CheckpointError: the checkpoint is not of a fine-tuned model.
    """
    if checkpoint.extra.get("kind") != KIND:
        raise CheckpointError(f"{where}: not the checkpoint of a fine-tuned model")
    task = TaskSpec.model_validate(checkpoint.extra["task"])
    module = build_model(task, checkpoint.backbone, kept_heads=checkpoint.extra["kept_heads"])
    module.load_state_dict(checkpoint.weights(averaged=averaged))
    return module, {name: TargetScale.from_json(entry) for name, entry in checkpoint.extra["scales"].items()}


def freeze(model: nn.Module, prefixes: tuple[str, ...]) -> list[str]:
    """Take parameters out of training by the beginnings of their names.

    Returns:
        Names of the frozen parameters.

    Raises:
        ManifestError: a beginning that no parameter has, or nothing left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name in names):
            raise ManifestError(
                f"freeze: no parameter begins with {prefix!r}; they begin with embedding, backbone or heads"
            )
    frozen = [name for name in names if name.startswith(prefixes)] if prefixes else []
    if len(frozen) == len(names):
        raise ManifestError("freeze leaves no parameter to train")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in set(frozen))
    return frozen
