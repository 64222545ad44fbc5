"""Puts a fine-tuning run together and checks all it can before compute is spent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from lightning_fabric import Fabric

from jmp_data import StreamLoader
from jmp_data.errors import ManifestError
from jmp_model.finetune.checks import check_data, check_elements, check_parameters, elements_only_outside_training
from jmp_model.finetune.config import FinetuneConfig
from jmp_model.finetune.data import Splits, stream
from jmp_model.finetune.groups import LayerGroup, layer_groups
from jmp_model.finetune.model import KIND, freeze
from jmp_model.finetune.objective import Objective
from jmp_model.finetune.prepare_model import prepare_model
from jmp_model.finetune.schedule import EarlyStop, GroupSchedule, Plateau, group_schedule, total_steps
from jmp_model.finetune.step import FineTuneStep
from jmp_model.finetune.watcher import FinetuneWatcher
from jmp_model.heads.force_scale import ForceScale
from jmp_model.model import FineTuningModel, recompute_blocks, shared_basis_divisors
from jmp_model.train.checkpoint import Checkpoint, load_optimizer_tensors, optimizer_tensors
from jmp_model.train.compilation import compile_blocks
from jmp_model.train.ema import WeightAverage
from jmp_model.train.sharding import whole
from jmp_model.weights.any_checkpoint import read_any_checkpoint


@dataclass
class Run:
    """Everything that the loop uses.

    Attributes:
        config: resolved.
        fabric: device and ranks.
        splits: open splits.
        train: training batches of this rank, without graphs.
        objective: loss and errors.
        step: does optimiser steps.
        groups: of layers, one parameter group each.
        schedules: of each group.
        plateau, early_stop: what follows the validations.
        total_steps: at which the run ends at the latest.
        start: steps done before this run.
        seconds_before: time that those took.
    """

    config: FinetuneConfig
    fabric: Fabric
    splits: Splits
    train: StreamLoader
    objective: Objective
    step: FineTuneStep
    groups: list[LayerGroup]
    schedules: list[GroupSchedule]
    plateau: Plateau
    early_stop: EarlyStop
    total_steps: int
    start: int = 0
    seconds_before: float = 0.0

    @property
    def module(self) -> FineTuningModel:
        """The bare model."""
        assert isinstance(self.step.module, FineTuningModel)
        return self.step.module

    def rates(self, step: int) -> list[float]:
        """Rate of each group at a step."""
        return [schedule(step) * self.plateau.scale for schedule in self.schedules]

    def checkpoint(self, steps_done: int, seconds: float, *, with_optimizer: bool) -> Checkpoint:
        """Gather what a checkpoint holds; collective."""
        parameters = dict(self.module.named_parameters())
        average = {} if self.step.average is None else self.step.average.average
        tensors = {}
        if with_optimizer:
            tensors = optimizer_tensors(self.step.bare_optimizer, self.module) | {"random/cpu": torch.get_rng_state()}
        return Checkpoint(
            backbone=self.module.config,
            normalizers=(),
            model={name: whole(parameters.get(name, value)) for name, value in self.module.state_dict().items()},
            average={name: whole(value) for name, value in average.items()},
            optimizer=tensors,
            step=steps_done,
            stream=self.train.state_dict(),
            mixture_fingerprint=self.splits.train.fingerprint,
            config=self.config.model_dump(mode="json"),
            extra={
                "kind": KIND,
                "task": self.config.task.model_dump(mode="json"),
                "scales": {name: scale.to_json() for name, scale in self.objective.scales.items()},
                "kept_heads": self.config.keep_heads is not None,
                "elements": _elements(self.splits),
                "plateau": self.plateau.state_dict(),
                "early_stop": self.early_stop.state_dict(),
                "seconds": seconds,
                "precision": self.fabric.strategy.precision.state_dict(),
                "force_scale": None if self.module.force_scale is None else self.module.force_scale.state_dict(),
            },
        )


def prepare(config: FinetuneConfig, fabric: Fabric, *, resume: Checkpoint | None, watcher: FinetuneWatcher) -> Run:
    """Check data and checkpoint, build the model, set it up.

    Raises:
        ManifestError: splits, targets or settings that do not fit together.
        CheckpointError: the checkpoint does not fit.
    """
    task = config.task
    splits = check_data(config)
    outside = elements_only_outside_training(splits)
    if outside and resume is None:
        watcher.message(outside)
    start = None if config.start is None or resume is not None else read_any_checkpoint(config.start)
    if start is not None:
        check_elements(config, splits.train, start)
    if resume is None:
        check_parameters(config, start)
    train = _training_stream(config, splits, fabric)
    torch.manual_seed(config.seed)
    module, scales = prepare_model(config, splits, start, resume, watcher, fabric)
    frozen = freeze(module, config.freeze)
    if frozen:
        watcher.message(f"{len(frozen)} parameters stay as they are")
    groups = layer_groups(module, _layer_rates(config), num_blocks=module.config.num_blocks)
    step = _build_step(config, fabric, module, groups, Objective(task, scales, force_loss=config.force_loss))
    steps_per_epoch = len(train)
    higher = task.higher_is_better
    run = Run(
        config=config,
        fabric=fabric,
        splits=splits,
        train=train,
        objective=step.objective,
        step=step,
        groups=groups,
        schedules=[
            group_schedule(
                config.schedule, base_lr=config.optimizer.base_lr, factor=g.factor, steps_per_epoch=steps_per_epoch
            )
            for g in groups
        ],
        plateau=Plateau(
            config.schedule.plateau_factor,
            config.schedule.plateau_patience,
            config.schedule.plateau_threshold,
            higher_is_better=higher,
        ),
        early_stop=EarlyStop(config.stop.patience, config.stop.min_delta, higher_is_better=higher),
        total_steps=total_steps(config.schedule, steps_per_epoch),
    )
    if resume is not None:
        _restore(run, resume)
    return run


def _layer_rates(config: FinetuneConfig) -> Any:
    """The published factors are for layers that pre-training has shaped."""
    rates = config.optimizer.layer_rates
    return "uniform" if rates == "published" and config.start is None else rates


def _training_stream(config: FinetuneConfig, splits: Splits, fabric: Fabric) -> StreamLoader:
    if config.batch_size % fabric.world_size:
        raise ManifestError(f"a batch of {config.batch_size} cannot be shared evenly by {fabric.world_size} ranks")
    return stream(
        splits.train,
        config.task,
        batch_size=config.batch_size // fabric.world_size,
        first=config.data.train_first,
        shuffle=True,
        seed=config.seed,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        num_workers=config.data.num_workers,
    )


def _build_step(
    config: FinetuneConfig, fabric: Fabric, module: FineTuningModel, groups: list[LayerGroup], objective: Objective
) -> FineTuneStep:
    o = config.optimizer
    if module.forces_from_gradient and getattr(fabric.strategy.precision, "scaler", None) is not None:
        module.force_scale = ForceScale()
    recompute_blocks(module, config.hardware.recompute)
    if config.hardware.compile:
        compile_blocks(module)
    forward = fabric.setup_module(module)
    parameters = dict(module.named_parameters())
    optimizer = torch.optim.AdamW(
        [{"params": [parameters[name] for name in group.parameters]} for group in groups],
        lr=o.base_lr,
        betas=o.betas,
        eps=o.eps,
        weight_decay=o.weight_decay,
    )
    return FineTuneStep(
        fabric=fabric,
        module=module,
        forward=forward,
        bare_optimizer=optimizer,
        optimizer=fabric.setup_optimizers(optimizer),
        objective=objective,
        clip_value=o.clip_value,
        clip_norm=o.clip_norm,
        shared_divisors=shared_basis_divisors(module) if o.divide_shared_gradients else {},
        average=None if o.ema_decay is None else WeightAverage(module, o.ema_decay),
    )


def _restore(run: Run, checkpoint: Checkpoint) -> None:
    tensors = dict(checkpoint.optimizer)
    torch.set_rng_state(tensors.pop("random/cpu"))
    if checkpoint.step:
        load_optimizer_tensors(run.step.bare_optimizer, run.module, tensors)
    if run.step.average is not None:
        run.step.average.load(checkpoint.average)
    run.train.load_state_dict(dict(checkpoint.stream or {}))
    run.plateau.load_state_dict(checkpoint.extra["plateau"])
    run.early_stop.load_state_dict(checkpoint.extra["early_stop"])
    run.fabric.strategy.precision.load_state_dict(dict(checkpoint.extra.get("precision", {})))
    if run.module.force_scale is not None and checkpoint.extra.get("force_scale"):
        run.module.force_scale.load_state_dict(checkpoint.extra["force_scale"])
    run.start, run.seconds_before = checkpoint.step, float(checkpoint.extra["seconds"])


def _elements(splits: Splits) -> list[int]:
    from ase.data import atomic_numbers

    return sorted(atomic_numbers[symbol] for symbol in splits.train.manifest.statistics.get("elements", {}))
