"""The ASE calculator: ASE's own numerical checks, caching, relaxation and dynamics."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError, all_changes
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.io import read
from ase.io.trajectory import Trajectory
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS

from jmp_data.errors import CheckpointError
from jmp_model import JMPCalculator, load_model
from tests.jmp_model.gemnet_oc.structures import rattled, some_slab
from tests.jmp_model.tiny_checkpoints import write_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("checkpoint") / "tiny")


def conservative(folder: Path, task: str = "molecules") -> JMPCalculator:
    return JMPCalculator(folder, task=task, forces="gradient", dtype=torch.float64)


def ethanol(seed: int = 1) -> Atoms:
    return rattled(molecule("CH3CH2OH"), seed, size=0.03)


def small_crystal(seed: int = 2) -> Atoms:
    atoms = rattled(bulk("Cu", cubic=True), seed, size=0.05)
    atoms.set_cell(atoms.cell @ (np.eye(3) + 0.02 * np.random.default_rng(seed).normal(size=(3, 3))), scale_atoms=True)
    return atoms


@pytest.mark.parametrize("kind", ["molecule", "crystal"])
def test_forces_are_the_numerical_ones_of_ase(folder: Path, kind: str) -> None:
    atoms, task, step = (ethanol(), "molecules", 1e-4) if kind == "molecule" else (small_crystal(), "metals", 1e-6)
    atoms.calc = conservative(folder, task)
    forces = atoms.get_forces()
    # Truncated graphs change where neighbours change places: the step must not reach there.
    numerical = calculate_numerical_forces(atoms, eps=step, iatoms=[0, 2])
    assert np.abs(forces[[0, 2]] - numerical).max() < 1e-5 * np.abs(forces).max()


def test_stress_is_the_numerical_one_of_ase(folder: Path) -> None:
    atoms = small_crystal()
    atoms.calc = conservative(folder, "metals")
    stress = atoms.get_stress()
    assert stress.shape == (6,)
    numerical = calculate_numerical_stress(atoms, eps=1e-5)
    assert np.abs(stress - numerical).max() < 1e-5 * np.abs(stress).max()


def test_what_the_calculator_promises(folder: Path) -> None:
    direct, gradient = JMPCalculator(folder, task="molecules"), conservative(folder)
    assert direct.implemented_properties == ["energy", "free_energy", "forces"]
    assert gradient.implemented_properties == ["energy", "free_energy", "forces", "stress"]
    atoms = ethanol()
    atoms.calc = direct
    assert atoms.get_potential_energy() == atoms.get_potential_energy(force_consistent=True)
    assert atoms.get_forces().shape == (9, 3)
    assert atoms.get_forces().dtype == np.float64
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_stress()
    atoms.calc = gradient
    with pytest.raises(PropertyNotImplementedError, match="periodic cell"):
        atoms.get_stress()


def test_energies_are_total_ones(folder: Path) -> None:
    """Element references are added back: the energy is eV of the training data, not of the head."""
    atoms = ethanol()
    atoms.calc = JMPCalculator(folder, task="molecules")
    expected = 6 * -13.5 + 2 * -1029.0 - 2042.0
    assert abs(atoms.get_potential_energy() - expected) < 200.0


def test_nothing_is_computed_twice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    atoms = some_slab(1)
    calc = JMPCalculator(folder, task="metals")
    runs: list[list[str]] = []
    compute = calc.calculate

    def counted(atoms: Atoms, properties: list[str], changes: list[str] = all_changes) -> None:
        runs.append(list(changes))
        compute(atoms, properties, changes)

    monkeypatch.setattr(calc, "calculate", counted)
    atoms.calc = calc
    first = atoms.get_potential_energy()
    atoms.get_forces()
    assert len(runs) == 1
    atoms.positions[0] += 0.05
    assert atoms.get_potential_energy() != first
    assert runs[-1] == ["positions"]
    atoms.set_tags(2)
    atoms.get_potential_energy()
    assert runs[-1] == ["tags"]
    assert len(runs) == 3


def test_tags_that_are_set_to_zero_count_though_ase_reads_unset_ones_as_zero(folder: Path) -> None:
    atoms = small_crystal()
    atoms.calc = JMPCalculator(folder, task="metals", dtype=torch.float64)
    unset = atoms.get_potential_energy()
    atoms.set_tags(0)
    zero = atoms.copy()
    zero.calc = JMPCalculator(folder, task="metals", dtype=torch.float64)
    assert atoms.get_potential_energy() == zero.get_potential_energy() != unset


def test_calculators_are_copied_and_pickled(folder: Path) -> None:
    """Pools of processes hand calculators around."""
    atoms = small_crystal()
    atoms.calc = conservative(folder, "metals")
    expected = atoms.get_potential_energy()
    for again in (copy.deepcopy(atoms.calc), pickle.loads(pickle.dumps(atoms.calc))):
        again.reset()
        assert again.get_potential_energy(atoms) == expected
        assert again.model.core is not atoms.calc.model.core


def test_a_lone_atom_has_an_energy_and_no_force(folder: Path) -> None:
    atoms = Atoms("O")
    for calc in (JMPCalculator(folder, task="molecules"), conservative(folder)):
        atoms.calc = calc
        assert np.isfinite(atoms.get_potential_energy())
        assert (atoms.get_forces() == 0).all()


def test_a_loaded_model_serves_many_calculators(folder: Path) -> None:
    model = load_model(folder)
    with pytest.raises(CheckpointError, match="molecules, metals"):
        JMPCalculator(model)
    energies = set()
    for task in ("molecules", "metals"):
        atoms = ethanol()
        atoms.calc = JMPCalculator(model, task=task)
        energies.add(atoms.get_potential_energy())
    assert len(energies) == 2
    with pytest.raises(TypeError, match="dtype"):
        JMPCalculator(model, task="metals", dtype=torch.float64)


def test_relaxation_goes_downhill(folder: Path, tmp_path: Path) -> None:
    atoms = ethanol(3)
    atoms.calc = conservative(folder)
    before = atoms.get_potential_energy()
    with BFGS(atoms, trajectory=str(tmp_path / "relaxed.traj"), logfile=None, maxstep=0.05) as relaxation:
        relaxation.run(fmax=1e-3, steps=15)
    assert atoms.get_potential_energy() < before
    last = read(tmp_path / "relaxed.traj")
    assert last.get_potential_energy() == pytest.approx(atoms.get_potential_energy())


def energy_error(folder: Path, *, step_fs: float, steps: int) -> tuple[float, float]:
    """Largest change of the total and of the potential energy during dynamics at constant energy."""
    atoms = ethanol(4)
    atoms.calc = conservative(folder)
    MaxwellBoltzmannDistribution(atoms, temperature_K=300, rng=np.random.default_rng(0))
    dynamics = VelocityVerlet(atoms, timestep=step_fs * units.fs)
    total, potential = [atoms.get_total_energy()], [atoms.get_potential_energy()]
    for _ in range(steps):
        dynamics.run(1)
        total.append(atoms.get_total_energy())
        potential.append(atoms.get_potential_energy())
    return float(np.ptp(total)), float(np.ptp(potential))


def test_dynamics_keep_the_energy_and_keep_it_better_with_smaller_steps(folder: Path) -> None:
    """Forces that are gradients: what changes the total energy is the size of the steps."""
    coarse, swing = energy_error(folder, step_fs=0.5, steps=40)
    fine, _ = energy_error(folder, step_fs=0.25, steps=80)
    assert coarse < 0.05 * swing
    assert fine < 0.4 * coarse


def test_trajectories_keep_what_was_computed(folder: Path, tmp_path: Path) -> None:
    atoms = small_crystal()
    atoms.calc = conservative(folder, "metals")
    atoms.get_stress()
    with Trajectory(tmp_path / "one.traj", "w", atoms) as trajectory:
        trajectory.write()
    atoms.write(tmp_path / "one.extxyz")
    for name in ("one.traj", "one.extxyz"):
        again = read(tmp_path / name)
        assert again.get_potential_energy() == pytest.approx(atoms.get_potential_energy())
        assert again.get_forces() == pytest.approx(atoms.get_forces(), abs=1e-7)
        assert again.get_stress() == pytest.approx(atoms.get_stress(), abs=1e-7)
