"""Trained models as plain PyTorch: structures in, energies in eV and forces in eV/Å out.

References and normalisers are undone, graphs are built as in training, and what the checkpoint cannot know is said:
elements that it was never trained on, energies without references.

    model = load_model("run", task="ani1x")
    out = model(atoms)                      # or a list of them, of Structure, or a torch_geometric batch
    out["energy"], out["forces"]            # (B,) float64 eV; (N, 3) eV/Å, atoms of all structures in a row
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from jmp_data.errors import CheckpointError
from jmp_model.gemnet_oc.graphs import ModelInputs
from jmp_model.gemnet_oc.scaling import unfitted_scales
from jmp_model.heads.readout import reduce_atoms
from jmp_model.inputs import as_structure, element_symbol, model_inputs
from jmp_model.prediction_tasks import CoreModel, HeadOutput, PredictionTask, restore_tasks, to_physical
from jmp_model.weights.any_checkpoint import read_any_checkpoint
from jmp_model.weights.convert import Weights

Forces = Literal["trained", "gradient"]


class UntrainedElementWarning(UserWarning):
    """A structure holds an element that was not in the training data."""


def load_model(
    path: str | Path,
    *,
    task: str | None = None,
    weights: Weights = "ema",
    forces: Forces = "trained",
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> JMPModel:
    """Load a pre-trained or fine-tuned model, ready to predict.

    Args:
        path: a checkpoint folder, a run folder (its best weights, or else its latest), or a released `.pt` file.
        task: pre-training task whose heads to use; needed where there are several, unless each call names one.
        weights: averaged weights where the checkpoint has any, or the live ones.
        forces: as the model was trained to give them, or in any case minus the derivative of its energy, which makes
            them conservative and gives stresses.
        dtype: of the computation; float64 for finite differences and long trajectories.
        device: where to compute.

    Raises:
        MissingFileError: there is nothing at that path.
        CheckpointError: it is no checkpoint, damaged, lacks scale factors, or has no such task.
        ValueError: the dtype is a half precision, in which positions are no positions.
    """
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"dtype is {dtype}: models compute in float32 or float64; torch.autocast takes less where it can"
        )
    path = Path(path)
    checkpoint = read_any_checkpoint(path, weights=weights)
    core, tasks = restore_tasks(checkpoint, path, averaged=weights == "ema")
    unfitted = unfitted_scales(core)
    if unfitted:
        raise CheckpointError(f"{path}: {len(unfitted)} scale factors were never fitted, first {unfitted[0]}")
    if forces == "gradient":
        tasks = {name: entry.with_gradient_forces() for name, entry in tasks.items()}
    return JMPModel(core.to(device=device, dtype=dtype), tasks, task=task)


class JMPModel(nn.Module):
    """Predicts in physical units. Made by `load_model`.

    Attributes:
        core: the bare network.
        tasks: what it can predict, by name.
        task: the one that is used where a call names none; None if there are several and none was chosen.
    """

    def __init__(self, core: CoreModel, tasks: dict[str, PredictionTask], *, task: str | None = None) -> None:
        super().__init__()
        self.core = core.eval().requires_grad_(False)
        self.tasks = tasks
        if task is None and len(tasks) == 1:
            task = next(iter(tasks))
        self.task = task if task is None else self.find_task(task).name

    def find_task(self, name: str | None = None) -> PredictionTask:
        """The task of that name, or the chosen one.

        Raises:
            CheckpointError: no such task, or none chosen where there are several.
        """
        name = self.task if name is None else name
        if name is None:
            raise CheckpointError(
                f"the model has heads for {', '.join(self.tasks)}, whose energies mean different things: "
                "choose one with --task (task= in Python)"
            )
        if name not in self.tasks:
            raise CheckpointError(f"the model has no heads for {name!r}; it has {', '.join(self.tasks)}")
        return self.tasks[name]

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the computation."""
        return next(self.core.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.core.parameters()).device

    def forward(self, structures: Any, *, task: str | None = None, stress: bool = False) -> dict[str, Tensor]:
        """Predict for one batch.

        Args:
            structures: a `Structure`, `ase.Atoms`, sequence of them, `torch_geometric` `Data` or `Batch`, or
                `ModelInputs`.
            task: overrides the chosen one.
            stress: also the stress, for models whose forces are gradients.

        Returns:
            energy: (B,) float64, eV.
            forces: (N, 3), eV/Å.
            stress: (B, 3, 3), eV/Å³, positive under tension; NaN for structures without a cell.
            Further targets by name, (B,), in the unit of their data set.

        Raises:
            InvalidStructureError: atoms that break the schema.
            CheckpointError: no such task; stress from direct forces.
        """
        chosen = self.find_task(task)
        if stress and chosen.forces != "gradient":
            raise CheckpointError(
                f"task {chosen.name} predicts forces directly: there is no stress that belongs to them"
            )
        # Gradients are needed inside, whatever mode the caller is in.
        with torch.inference_mode(False), torch.set_grad_enabled(chosen.forces == "gradient"):
            inputs = model_inputs(structures, chosen.graphs)
            self._warn_of_elements(inputs, chosen)
            inputs = _centred(inputs).to(self.device).with_dtype(self.dtype)
            if chosen.forces == "gradient":
                return self._with_gradient(inputs, chosen, stress=stress)
            return {output.name: to_physical(output, value, inputs) for output, value in self._evaluate(inputs, chosen)}

    def predict(
        self, structures: Iterable[Any], *, task: str | None = None, batch_size: int = 32, stress: bool = False
    ) -> Iterator[dict[str, Any]]:
        """Predict for any number of structures, in batches.

        Args:
            structures: `Structure` or `ase.Atoms`, as many as there are; taken as they are needed.
            task: overrides the chosen one.
            batch_size: structures evaluated together.
            stress: also the stress, as in `forward`.

        Yields:
            For each structure a float, or an array, by name: energy, forces (natoms, 3), ...
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        rest = iter(structures)
        while group := list(islice(rest, batch_size)):
            entries = [as_structure(entry) for entry in group]
            out = {name: value.cpu().numpy() for name, value in self(entries, task=task, stress=stress).items()}
            bounds = np.cumsum([entry.natoms for entry in entries])[:-1]
            columns = {
                name: np.split(value, bounds) if name == "forces" else list(value) for name, value in out.items()
            }
            for number in range(len(entries)):
                yield {name: _plain(column[number]) for name, column in columns.items()}

    def _evaluate(self, inputs: ModelInputs, task: PredictionTask) -> list[tuple[HeadOutput, Tensor]]:
        features = self.core.backbone(self.core.embedding(inputs.atomic_numbers), inputs)
        return [(output, output.head(features, inputs)) for output in task.outputs]

    def _with_gradient(self, inputs: ModelInputs, task: PredictionTask, *, stress: bool) -> dict[str, Tensor]:
        """Forces and stress as derivatives; the graphs of the unstrained structure are those of the strained one."""
        positions = inputs.positions.detach().clone().requires_grad_()
        strain = inputs.cell.new_zeros(inputs.num_structures, 3, 3, requires_grad=stress)
        moved = _strained(inputs, positions, strain) if stress else replace(inputs, positions=positions)
        raw = self._evaluate(moved, task)
        output, energy = next((output, value) for output, value in raw if output.kind == "energy")
        gradients = _gradients(energy, [positions, strain] if stress else [positions])
        found = {output.name: to_physical(output, value.detach(), inputs) for output, value in raw}
        found["forces"] = -output.scale.std * gradients[0]
        if stress:
            volume = torch.linalg.det(inputs.cell.double()).abs().to(energy.dtype)
            virial = output.scale.std * gradients[1] / volume[:, None, None]
            found["stress"] = torch.where(volume[:, None, None] > 0, virial, torch.nan)
        return found

    def _warn_of_elements(self, inputs: ModelInputs, task: PredictionTask) -> None:
        if task.elements is None:
            return
        unseen = sorted(set(torch.unique(inputs.atomic_numbers).tolist()) - task.elements)
        if unseen:
            symbols = ", ".join(map(element_symbol, unseen))
            warnings.warn(
                f"{symbols}: never occurred in the training data of {task.name}; nothing was learned about them there, "
                "and their energy reference counts 0",
                UntrainedElementWarning,
                stacklevel=3,
            )


def _centred(inputs: ModelInputs) -> ModelInputs:
    """Each structure around the origin: single precision would round distances between atoms that lie far from it."""
    positions = inputs.positions.double()
    centre = reduce_atoms(positions, replace(inputs, positions=positions), "mean")
    return replace(inputs, positions=positions - centre[inputs.batch])


def _strained(inputs: ModelInputs, positions: Tensor, strain: Tensor) -> ModelInputs:
    """Positions and cells after a small symmetric strain, (B, 3, 3)."""
    symmetric = (strain + strain.transpose(1, 2)) / 2
    moved = positions + torch.einsum("ni,nij->nj", positions, symmetric[inputs.batch])
    return replace(inputs, positions=moved, cell=inputs.cell + inputs.cell @ symmetric)


def _gradients(energy: Tensor, wanted: list[Tensor]) -> list[Tensor]:
    """∂ΣE/∂each; zeros where the energy does not depend on it, as for lone atoms."""
    if not energy.requires_grad:
        return [torch.zeros_like(value) for value in wanted]
    found = torch.autograd.grad(energy.sum(), wanted, allow_unused=True)
    return [torch.zeros_like(value) if g is None else g for value, g in zip(wanted, found, strict=True)]


def _plain(value: Any) -> Any:
    return value.item() if np.ndim(value) == 0 else value
