"""The pre-training recipe: every number of a run in one typed model.

The defaults are the published recipe for JMP; `recipes/pretrain.yaml` spells them out, with reasons and alternatives.
Unknown keys are refused, and the resolved configuration is saved beside the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from jmp_data.errors import ManifestError

CONFIG_FILE = "config.yaml"
"""The resolved configuration, in the run folder."""

Precision = Literal["32-true", "16-mixed", "bf16-mixed"]
Model = TypeVar("Model", bound=BaseModel)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GraphEntry(_Section):
    """Graph of one data set, where the default does not fit."""

    cutoff: float = Field(gt=0.0)
    """Å."""
    max_neighbors: int = Field(default=30, ge=1)
    """Of the main graph; the others follow as 20/30, 8/30 and 1000/30 of it."""


class DataSettings(_Section):
    """What is read, and how it is cut into batches."""

    batch_size: int = Field(default=32, ge=1)
    """Structures per optimiser step, over all ranks and micro-batches together."""
    micro_batches: int = Field(default=1, ge=1)
    """Parts into which each rank cuts its share; gradients accumulate, numbers do not change."""
    num_workers: int = Field(default=0, ge=0)
    edge_dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    graphs: dict[str, GraphEntry] = Field(default_factory=dict)
    """Per data set; those not named get 12 Å where anything is periodic and 8 Å elsewhere, 30/20/8/1000 neighbours."""
    graphs_on: Literal["auto", "workers", "device"] = "auto"
    """Where graphs are built: by the loader and its workers, or on the device inside the step; `auto` is the device on
    CUDA and the workers elsewhere. The edges are the same, dropped ones too."""


class TargetSettings(_Section):
    """Element references and normalisers."""

    references: Literal["fitted", "published"] = "fitted"
    """Constants fitted on each training split by the build, or the published ones that its manifest carries."""
    force_weights: dict[str, float] = Field(
        default_factory=lambda: {"oc20": 73.0, "oc22": 80.0, "ani1x": 15.0, "transition1x": 14.0}
    )
    """λ_F per task; a task that is not named gets the mean number of atoms of its training structures."""
    energy_weight: float = Field(default=1.0, ge=0.0)
    force_loss: Literal["structurewise", "atomwise"] = "structurewise"


class OptimizerSettings(_Section):
    """AdamW, clipping and averaging."""

    peak_lr: float = Field(default=3.0e-4, gt=0.0)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(default=1.0e-8, gt=0.0)
    weight_decay: float = Field(default=0.1, ge=0.0)
    clip_norm: float = Field(default=1.0, gt=0.0)
    divide_shared_gradients: bool = True
    ema_decay: float = Field(default=0.99, ge=0.0, lt=1.0)


class ScheduleSettings(_Section):
    """How long, and how the learning rate moves."""

    epochs: float = Field(default=2.0, gt=0.0)
    steps: int | None = Field(default=None, ge=1)
    """Total optimiser steps; overrides `epochs`."""
    warmup_steps: int = Field(default=2000, ge=0)
    max_warmup_share: float = Field(default=0.1, gt=0.0, le=1.0)
    """The warm-up takes at most this share of the steps."""
    start_factor: float = Field(default=0.2, ge=0.0, le=1.0)
    end_factor: float = Field(default=0.1, ge=0.0, le=1.0)


class ValidationSettings(_Section):
    """When and on what errors are measured."""

    every_steps: int | None = Field(default=None, ge=1)
    """Also during training; by default after each epoch."""
    max_structures: int | None = Field(default=None, ge=1)
    """Of each validation set, the first ones; all by default."""
    batch_size: int | None = Field(default=None, ge=1)
    """Structures per pass and rank; the share of one rank in a training batch by default."""


class HardwareSettings(_Section):
    """Where it runs. None of this changes what is computed, rounding apart."""

    accelerator: str = "auto"
    devices: int | str = "auto"
    num_nodes: int = Field(default=1, ge=1)
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    precision: Precision = "32-true"
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    """"high" and "medium" let float32 products use TF32 or bfloat16 on a GPU."""
    compile: bool = False
    recompute: bool = False
    """Keep only what passes between blocks and run each block again in the backward pass: less memory, more work."""
    max_hours: float | None = Field(default=None, gt=0.0)
    """Stop with a checkpoint after this time; resume goes on."""


class CheckpointSettings(_Section):
    """What is kept."""

    every_steps: int | None = Field(default=None, ge=1)
    """By default ten times a run."""
    keep: int = Field(default=2, ge=1)
    """Most recent ones; older ones are deleted."""


class PretrainConfig(_Section):
    """One pre-training run.

    Relative paths are relative to the working directory.
    """

    mix: Path
    """Mixture file."""
    out: Path
    """Run folder, made where it does not exist."""
    model: Literal["tiny", "small", "large"] = "small"
    model_changes: dict[str, Any] = Field(default_factory=dict)
    """Fields of the backbone to change from the preset."""
    val: tuple[str, ...] | None = None
    """Folders or URLs of validation splits, matched by data set name; by default the `val` or `val_id` folder beside
    each training split. An empty list trains without validation."""
    init_from: Path | None = None
    """Checkpoint or released file to start from, instead of random weights and freshly fitted scale factors."""
    seed: int = 0
    log_every: int = Field(default=1, ge=1)
    """Write training metrics every so many steps."""
    scale_batches: int = Field(default=16, ge=1)
    """Batches on which scale factors are fitted."""
    data: DataSettings = Field(default_factory=DataSettings)
    targets: TargetSettings = Field(default_factory=TargetSettings)
    optimizer: OptimizerSettings = Field(default_factory=OptimizerSettings)
    schedule: ScheduleSettings = Field(default_factory=ScheduleSettings)
    validation: ValidationSettings = Field(default_factory=ValidationSettings)
    hardware: HardwareSettings = Field(default_factory=HardwareSettings)
    checkpoint: CheckpointSettings = Field(default_factory=CheckpointSettings)

    @model_validator(mode="after")
    def _micro_batches_fit(self) -> PretrainConfig:
        if self.data.micro_batches > self.data.batch_size:
            raise ValueError(
                f"data.micro_batches is {self.data.micro_batches}, "
                f"but a batch has only {self.data.batch_size} structures"
            )
        return self


def load_pretrain_config(
    recipe: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    resume: bool = False,
    **values: Any,
) -> PretrainConfig:
    """Read a recipe and apply what the command line says.

    Args:
        recipe: a YAML file, or the name of one that ships with the package; by default `pretrain_tiny` for the tiny
            model and `pretrain` for the others.
        overrides: `key=value` with dotted keys and YAML values, such as `optimizer.peak_lr=1e-3`; the last word.
        resume: start from the configuration that the run in `out` saved, instead of a recipe.
        **values: top-level fields such as `mix`, `out` and `model`; those that are None are left alone. `steps` and
            `epochs` go to the schedule.

    Raises:
        ManifestError: no such recipe, an unknown key or a value out of range.
    """
    given = {key: value for key, value in values.items() if value is not None}
    if resume and recipe is None and "out" in given:
        recipe = Path(given["out"]) / CONFIG_FILE
    if recipe is None:
        recipe = "pretrain_tiny" if given.get("model") == "tiny" else "pretrain"
    settings = read_recipe(recipe)
    for key in ("steps", "epochs"):
        if key in given:
            settings.setdefault("schedule", {})[key] = given.pop(key)
    return parse_settings(PretrainConfig, apply_overrides(settings | given, overrides), where=str(recipe))


def read_recipe(recipe: str | Path) -> dict[str, Any]:
    """The raw settings of a recipe file, or of a shipped recipe by name.

    Raises:
        ManifestError: no such recipe, or not a mapping.
    """
    path = Path(recipe)
    text: str | None = None
    if path.suffix in (".yaml", ".yml"):
        if not path.exists():
            raise ManifestError(f"{path}: no such recipe file")
        text = path.read_text()
    else:
        for folder in _recipe_folders():
            candidate = folder / f"{recipe}.yaml"
            if candidate.is_file():
                text = candidate.read_text()
                break
    if text is None:
        raise ManifestError(f"no recipe {recipe!r} ships with the package; give the path of a YAML file")
    try:
        settings = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ManifestError(f"{recipe}: not a YAML file: {str(error).splitlines()[0]}") from error
    if not isinstance(settings, dict):
        raise ManifestError(f"{recipe}: a recipe is a mapping of settings")
    return settings


def recipe_names(folder: str) -> list[str]:
    """Names of the recipes that ship in a folder of recipes, sorted."""
    found = [entry for root in _recipe_folders() if (root / folder).is_dir() for entry in (root / folder).iterdir()]
    return sorted({entry.name.removesuffix(".yaml") for entry in found if entry.name.endswith(".yaml")})


def _recipe_folders() -> list[Any]:
    """Package data of an installed wheel, or the folder of a checkout."""
    checkout = Path(__file__).resolve().parents[2] / "recipes"
    try:
        return [files("jmp_model._recipes"), checkout]
    except ModuleNotFoundError:
        return [checkout]


def apply_overrides(settings: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Set dotted keys in nested settings; values are YAML.

    Raises:
        ManifestError: an override is not of the form key=value.
    """
    result: dict[str, Any] = {key: dict(value) if isinstance(value, dict) else value for key, value in settings.items()}
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise ManifestError(f"--set {override!r}: write key=value, for example optimizer.peak_lr=0.001")
        node = result
        *parents, last = key.strip().split(".")
        for parent in parents:
            child = node.get(parent)
            node[parent] = dict(child) if isinstance(child, dict) else {}
            node = node[parent]
        node[last] = _yaml_value(text)
    return result


def _yaml_value(text: str) -> Any:
    value = yaml.safe_load(text)
    if isinstance(value, str):
        # YAML 1.1 reads 1e-3 as a string, because it has no decimal point.
        try:
            return float(value)
        except ValueError:
            return value
    return value


def parse_settings(kind: type[Model], settings: Mapping[str, Any], *, where: str) -> Model:
    """Validate settings.

    Raises:
        ManifestError: one line with the key and what is wrong with it.
    """
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise ManifestError(f"{where}: unknown setting {key}") from error
        raise ManifestError(f"{where}: {key or 'settings'}: {first['msg']}") from error


def save_config(config: BaseModel, path: Path) -> None:
    """Write the resolved configuration as YAML."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
