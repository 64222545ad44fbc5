"""The TorchSim adapter, by TorchSim's own validation and against the ASE calculator."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from jmp_model import JMPCalculator
from tests.jmp_model.gemnet_oc.structures import rattled
from tests.jmp_model.tiny_checkpoints import write_tiny

torch_sim = pytest.importorskip("torch_sim", reason="TorchSim is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::jmp_model.inference.UntrainedElementWarning")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> torch.nn.Module:
    from jmp_model.torch_sim_model import JMPTorchSimModel

    folder = write_tiny(tmp_path_factory.mktemp("checkpoint") / "tiny")
    return JMPTorchSimModel(folder, task="metals", forces="gradient", dtype=torch.float64)


def skewed() -> Atoms:
    atoms = rattled(bulk("Cu", cubic=True), 1, size=0.05)
    atoms.set_cell(atoms.cell @ (np.eye(3) + 0.05 * np.random.default_rng(1).normal(size=(3, 3))), scale_atoms=True)
    return atoms


def test_torch_sim_finds_it_valid(model: torch.nn.Module) -> None:
    from torch_sim.models.interface import validate_model_outputs

    validate_model_outputs(model, torch.device("cpu"), torch.float64)


def test_numbers_are_those_of_the_calculator(model: torch.nn.Module) -> None:
    structures = [skewed(), rattled(bulk("Ni", cubic=True), 2, size=0.05)]
    out = model(torch_sim.io.atoms_to_state(structures, torch.device("cpu"), torch.float64))
    start = 0
    for number, atoms in enumerate(structures):
        atoms.calc = JMPCalculator(model.model, task="metals")
        assert float(out["energy"][number]) == pytest.approx(atoms.get_potential_energy(), rel=1e-12)
        assert out["forces"][start : start + len(atoms)].numpy() == pytest.approx(atoms.get_forces(), abs=1e-10)
        assert out["stress"][number].numpy() == pytest.approx(atoms.get_stress(voigt=False), abs=1e-10)
        start += len(atoms)


def test_molecules_have_no_stress(model: torch.nn.Module) -> None:
    atoms = molecule("H2O")
    atoms.set_cell(np.eye(3) * 20)
    state = torch_sim.io.atoms_to_state([atoms], torch.device("cpu"), torch.float64)
    assert model(state).keys() == {"energy", "forces"}
