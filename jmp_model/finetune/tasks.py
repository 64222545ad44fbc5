"""What a fine-tuning task is: data set, targets, heads, graph, metric, and the published figures to compare with.

The 40 tasks of the paper ship as tables in `recipes/finetune/*.yaml`, one file per data set; a task of one's own is a
YAML file with the fields of `TaskSpec`.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = "32-true"
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
    """A shipped task by name, or one's own from a YAML file.

    Raises:
        ManifestError: no such task; the message names those of the same data set.
    """
    if name.endswith((".yaml", ".yml")):
        return parse_settings(TaskSpec, read_recipe(name), where=name)
    tasks = published_tasks()
    if name in tasks:
        return tasks[name]
    dataset = name.partition(":")[0]
    same = [task for task in tasks if task.partition(":")[0] == dataset]
    if same:
        raise ManifestError(f"unknown task {name!r}; {dataset} has {', '.join(same)}")
    raise ManifestError(f"unknown task {name!r}: give dataset:target with one of {', '.join(DATASETS)}, or a YAML file")


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
