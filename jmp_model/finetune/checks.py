"""What must be true of a fine-tuning run before compute is spent on it; each failure is one line."""

from __future__ import annotations

import numpy as np
import torch
from ase.data import atomic_numbers, chemical_symbols

from jmp_data import ShardDataset
from jmp_data.errors import ManifestError
from jmp_model.finetune.config import FinetuneConfig
from jmp_model.finetune.data import Splits, open_splits
from jmp_model.finetune.groups import layer_groups
from jmp_model.finetune.model import build_model, freeze
from jmp_model.finetune.tasks import TaskSpec
from jmp_model.gemnet_oc.config import GemNetOCConfig
from jmp_model.presets import preset
from jmp_model.train.checkpoint import Checkpoint
from jmp_model.train.config import HardwareSettings


def check_data(config: FinetuneConfig) -> Splits:
    """Open the splits and compare them with what the run wants of them.

    Raises:
        ManifestError: a split or column is missing, labels are missing, or a split is empty.
    """
    check_hardware(config.task, config.hardware)
    splits = open_splits(config.task, config.data, config.fold)
    if config.data.micro_batches > config.batch_size:
        raise ManifestError(
            f"data.micro_batches is {config.data.micro_batches}, but a batch has only {config.batch_size} structures"
        )
    for name, dataset in (("train", splits.train), ("val", splits.val)):
        if len(dataset) == 0:
            raise ManifestError(f"{config.task.name}: the {name} split {dataset.path} is empty")
    _check_labels(config.task, splits.train, "train")
    _check_labels(config.task, splits.val, "val")
    return splits


def elements_only_outside_training(splits: Splits) -> str:
    """A line about elements that are measured but never trained; empty if there are none."""
    trained = set(splits.train.manifest.statistics.get("elements", {}))
    found = []
    for name, dataset in (("val", splits.val), ("test", splits.test)):
        extra = set() if dataset is None else set(dataset.manifest.statistics.get("elements", {})) - trained
        if trained and extra:
            found.append(f"{', '.join(sorted(extra))} of the {name} split")
    if not found:
        return ""
    return f"WARNING: {' and '.join(found)} never occurs in the training split: nothing can be learned about it"


def _check_labels(task: TaskSpec, dataset: ShardDataset, split: str) -> None:
    """Refuse a column without a single value: it would train on nothing, or measure nothing."""
    for name, target in task.targets.items():
        if target.coefficient == 0.0 or target.kind == "class":
            continue
        column = task.column(name)
        if not any(np.isfinite(block.columns[column]).any() for block in dataset.blocks([column])):
            raise ManifestError(f"{task.name}: column {column} of the {split} split {dataset.path} holds no value")


def check_hardware(task: TaskSpec, hardware: HardwareSettings) -> None:
    """Refuse what torch cannot do with forces that are a gradient: differentiate twice.

    Raises:
        ManifestError: names the setting.
    """
    if task.forces != "gradient":
        return
    if hardware.compile:
        raise ManifestError(
            f"{task.name}: hardware.compile does not go with gradient forces, as torch.compile cannot "
            "differentiate twice; leave it out, or train direct forces"
        )
    if hardware.strategy == "fsdp":
        raise ManifestError(
            f"{task.name}: hardware.strategy=fsdp does not go with gradient forces, as parameters would be freed "
            "between the two derivatives; use ddp, or train direct forces"
        )


def check_elements(config: FinetuneConfig, train: ShardDataset, checkpoint: Checkpoint) -> None:
    """Refuse elements that pre-training never saw, unless the recipe says to train them.

    A checkpoint without references, such as an imported one, cannot tell what it saw; nothing is refused then.

    Raises:
        ManifestError: names the elements.
    """
    known = {z for normalizer in checkpoint.normalizers for z in normalizer.reference}
    known |= set(checkpoint.extra.get("elements", []))
    present = {atomic_numbers[symbol] for symbol in train.manifest.statistics.get("elements", {})}
    unseen = sorted(present - known)
    if known and unseen and config.new_elements == "refuse":
        raise ManifestError(
            f"{config.task.name}: {_symbols(unseen)} in {train.path} did not occur in the pre-training data of the "
            "checkpoint, so their embeddings are untrained; --new-elements train trains them"
        )


def new_backbone(config: FinetuneConfig) -> GemNetOCConfig:
    """Backbone of a model that is trained from scratch.

    Raises:
        ManifestError: `model_changes` names a field that it does not have.
    """
    try:
        return preset(config.model, **config.model_changes)
    except (TypeError, ValueError) as error:
        raise ManifestError(f"model_changes: {error}") from error


def check_parameters(config: FinetuneConfig, start: Checkpoint | None) -> None:
    """Apply what a run says about parameters to a model without memory: is there anything of that name?

    Raises:
        ManifestError: names the setting and what it names in vain.
    """
    if start is None and config.keep_heads is not None:
        raise ManifestError("keep_heads needs a checkpoint to keep them from: give start (--from)")
    backbone = new_backbone(config) if start is None else start.backbone
    with torch.device("meta"):
        module = build_model(config.task, backbone, kept_heads=config.keep_heads is not None)
    freeze(module, config.freeze)
    layer_groups(module, config.optimizer.layer_rates, num_blocks=backbone.num_blocks)


def _symbols(numbers: list[int]) -> str:
    return ", ".join(chemical_symbols[z] for z in numbers)
