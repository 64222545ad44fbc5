"""What an experiment is: variants, each a way to pre-train and to fine-tune, and the one all are compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from jmp_data.errors import ManifestError
from jmp_model.finetune.tasks import Forces
from jmp_model.train.config import parse_settings, read_recipe, recipe_names


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MixSpec(_Section):
    """Which data sets are mixed, and how."""

    datasets: tuple[str, ...] = ("oc20", "oc22", "ani1x", "transition1x")
    leave_out: tuple[str, ...] = ()
    temperature: float = Field(default=2.0, gt=0.0)
    without_overlap: bool = False
    """Leave out structures that the downstream data set holds too, exactly or nearly."""

    @property
    def names(self) -> tuple[str, ...]:
        """Data sets that are mixed."""
        return tuple(name for name in self.datasets if name not in self.leave_out)


class PretrainSpec(_Section):
    """A pre-training run."""

    mix: MixSpec = Field(default_factory=MixSpec)
    settings: dict[str, Any] = Field(default_factory=dict)
    """Changes to the recipe, as dotted keys."""


class FinetuneSpec(_Section):
    """A fine-tuning run."""

    task: str
    settings: dict[str, Any] = Field(default_factory=dict)
    """Changes to the recipe, as dotted keys."""
    tiny: dict[str, Any] = Field(default_factory=dict)
    """The same, for the tiny model alone: the published recipe is for models a hundred times larger."""
    tiny_forces: Forces | None = None
    """How the tiny model makes forces; None: as published for the task."""
    tiny_rates: tuple[float, ...] = ()
    """Base learning rates that the tiny model may take. Each variant takes the one that gives it the lowest error on
    the validation split with the first seed. None given: that of the recipe."""


class Variant(_Section):
    """One way to do it. Settings are added to those of the experiment."""

    pretrain: PretrainSpec | None = None
    """None: fine-tuning starts from scratch."""
    width: float = Field(default=1.0, gt=0.0)
    """Factor of the sizes of the atom and edge embeddings, of pre-training and of training from scratch."""
    finetune: dict[str, Any] = Field(default_factory=dict)
    """Changes to the experiment's fine-tuning, as dotted keys."""


class ExperimentSpec(_Section):
    """An experiment."""

    title: str
    question: str
    model: Literal["tiny", "small", "large"] = "tiny"
    seeds: tuple[int, ...] = (0, 1, 2)
    vary: Literal["finetune", "both"] = "finetune"
    """What seeds change: fine-tuning alone, all variants starting from the pre-training run of the first seed; or
    pre-training too."""
    pretrain: dict[str, Any] = Field(default_factory=dict)
    """Pre-training settings of all variants, as dotted keys."""
    tiny_pretrain: dict[str, Any] = Field(default_factory=dict)
    """The same, for the tiny model alone."""
    finetune: FinetuneSpec | None = None
    """None: only pre-training is compared, by its validation errors."""
    variants: dict[str, Variant] = Field(min_length=2)
    baseline: str

    @model_validator(mode="after")
    def _consistent(self) -> ExperimentSpec:
        if self.baseline not in self.variants:
            raise ValueError(f"baseline names {self.baseline}; the variants are {', '.join(self.variants)}")
        if self.finetune is None and any(variant.pretrain is None for variant in self.variants.values()):
            raise ValueError("a variant without pre-training needs fine-tuning")
        if not self.seeds:
            raise ValueError("at least one seed is needed")
        return self


def experiment_names() -> list[str]:
    """Names of the shipped experiments."""
    return recipe_names("experiments")


def load_experiment(name: str | Path) -> ExperimentSpec:
    """A shipped experiment by name, or one from a YAML file.

    Raises:
        ManifestError: no such experiment, or a bad one.
    """
    if str(name).endswith((".yaml", ".yml")):
        recipe: str | Path = name
    elif str(name) in experiment_names():
        recipe = f"experiments/{name}"
    else:
        raise ManifestError(
            f"no experiment {str(name)!r}: choose one of {', '.join(experiment_names())}, or a YAML file"
        )
    return parse_settings(ExperimentSpec, read_recipe(recipe), where=str(name))
