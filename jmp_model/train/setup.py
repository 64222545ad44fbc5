"""Puts a pre-training run together from its configuration, and checks all it can before compute is spent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from jmp_data import Mixture, StreamLoader
from jmp_data.errors import CheckpointError, ManifestError
from jmp_data.stream.edges import GraphPlace
from jmp_model.gemnet_oc.config import GemNetOCConfig
from jmp_model.gemnet_oc.scaling import fit_scale_factors, scale_factors, unfitted_scales
from jmp_model.model import PretrainingModel, recompute_blocks, shared_basis_divisors
from jmp_model.presets import preset
from jmp_model.train.checkpoint import Checkpoint, load_optimizer_tensors, optimizer_tensors
from jmp_model.train.compilation import compile_blocks
from jmp_model.train.config import PretrainConfig
from jmp_model.train.data import (
    check_labels,
    loss_weights,
    place_of_graphs,
    task_normalizer,
    training_stream,
    validation_sets,
    validation_stream,
)
from jmp_model.train.ema import WeightAverage
from jmp_model.train.optimizer import build_adamw
from jmp_model.train.progress import Watcher
from jmp_model.train.schedules import WarmupCosine
from jmp_model.train.sharding import whole
from jmp_model.train.step import OptimizerStep
from jmp_model.train.targets import TargetNormalizer
from jmp_model.weights.any_checkpoint import read_any_checkpoint

# Settings that may differ between a run and its resumption: they do not change what is computed.
_FREE_ON_RESUME = ("hardware", "checkpoint", "validation", "val", "mix", "out", "log_every", "init_from")
_FREE_DATA = ("num_workers", "micro_batches", "graphs_on")


@dataclass
class Run:
    """Everything that the loop uses.

    Attributes:
        config: resolved.
        fabric: device and ranks.
        mixture: what is streamed.
        stream: training batches of this rank.
        validation: task and loader of each validation split.
        normalizer: of the targets.
        step: does optimiser steps.
        total_steps: at which the run ends.
        start: steps done before this run.
    """

    config: PretrainConfig
    fabric: Fabric
    mixture: Mixture
    stream: StreamLoader
    validation: list[tuple[int, StreamLoader]]
    normalizer: TargetNormalizer
    step: OptimizerStep
    total_steps: int
    start: int

    @property
    def module(self) -> PretrainingModel:
        """The bare model."""
        assert isinstance(self.step.module, PretrainingModel)
        return self.step.module

    def checkpoint(self, steps_done: int) -> Checkpoint:
        """Gather everything a checkpoint holds; collective."""
        parameters = dict(self.module.named_parameters())
        random = {"random/cpu": torch.get_rng_state()}
        return Checkpoint(
            backbone=self.module.config,
            normalizers=self.normalizer.tasks,
            model={name: whole(parameters.get(name, value)) for name, value in self.module.state_dict().items()},
            average={name: whole(value) for name, value in self.step.average.average.items()},
            optimizer=optimizer_tensors(self.step.bare_optimizer, self.module) | random,
            step=steps_done,
            stream=self.stream.state_dict(),
            mixture_fingerprint=self.mixture.fingerprint,
            config=self.config.model_dump(mode="json"),
            extra={"precision": self.fabric.strategy.precision.state_dict()},
        )


def prepare(config: PretrainConfig, fabric: Fabric, *, resume: Checkpoint | None, watcher: Watcher) -> Run:
    """Open data, build or load the model, and set both up.

    Raises:
        ManifestError: data sets that cannot be trained on, or settings that do not fit them.
        CheckpointError: the checkpoint is of another model or run.
    """
    mixture = Mixture.load(config.mix)
    for member in mixture:
        check_labels(member.dataset, member.name)
    normalizers = _normalizers(config, mixture, resume)
    rank, world_size = fabric.global_rank, fabric.world_size
    graphs_on = place_of_graphs(config.data, fabric.device)
    stream = training_stream(
        mixture, config.data, seed=config.seed, rank=rank, world_size=world_size, graphs_on=graphs_on
    )
    validation = _validation_streams(config, mixture, rank, world_size, graphs_on)
    total_steps = count_steps(config, len(stream))
    module = _build_model(config, mixture, resume, watcher, fabric)
    recompute_blocks(module, config.hardware.recompute)
    if config.hardware.compile:
        compile_blocks(module)
    forward = fabric.setup_module(module)
    step = _build_step(config, fabric, module, forward, mixture, total_steps)
    run = Run(config, fabric, mixture, stream, validation, TargetNormalizer(normalizers), step, total_steps, 0)
    if resume is not None:
        _restore(run, resume)
    return run


def count_steps(config: PretrainConfig, steps_per_epoch: int) -> int:
    """Total optimiser steps."""
    schedule = config.schedule
    return schedule.steps if schedule.steps is not None else max(1, round(schedule.epochs * steps_per_epoch))


def learning_rate_schedule(config: PretrainConfig, total_steps: int) -> WarmupCosine:
    """The schedule of a run of `total_steps`."""
    s = config.schedule
    return WarmupCosine(
        peak=config.optimizer.peak_lr,
        warmup_steps=min(s.warmup_steps, math.ceil(s.max_warmup_share * total_steps)),
        total_steps=total_steps,
        start_factor=s.start_factor,
        end_factor=s.end_factor,
    )


def check_resume(config: PretrainConfig, checkpoint: Checkpoint, folder: Path) -> None:
    """Refuse to go on with settings that would give another run.

    Raises:
        ManifestError: names the first setting that differs, with both values.
    """
    refuse_changed_settings(checkpoint.config, config.model_dump(mode="json"), folder, free=_FREE_ON_RESUME)


def refuse_changed_settings(
    before: Mapping[str, Any], after: Mapping[str, Any], folder: Path, *, free: Sequence[str]
) -> None:
    """Compare two resolved configurations, leaving out sections that may change.

    Raises:
        ManifestError: names the first setting that differs, with both values.
    """
    stored, now = _fixed_settings(before, free), _fixed_settings(after, free)
    for key in sorted(stored.keys() | now.keys()):
        if stored.get(key) != now.get(key):
            raise ManifestError(
                f"{folder}: cannot resume with {key} = {now.get(key)}: the run was started with {stored.get(key)}. "
                "Leave it as it was, or start a new run from its weights"
            )


def _fixed_settings(settings: Mapping[str, Any], free: Sequence[str]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if key in free:
            continue
        if isinstance(value, Mapping) and key != "model_changes":
            flat |= {f"{key}.{name}": v for name, v in value.items() if not (key == "data" and name in _FREE_DATA)}
        else:
            flat[key] = value
    return flat


def _normalizers(config: PretrainConfig, mixture: Mixture, resume: Checkpoint | None) -> tuple[Any, ...]:
    if resume is None:
        return tuple(task_normalizer(member, config.targets) for member in mixture)
    if resume.tasks != mixture.names:
        raise CheckpointError(
            f"{config.out}: the run was trained on {', '.join(resume.tasks)}; "
            f"the mixture holds {', '.join(mixture.names)}"
        )
    return resume.normalizers


def _validation_streams(
    config: PretrainConfig, mixture: Mixture, rank: int, world_size: int, graphs_on: GraphPlace
) -> list[tuple[int, StreamLoader]]:
    settings = config.validation
    batch_size = settings.batch_size or max(1, config.data.batch_size // (world_size * config.data.micro_batches))
    return [
        (
            entry.task,
            validation_stream(
                entry,
                config.data.graphs,
                batch_size=batch_size,
                max_structures=settings.max_structures,
                rank=rank,
                world_size=world_size,
                graphs_on=graphs_on,
            ),
        )
        for entry in validation_sets(mixture, config.val)
    ]


def _build_model(
    config: PretrainConfig, mixture: Mixture, resume: Checkpoint | None, watcher: Watcher, fabric: Fabric
) -> PretrainingModel:
    backbone = model_config(config)
    torch.manual_seed(config.seed)
    module = PretrainingModel(backbone, tasks=mixture.names)
    if resume is not None:
        if resume.backbone != backbone:
            raise CheckpointError(f"{config.out}: the checkpoint is of another model than {config.model}")
        module.load_state_dict(dict(resume.model))
    elif config.init_from is not None:
        _start_from(module, read_any_checkpoint(config.init_from), config.init_from)
        watcher.message(f"Started from the weights of {config.init_from}")
    if unfitted_scales(module):
        batches = _fit_scales(module, config, mixture, fabric)
        count = sum(1 for _ in scale_factors(module))
        watcher.message(f"Fitted {count} scale factors on {batches} training batches")
    return module


def model_config(config: PretrainConfig) -> GemNetOCConfig:
    """The backbone of a run; its output blocks make up for the edges that the stream drops.

    Raises:
        ManifestError: `model_changes` names a field that the backbone does not have.
    """
    changes = {"edge_dropout": config.data.edge_dropout, **config.model_changes}
    try:
        return preset(config.model, **changes)
    except (TypeError, ValueError) as error:
        raise ManifestError(f"model_changes: {error}") from error


def _start_from(module: PretrainingModel, checkpoint: Checkpoint, where: Path) -> None:
    state = checkpoint.weights()
    own = module.state_dict()
    if checkpoint.tasks != module.tasks:
        # Heads of other tasks are no use; those of the new tasks start from scratch.
        state = {name: value for name, value in state.items() if not name.startswith("output.")}
    wrong = [name for name, value in state.items() if name not in own or own[name].shape != value.shape]
    missing = [name for name in own if name not in state and not name.startswith("output.")]
    if wrong or missing:
        raise CheckpointError(
            f"{where}: weights do not fit the model: {len(wrong)} of other shape or unknown, {len(missing)} missing, "
            f"first {(wrong + missing)[0]}; choose the model that the checkpoint was made with"
        )
    module.load_state_dict(state, strict=False)


def _fit_scales(module: PretrainingModel, config: PretrainConfig, mixture: Mixture, fabric: Fabric) -> int:
    """Every rank fits on the same batches, whose number is returned; rank 0's factors count."""
    stream = iter(training_stream(mixture, config.data.model_copy(update={"edge_dropout": 0.0}), seed=config.seed))
    batches = [batch.clone() for batch, _ in zip(stream, range(config.scale_batches), strict=False)]
    fitted = fabric.broadcast(fit_scale_factors(module, batches))
    for name, factor in scale_factors(module):
        factor.set(fitted[name])
    return len(batches)


def _build_step(
    config: PretrainConfig,
    fabric: Fabric,
    module: PretrainingModel,
    forward: nn.Module,
    mixture: Mixture,
    total_steps: int,
) -> OptimizerStep:
    o = config.optimizer
    optimizer = build_adamw(module, lr=o.peak_lr, betas=o.betas, eps=o.eps, weight_decay=o.weight_decay)
    return OptimizerStep(
        fabric=fabric,
        module=module,
        forward=forward,
        bare_optimizer=optimizer,
        optimizer=fabric.setup_optimizers(optimizer),
        average=WeightAverage(module, o.ema_decay),
        schedule=learning_rate_schedule(config, total_steps),
        weights=loss_weights(mixture, config.targets).to(fabric.device),
        shared_divisors=shared_basis_divisors(module) if o.divide_shared_gradients else {},
        clip_norm=o.clip_norm,
    )


def _restore(run: Run, checkpoint: Checkpoint) -> None:
    tensors = dict(checkpoint.optimizer)
    torch.set_rng_state(tensors.pop("random/cpu"))
    if checkpoint.step:
        load_optimizer_tensors(run.step.bare_optimizer, run.module, tensors)
    run.step.average.load(checkpoint.average)
    if checkpoint.stream is None:
        raise CheckpointError(f"{run.config.out}: the checkpoint has no stream position; use it with init_from instead")
    run.stream.load_state_dict(checkpoint.stream)
    run.fabric.strategy.precision.load_state_dict(dict(checkpoint.extra.get("precision", {})))
    run.start = checkpoint.step
