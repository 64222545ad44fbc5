"""What a fine-tuning task is: data set, targets, heads, graph, metric, and the published figures to compare with.

The 40 tasks of the paper ship as tables in `recipes/finetune/*.yaml`, one file per data set; a task of one's own is a
YAML file with the fields of `TaskSpec`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from jmp_data.errors import ManifestError
from jmp_data.graphs import GraphSettings
from jmp_model.train.config import parse_settings, read_recipe

TargetKind = Literal["scalar", "extent", "class", "energy", "forces"]
Forces = Literal["gradient", "direct"]
DATASETS = ("qm9", "rmd17", "md22", "spice", "matbench", "qmof")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TargetSpec(_Section):
    """One target of a task. The head learns (value − Σ references − mean) / std."""

    column: str | None = None
    """Column of the data set; the target's own name by default."""
    kind: TargetKind = "scalar"
    """scalar: reduced over atoms; extent: Σ a·r² about the centre of mass; class: logits; energy: a bias-free sum,
    whose gradient may give forces; forces: a vector per atom."""
    reduction: Literal["sum", "mean", "max"] = "sum"
    coefficient: float = Field(default=1.0, ge=0.0)
    """In the loss; 0 leaves the target untrained."""
    mean: float | tuple[float, ...] | Literal["fit"] = 0.0
    """One number, one per fold, or fitted on the training split."""
    std: float | tuple[float, ...] | Literal["fit"] = 1.0
    references: dict[str, float] | Literal["fit"] | None = None
    """Element → value per atom, summed over atoms and subtracted first; "fit": least squares on the training split."""
    unit: str = ""
    """On disk."""
    report_unit: str | None = None
    report_scale: float = Field(default=1.0, gt=0.0)
    """report value = value × report_scale."""
    num_classes: int = Field(default=2, ge=2)
    class_weights: tuple[float, ...] | None = None
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)

    def of_fold(self, name: Literal["mean", "std"], fold: int | None) -> float | None:
        """The constant of a fold; None where it has to be fitted."""
        value = getattr(self, name)
        if value == "fit":
            return None
        return float(value[fold or 0]) if isinstance(value, tuple) else float(value)

    @property
    def metric(self) -> str:
        """What is measured: mae, or balanced_accuracy for classes."""
        return "balanced_accuracy" if self.kind == "class" else "mae"


class GraphSpec(_Section):
    """The four graphs."""

    cutoff: float = Field(gt=0.0)
    """Å."""
    max_neighbors: int = Field(default=30, ge=1)
    """Of the main graph; the others follow as 20/30, 8/30 and 1000/30 of it."""
    fewer_neighbors: dict[int, int] = Field(default_factory=dict)
    """More atoms than this → that many neighbours; the largest limit that is exceeded counts."""

    def settings(self, natoms: int) -> GraphSettings:
        """Settings for a structure of so many atoms."""
        limits = [limit for limit in self.fewer_neighbors if natoms > limit]
        count = self.fewer_neighbors[max(limits)] if limits else self.max_neighbors
        return GraphSettings.from_main_count(count, self.cutoff)


class Published(_Section):
    """Test errors in the paper, in report units: trained from scratch, and fine-tuned from JMP."""

    scratch_small: float | None = None
    scratch_large: float | None = None
    jmp_small: float | None = None
    jmp_large: float | None = None
    jmp_small_folds: float | None = None
    """Mean over five folds; the others are fold 0."""
    jmp_large_folds: float | None = None

    def figures(self, *, fold: int = 0) -> dict[str, float]:
        """Model of the paper → figure to compare a run with; for other folds than 0, means over five folds."""
        found = {
            "JMP-S": self.jmp_small_folds if fold else self.jmp_small,
            "JMP-L": self.jmp_large_folds if fold else self.jmp_large,
            "scratch-S": None if fold else self.scratch_small,
            "scratch-L": None if fold else self.scratch_large,
        }
        return {name: value for name, value in found.items() if value is not None}


class TaskSpec(_Section):
    """One fine-tuning task."""

    name: str
    """Such as qm9:U0."""
    dataset: str
    part: str | None = None
    """Molecule, task or subset, where the data set has several."""
    targets: dict[str, TargetSpec] = Field(min_length=1)
    primary: str
    """Target whose validation metric picks the best weights."""
    forces: Forces | None = None
    """How forces come about, if they are a target."""
    folds: int | None = None
    """How many folds the task has; its splits are fold<k>_train and so on then."""
    graph: GraphSpec
    batch_size: int = Field(default=32, ge=1)
    settings: dict[str, Any] = Field(default_factory=dict)
    """Changes to the common fine-tuning recipe, as dotted keys."""
    published: Published | None = None
    note: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> TaskSpec:
        kinds = {target.kind for target in self.targets.values()}
        if self.primary not in self.targets:
            raise ValueError(f"primary names {self.primary}; the targets are {', '.join(self.targets)}")
        if ("forces" in kinds) != (self.forces is not None):
            raise ValueError("forces says gradient or direct exactly where a target is of kind forces")
        for name in ("energy", "forces"):
            if sum(target.kind == name for target in self.targets.values()) > 1:
                raise ValueError(f"only one target can be of kind {name}")
        return self

    @property
    def folder(self) -> str:
        """Where `jmp-data build` puts the data set, below its output folder."""
        return self.dataset if self.part is None else f"{self.dataset}/{self.part}"

    def split(self, name: str, fold: int | None) -> str:
        """Folder name of a split.

        Raises:
            ManifestError: the task has no such fold.
        """
        self.check_fold(fold)
        return name if self.folds is None else f"fold{fold or 0}_{name}"

    def check_fold(self, fold: int | None) -> None:
        """Raise `ManifestError` for a fold that the task does not have."""
        if fold is None:
            return
        if self.folds is None:
            raise ManifestError(f"{self.name} has no folds; leave fold {fold} out")
        if not 0 <= fold < self.folds:
            raise ManifestError(f"{self.name} has folds 0 to {self.folds - 1}, not {fold}")

    def with_forces(self, forces: Forces) -> TaskSpec:
        """The same task with forces made in another way.

        Raises:
            ManifestError: it has no forces, or no energy whose gradient they could be.
        """
        kinds = {target.kind for target in self.targets.values()}
        if "forces" not in kinds:
            raise ManifestError(f"{self.name} has no forces; its targets are {', '.join(self.targets)}")
        if forces == "gradient" and "energy" not in kinds:
            raise ManifestError(f"{self.name} has no energy whose gradient its forces could be")
        return self.model_copy(update={"forces": forces})

    def column(self, target: str) -> str:
        """Column of the data set that holds a target."""
        return self.targets[target].column or target

    @property
    def higher_is_better(self) -> bool:
        """Whether the primary metric is to be maximised."""
        return self.targets[self.primary].kind == "class"


@cache
def published_tasks() -> Mapping[str, TaskSpec]:
    """All tasks that ship with the package, by name, in the order of the paper's tables."""
    return {task.name: task for dataset in DATASETS for task in _read_table(dataset)}


def paper_tasks() -> list[TaskSpec]:
    """The forty tasks of the paper: those with published figures."""
    return [task for task in published_tasks().values() if task.published is not None]


def find_task(name: str) -> TaskSpec:
    """A shipped task by name, several of one data set such as qm9:homo,lumo, or one's own from a YAML file.

    Raises:
        ManifestError: no such task; the message names those of the same data set.
    """
    if name.endswith((".yaml", ".yml")):
        return parse_settings(TaskSpec, read_recipe(name), where=name)
    dataset, _, parts = name.partition(":")
    if "," in parts:
        return combine_tasks([find_task(f"{dataset}:{part}") for part in parts.split(",")])
    tasks = published_tasks()
    if name in tasks:
        return tasks[name]
    same = [task for task in tasks if task.partition(":")[0] == dataset]
    if same:
        raise ManifestError(f"unknown task {name!r}; {dataset} has {', '.join(same)}")
    raise ManifestError(f"unknown task {name!r}: give dataset:target with one of {', '.join(DATASETS)}, or a YAML file")


def combine_tasks(tasks: Sequence[TaskSpec]) -> TaskSpec:
    """Learn the targets of several tasks with one model; the first task's primary target picks the best weights.

    Raises:
        ManifestError: they are not about the same structures, or share a target.
    """
    first = tasks[0]
    names = [name for task in tasks for name in task.targets]
    for task in tasks[1:]:
        if (task.folder, task.graph, task.folds, task.forces) != (first.folder, first.graph, first.folds, first.forces):
            raise ManifestError(f"{first.name} and {task.name} are about different structures: train two models")
    if len(set(names)) < len(names):
        raise ManifestError(f"{', '.join(task.name for task in tasks)}: a target is named twice")
    return first.model_copy(
        update={
            "name": ",".join([first.name, *(task.name.partition(":")[2] for task in tasks[1:])]),
            "targets": {name: target for task in tasks for name, target in task.targets.items()},
            "published": None,
        }
    )


def _read_table(dataset: str) -> list[TaskSpec]:
    table = read_recipe(f"finetune/{dataset}")
    defaults = table.get("defaults", {})
    tasks = []
    for name, entry in table["tasks"].items():
        merged = _merged({"dataset": dataset, "name": f"{dataset}:{name}", **defaults}, entry or {})
        tasks.append(parse_settings(TaskSpec, merged, where=f"{dataset}.yaml: {name}"))
    return tasks


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result
