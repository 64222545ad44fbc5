"""A JMP model as an ASE calculator: energies and forces for relaxation, dynamics and all else that ASE does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from jmp_data.errors import CheckpointError
from jmp_model.inference import JMPModel, load_model


class JMPCalculator(Calculator):
    """Energy, free energy and forces; stress too where forces are the gradient of the energy.

    Forces of a direct head are no gradient of anything: they relax structures, but dynamics with them drifts in energy.
    `forces="gradient"` takes the derivative of the energy instead, and gives stresses.

    Args:
        model: a loaded model, or what `load_model` reads.
        task: pre-training task whose heads to use; needed where there are several.
        **options: of `load_model`, such as dtype, device or forces, where `model` is a path.

    Raises:
        CheckpointError: the task predicts no energy, or see `load_model`.
    """

    implemented_properties: ClassVar[list[str]] = ["energy", "free_energy", "forces", "stress"]

    def __init__(self, model: JMPModel | str | Path, *, task: str | None = None, **options: Any) -> None:
        super().__init__()
        if isinstance(model, JMPModel):
            if options:
                raise TypeError(f"{', '.join(options)}: options of load_model, which has loaded this model already")
        else:
            model = load_model(model, task=task, **options)
        self.model = model
        self.task = model.find_task(task)
        if self.task.output("energy") is None:
            raise CheckpointError(f"task {self.task.name} predicts no energy, which a calculator must have")
        self.implemented_properties = [  # type: ignore[misc]
            "energy",
            "free_energy",
            *(["forces"] if self.task.forces else []),
            *(["stress"] if self.task.forces == "gradient" else []),
        ]

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What changed since the last calculation; ASE does not look at tags, on which quadruplets depend."""
        changes: list[str] = super().check_state(atoms, tol=tol)
        if self.atoms is not None and not changes and not _same_tags(self.atoms, atoms):
            changes.append("tags")
        return changes

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Compute everything at once, with graphs built anew.

        Raises:
            PropertyNotImplementedError: stress without three lattice vectors.
        """
        super().calculate(atoms, list(properties), list(system_changes))
        has_stress = self.task.forces == "gradient" and bool(self.atoms.cell.rank == 3 and self.atoms.pbc.any())
        if "stress" in properties and not has_stress:
            raise PropertyNotImplementedError("stress needs a periodic cell of three lattice vectors")
        out = self.model(self.atoms, task=self.task.name, stress=has_stress)
        energy = float(out["energy"])
        self.results = {"energy": energy, "free_energy": energy}
        if "forces" in out:
            self.results["forces"] = out["forces"].cpu().double().numpy()
        if has_stress:
            self.results["stress"] = full_3x3_to_voigt_6_stress(out["stress"][0].cpu().double().numpy())


def _same_tags(left: Atoms, right: Atoms) -> bool:
    """Tags that were never set read as 0 in ASE, but are not the tag 0 here."""
    return left.has("tags") == right.has("tags") and np.array_equal(left.get_tags(), right.get_tags())
