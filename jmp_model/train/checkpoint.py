"""Checkpoints: a folder that holds everything needed to go on, to fine-tune or to predict, readable without this code.

model.safetensors      weights and scale factors, live
average.safetensors    averaged weights, by parameter name
optimizer.safetensors  moments as `<moment>/<parameter>`, and the random state
state.json             version, model configuration, tasks, references and normalisers, position of the data stream,
                       fingerprint of its mixture, run configuration, digests of the other files
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from jmp_data.errors import CheckpointError
from jmp_model.gemnet_oc.config import GemNetOCConfig
from jmp_model.train.sharding import like, whole
from jmp_model.train.targets import TaskNormalizer
from jmp_model.weights.upgrade import upgrade_state

FORMAT = "jmp-checkpoint"
FORMAT_VERSION = 1
STATE_FILE = "state.json"
_TENSOR_FILES = ("model", "average", "optimizer")


@dataclass(frozen=True)
class Checkpoint:
    """All of a checkpoint, with whole tensors on the CPU.

    Attributes:
        backbone: configuration of the model.
        normalizers: of each task, in the order of the heads.
        model: state dict: weights, basis buffers and scale factors.
        average: parameter name → averaged weights; empty if there is no average.
        optimizer: `<moment>/<parameter>` → tensor; empty in a checkpoint that is only meant to be read.
        step: optimiser steps done.
        stream: state of the training stream.
        mixture_fingerprint: what it streamed.
        config: the run's resolved configuration.
        extra: anything else that is JSON, such as the state of a loss scaler.
    """

    backbone: GemNetOCConfig
    normalizers: tuple[TaskNormalizer, ...]
    model: Mapping[str, Tensor]
    average: Mapping[str, Tensor] = field(default_factory=dict)
    optimizer: Mapping[str, Tensor] = field(default_factory=dict)
    step: int = 0
    stream: Mapping[str, Any] | None = None
    mixture_fingerprint: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the pre-training heads, in order."""
        return tuple(normalizer.task for normalizer in self.normalizers)

    def weights(self, *, averaged: bool = True) -> dict[str, Tensor]:
        """A state dict to evaluate or fine-tune: the averaged weights where there are any."""
        return {**self.model, **self.average} if averaged else dict(self.model)


def write_checkpoint(checkpoint: Checkpoint, folder: Path) -> Path:
    """Write a checkpoint; replaces one of the same name only once the new one is complete.

    Returns:
        The folder.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    digests = {}
    for name in _TENSOR_FILES:
        tensors = {key: value.contiguous() for key, value in getattr(checkpoint, name).items()}
        if tensors:
            file = partial / f"{name}.safetensors"
            save_file(tensors, file)
            digests[file.name] = _sha256(file)
            _flush(file)
    state = partial / STATE_FILE
    state.write_text(json.dumps(_state(checkpoint, digests), indent=1, ensure_ascii=False))
    _flush(state)
    _flush(partial)
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)
    _flush(folder.parent)
    return folder


def _state(checkpoint: Checkpoint, digests: Mapping[str, str]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "step": checkpoint.step,
        "backbone": checkpoint.backbone.to_dict(),
        "normalizers": [normalizer.to_json() for normalizer in checkpoint.normalizers],
        "stream": checkpoint.stream,
        "mixture_fingerprint": checkpoint.mixture_fingerprint,
        "config": checkpoint.config,
        "extra": checkpoint.extra,
        "torch": torch.__version__,
        "sha256": digests,
    }


def read_checkpoint(folder: Path, *, with_optimizer: bool = True) -> Checkpoint:
    """Read a checkpoint and check its digests.

    Args:
        folder: a checkpoint, or a run folder, whose latest checkpoint is taken then.
        with_optimizer: also read the moments, which only going on needs.

    Raises:
        CheckpointError: it is none, is damaged, or was written by a newer version.
    """
    folder = latest_checkpoint(folder) if not (folder / STATE_FILE).exists() else folder
    try:
        state = json.loads((folder / STATE_FILE).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: no readable {STATE_FILE}; this is not a checkpoint ({error})") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{folder / STATE_FILE}: not the state of a {FORMAT}")
    state = upgrade_state(state, to=FORMAT_VERSION, where=folder)
    wanted = _TENSOR_FILES if with_optimizer else _TENSOR_FILES[:2]
    tensors = {name: _read_tensors(folder / f"{name}.safetensors", state["sha256"]) for name in wanted}
    return Checkpoint(
        backbone=GemNetOCConfig.from_dict(state["backbone"]),
        normalizers=tuple(TaskNormalizer.from_json(entry) for entry in state["normalizers"]),
        model=tensors["model"],
        average=tensors["average"],
        optimizer=tensors.get("optimizer", {}),
        step=state["step"],
        stream=state["stream"],
        mixture_fingerprint=state["mixture_fingerprint"],
        config=state["config"],
        extra=state["extra"],
    )


def _read_tensors(file: Path, digests: Mapping[str, str]) -> dict[str, Tensor]:
    if file.name not in digests:
        return {}
    try:
        if _sha256(file) != digests[file.name]:
            raise CheckpointError(f"{file}: its bytes are not those that were written; take an older checkpoint")
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error}); take an older checkpoint") from error


def checkpoint_folder(run: Path, step: int) -> Path:
    """Where a run keeps the checkpoint of a step."""
    return run / "checkpoints" / f"step-{step:08d}"


def list_checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    return sorted(path.parent for path in (run / "checkpoints").glob(f"step-*/{STATE_FILE}"))


def latest_checkpoint(run: Path) -> Path:
    """The most recent checkpoint of a run.

    Raises:
        CheckpointError: there is none.
    """
    found = list_checkpoints(run)
    if not found:
        raise CheckpointError(f"{run}: no checkpoint here; give a checkpoint folder or a run folder that has some")
    return found[-1]


def prune_checkpoints(run: Path, keep: int) -> None:
    """Delete all but the most recent ones."""
    for folder in list_checkpoints(run)[:-keep]:
        shutil.rmtree(folder)


def optimizer_tensors(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """Moments by parameter name, whole; collective if parameters are sharded."""
    found = {}
    for name, parameter in module.named_parameters():
        for moment, value in optimizer.state.get(parameter, {}).items():
            found[f"{moment}/{name}"] = whole(torch.as_tensor(value))
    return found


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Inverse of `optimizer_tensors`.

    Raises:
        CheckpointError: a parameter has no moments in the checkpoint.
    """
    by_parameter = _grouped(tensors)
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        if name not in by_parameter:
            raise CheckpointError(f"the checkpoint has no optimiser state for {name}; start a new run from it instead")
        optimizer.state[parameter] = {moment: like(parameter, value) for moment, value in by_parameter[name].items()}


def _grouped(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    grouped: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        moment, _, name = key.partition("/")
        grouped.setdefault(name, {})[moment] = value
    return grouped


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    for piece in _pieces(file):
        digest.update(piece)
    return digest.hexdigest()


def _pieces(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while piece := stream.read(1 << 24):
            yield piece


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
