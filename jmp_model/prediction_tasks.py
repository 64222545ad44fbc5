"""What the heads of a checkpoint predict, and in which units: a `PredictionTask` for each task it was trained on.

A head's output o stands for Σ element references + mean + std × o.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from jmp_data.errors import CheckpointError
from jmp_data.graphs import MOLECULE, PERIODIC, GraphSettings
from jmp_model.finetune.model import KIND, build_model, head_name
from jmp_model.finetune.scales import TargetScale
from jmp_model.finetune.tasks import GraphSpec, TargetKind, TaskSpec
from jmp_model.gemnet_oc.backbone import BackboneOutput
from jmp_model.gemnet_oc.graphs import ModelInputs
from jmp_model.heads.finetuning import SpatialExtentHead
from jmp_model.heads.readout import edge_vectors_to_atoms, reduce_atoms
from jmp_model.inputs import GraphRule
from jmp_model.model import FineTuningModel, PretrainingModel
from jmp_model.train.checkpoint import Checkpoint

CoreModel = PretrainingModel | FineTuningModel
Head = Callable[[BackboneOutput, ModelInputs], Tensor]
ForceSource = Literal["direct", "gradient"]


@dataclass(frozen=True)
class HeadOutput:
    """One output of a task.

    Attributes:
        name: as users see it; "energy" and "forces" have eV and eV/Å.
        kind: what it is.
        head: computes it from features, in normalised units.
        scale: to the unit of the data set.
    """

    name: str
    kind: TargetKind
    head: Head
    scale: TargetScale


@dataclass(frozen=True)
class PredictionTask:
    """Heads that are evaluated together.

    Attributes:
        name: of the task.
        outputs: of its heads.
        forces: where forces come from; None for a task without.
        graphs: settings for a structure.
        elements: atomic numbers in the training data; None where the checkpoint does not say.
        remarks: what a user must know about the numbers.
    """

    name: str
    outputs: tuple[HeadOutput, ...]
    forces: ForceSource | None
    graphs: GraphRule
    elements: frozenset[int] | None
    remarks: tuple[str, ...] = ()

    def output(self, kind: TargetKind) -> HeadOutput | None:
        """The output of a kind of which there is at most one."""
        return next((output for output in self.outputs if output.kind == kind), None)

    @property
    def energy_is_relative(self) -> bool:
        """Whether energies are relative to unknown references, or were not trained."""
        return any(RELATIVE in remark for remark in self.remarks)

    def with_gradient_forces(self) -> PredictionTask:
        """The same task with forces taken as minus the derivative of its energy.

        Raises:
            CheckpointError: it predicts no energy.
        """
        if self.output("energy") is None:
            raise CheckpointError(f"task {self.name} predicts no energy, which gradient forces would need")
        return replace(
            self, forces="gradient", outputs=tuple(output for output in self.outputs if output.kind != "forces")
        )


RELATIVE = "energies are relative"


def restore_tasks(
    checkpoint: Checkpoint, where: Path, *, averaged: bool
) -> tuple[CoreModel, dict[str, PredictionTask]]:
    """The model of a checkpoint with its weights, and what it predicts.

    Raises:
        CheckpointError: the weights do not fit the checkpoint's own settings.
    """
    # Random weights that are overwritten at once would take a minute for the large model.
    if checkpoint.extra.get("kind") == KIND:
        spec = TaskSpec.model_validate(checkpoint.extra["task"])
        with torch.device("meta"):
            tuned = build_model(spec, checkpoint.backbone, kept_heads=checkpoint.extra["kept_heads"])
        _take_weights(tuned, checkpoint.weights(averaged=averaged), where)
        for head in tuned.heads.values():
            if isinstance(head, SpatialExtentHead):
                head.masses = SpatialExtentHead(tuned.config).masses
        return tuned, {spec.name: _fine_tuned(tuned, checkpoint, spec)}
    with torch.device("meta"):
        model = PretrainingModel(checkpoint.backbone, tasks=checkpoint.tasks)
    _take_weights(model, checkpoint.weights(averaged=averaged), where)
    return model, {task: _pretrained(model, checkpoint, index) for index, task in enumerate(checkpoint.tasks)}


def _take_weights(model: nn.Module, weights: Mapping[str, Tensor], where: Path) -> None:
    try:
        model.load_state_dict(dict(weights), assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{where}: its weights do not fit its own settings: {reason}") from error


def _pretrained(model: PretrainingModel, checkpoint: Checkpoint, index: int) -> PredictionTask:
    normalizer = checkpoint.normalizers[index]
    energy = TargetScale(normalizer.energy_mean, normalizer.energy_std, dict(normalizer.reference))
    outputs = [HeadOutput("energy", "energy", partial(_sum_of_atoms, model.output.out_energy[index]), energy)]
    if model.config.direct_forces:
        head = partial(_sum_of_edges, model.output.out_forces[index])
        outputs.append(HeadOutput("forces", "forces", head, TargetScale(0.0, normalizer.force_std)))
    remarks: tuple[str, ...] = ()
    if not normalizer.reference:
        remarks = (
            f"{RELATIVE}: the checkpoint has no element references for {normalizer.task}, so they compare structures "
            "of one composition only",
        )
    return PredictionTask(
        name=normalizer.task,
        outputs=tuple(outputs),
        forces="direct" if model.config.direct_forces else "gradient",
        graphs=_pretraining_graphs(checkpoint, normalizer.task),
        elements=_pretraining_elements(checkpoint, index),
        remarks=remarks,
    )


def _sum_of_atoms(head: nn.Module, features: BackboneOutput, inputs: ModelInputs) -> Tensor:
    return reduce_atoms(head(features.atom_features).squeeze(-1), inputs, "sum")


def _sum_of_edges(head: nn.Module, features: BackboneOutput, _: ModelInputs) -> Tensor:
    return edge_vectors_to_atoms(head(features.edge_features), features).squeeze(-1)


def _pretraining_graphs(checkpoint: Checkpoint, task: str) -> GraphRule:
    """The graphs of training: the run's own for the task, else 12 Å where anything is periodic and 8 Å elsewhere."""
    tags = checkpoint.backbone.qint_tags
    entry = checkpoint.config.get("data", {}).get("graphs", {}).get(task)
    if entry is not None:
        own = replace(GraphSettings.from_main_count(entry["max_neighbors"], entry["cutoff"]), qint_tags=tags)
        return partial(_graphs_by_kind, own, own)
    return partial(_graphs_by_kind, replace(PERIODIC, qint_tags=tags), replace(MOLECULE, qint_tags=tags))


def _graphs_by_kind(periodic: GraphSettings, open_: GraphSettings, _: int, is_periodic: bool) -> GraphSettings:
    return periodic if is_periodic else open_


def _pretraining_elements(checkpoint: Checkpoint, index: int) -> frozenset[int] | None:
    normalizer = checkpoint.normalizers[index]
    own = checkpoint.extra.get("task_elements", {}).get(normalizer.task)
    found: Any = own or list(normalizer.reference) or checkpoint.extra.get("elements")
    return frozenset(found) if found else None


def _fine_tuned(model: FineTuningModel, checkpoint: Checkpoint, spec: TaskSpec) -> PredictionTask:
    outputs, remarks = [], []
    for name, target in spec.targets.items():
        if target.kind == "forces" and spec.forces == "gradient":
            continue
        shown, scale = head_name(name, target), TargetScale.from_json(checkpoint.extra["scales"][name])
        outputs.append(HeadOutput(shown, target.kind, model.heads[shown], scale))
        if target.kind == "energy" and target.coefficient == 0.0:
            remarks.append(f"{RELATIVE}: {spec.name} was trained on forces alone, so only differences mean something")
    elements = checkpoint.extra.get("elements")
    return PredictionTask(
        name=spec.name,
        outputs=tuple(outputs),
        forces=spec.forces,
        graphs=partial(_fine_tuning_graphs, spec.graph, checkpoint.backbone.qint_tags),
        elements=frozenset(elements) if elements else None,
        remarks=tuple(remarks),
    )


def _fine_tuning_graphs(spec: GraphSpec, tags: tuple[int, ...], natoms: int, periodic: bool) -> GraphSettings:
    return replace(spec.settings(natoms), qint_tags=tags)


def to_physical(output: HeadOutput, value: Tensor, inputs: ModelInputs) -> Tensor:
    """A head's output in the unit of the data set.

    Energies and other sums are float64, as references are 10⁵ times what is learned; forces keep their type; classes
    become probabilities: (B,) of the second class where there are two, else (B, classes).
    """
    if output.kind == "forces":
        return value * output.scale.std
    if output.kind == "class":
        return value.sigmoid() if value.dim() == 1 else value.softmax(dim=-1)
    offset = output.scale.offset(inputs.atomic_numbers.cpu(), inputs.batch.cpu(), inputs.num_structures)
    return value.to(torch.float64) * output.scale.std + offset.to(value.device)
