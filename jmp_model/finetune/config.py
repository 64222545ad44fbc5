"""The fine-tuning recipe. Defaults are the published ones; `recipes/finetune.yaml` gives reasons and alternatives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from jmp_model.finetune.tasks import TaskSpec, find_task
from jmp_model.train.config import CONFIG_FILE, HardwareSettings, apply_overrides, parse_settings, read_recipe


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataSettings(_Section):
    """Where the splits lie and how much of them is used."""

    root: Path | None = None
    """Output folder of `jmp-data build`; the task's splits are looked up below it."""
    train: str | None = None
    """Folder or URL of a split, instead of looking it up; the same for val and test."""
    val: str | None = None
    test: str | None = None
    train_first: int | None = Field(default=None, ge=1)
    """Train on the first so many structures."""
    val_first: int | None = Field(default=None, ge=1)
    test_first: int | None = Field(default=None, ge=1)
    batch_size: int | None = Field(default=None, ge=1)
    """The task's by default."""
    micro_batches: int = Field(default=1, ge=1)
    num_workers: int = Field(default=0, ge=0)


class OptimizerSettings(_Section):
    """AdamW, clipping and averaging."""

    base_lr: float = Field(default=8.0e-5, gt=0.0)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(default=1.0e-8, gt=0.0)
    weight_decay: float = Field(default=0.1, ge=0.0)
    clip_value: float | None = Field(default=1.0, gt=0.0)
    clip_norm: float | None = Field(default=None, gt=0.0)
    divide_shared_gradients: bool = True
    ema_decay: float | None = Field(default=None, ge=0.0, lt=1.0)
    layer_rates: Literal["published", "uniform"] | dict[str, float] = "published"
    """Factors of the learning rate by group of layers; see `jmp_model.finetune.groups`."""

    @model_validator(mode="after")
    def _one_clipping(self) -> OptimizerSettings:
        if self.clip_value is not None and self.clip_norm is not None:
            raise ValueError("clip either by value or by norm; set the other to null")
        return self


class ScheduleSettings(_Section):
    """Warm-up, cosine, then plateau."""

    warmup_epochs: float = Field(default=5.0, ge=0.0)
    start_factor: float = Field(default=0.1, ge=0.0, le=1.0)
    cosine_epochs: float = Field(default=32.0, gt=0.0)
    """Epoch at which the cosine reaches its floor and the plateau rule takes over."""
    end_factor: float = Field(default=0.1, ge=0.0, le=1.0)
    plateau_factor: float = Field(default=0.8, gt=0.0, lt=1.0)
    plateau_patience: int = Field(default=3, ge=0)
    plateau_threshold: float = Field(default=1.0e-4, ge=0.0)
    max_epochs: int = Field(default=500, ge=1)
    max_steps: int | None = Field(default=None, ge=1)
    """Ends the run earlier; also the last step of the cosine, if that lies later."""


class StopSettings(_Section):
    """When to give up."""

    patience: int = Field(default=50, ge=0)
    """Validations without improvement."""
    min_delta: float = Field(default=1.0e-8, ge=0.0)
    min_lr: float = Field(default=1.0e-8, ge=0.0)
    """Stop when the largest rate of all groups falls below."""
    max_hours: float | None = Field(default=168.0, gt=0.0)
    """End training after this time, over all resumptions, and evaluate; hardware.max_hours only interrupts."""


class FinetuneConfig(_Section):
    """One fine-tuning run."""

    task: TaskSpec
    out: Path
    start: Path | None = None
    """Pre-trained checkpoint; without one the model is trained from scratch."""
    model: Literal["tiny", "small", "large"] = "small"
    """Preset for training from scratch; a checkpoint brings its own."""
    model_changes: dict[str, Any] = Field(default_factory=dict)
    keep_heads: str | None = None
    """Pre-training task whose energy head (and force head, for direct forces) is kept instead of made anew."""
    refit_references: bool = False
    """Fit element references on the training split: instead of those that a task gives, or, for kept heads, of what
    these leave unexplained."""
    freeze: tuple[str, ...] = ()
    """Beginnings of parameter names that stay as they are, such as backbone or embedding."""
    new_elements: Literal["refuse", "train"] = "refuse"
    """What to do with elements that pre-training never saw."""
    fold: int | None = None
    seed: int = 0
    log_every: int = Field(default=10, ge=1)
    force_loss: Literal["structurewise", "atomwise"] = "atomwise"
    scale_batches: int = Field(default=16, ge=1)
    data: DataSettings = Field(default_factory=DataSettings)
    optimizer: OptimizerSettings = Field(default_factory=OptimizerSettings)
    schedule: ScheduleSettings = Field(default_factory=ScheduleSettings)
    stop: StopSettings = Field(default_factory=StopSettings)
    hardware: HardwareSettings = Field(default_factory=HardwareSettings)
    report: bool = True
    """Draw parity plots and learning curves, list worst structures."""

    @property
    def batch_size(self) -> int:
        """Structures per optimiser step over all ranks."""
        return self.data.batch_size or self.task.batch_size


def load_finetune_config(
    task: str | TaskSpec | None = None,
    *,
    recipe: str | Path | None = None,
    overrides: Sequence[str] = (),
    resume: bool = False,
    **values: Any,
) -> FinetuneConfig:
    """Put a run together: common recipe, then what the task changes, then the recipe given, then overrides.

    Args:
        task: name such as qm9:U0, a YAML file, or a task.
        recipe: YAML file whose settings go over the common ones.
        overrides: `key=value` with dotted keys; the last word.
        resume: start from the configuration that the run in `out` saved.
        **values: top-level fields such as `start`, `out`, `seed`, `fold`; those that are None are left alone.

    Raises:
        ManifestError: unknown task or setting, or a value out of range.
    """
    given = {key: value for key, value in values.items() if value is not None}
    if resume and "out" in given:
        settings = read_recipe(Path(given["out"]) / CONFIG_FILE)
    else:
        settings = read_recipe("finetune")
        spec = find_task(task) if isinstance(task, str) else task
        if spec is not None:
            settings = apply_overrides(settings, [f"{key}={value}" for key, value in spec.settings.items()])
            settings["task"] = spec.model_dump(mode="json")
    if recipe is not None:
        settings = _over(settings, read_recipe(recipe))
    settings = apply_overrides(settings | given, overrides)
    config = parse_settings(FinetuneConfig, settings, where="fine-tuning" if recipe is None else str(recipe))
    config.task.check_fold(config.fold)
    return config


def _over(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = _over(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
