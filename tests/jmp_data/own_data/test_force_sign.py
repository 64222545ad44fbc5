"""The sign of forces from energies alone: real potentials, turned around and put into wrong units."""

from __future__ import annotations

import re
from pathlib import Path

import ase.build
import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.md.verlet import VelocityVerlet

from jmp_data.own_data import OwnData
from tests.jmp_data.own_data.manifests import notes_of, read_all, write_manifest


@pytest.fixture(scope="module")
def trajectory() -> list[Atoms]:
    """Copper atoms in motion, 30 frames, effective medium theory."""
    atoms = ase.build.bulk("Cu", cubic=True) * (2, 1, 1)
    atoms.rattle(0.15, seed=3)
    atoms.calc = EMT()
    frames: list[Atoms] = []
    dynamics = VelocityVerlet(atoms, timestep=3 * units.fs)
    for _ in dynamics.irun(30):
        frame = atoms.copy()
        results = {"energy": atoms.get_potential_energy() - 300.0, "forces": atoms.get_forces()}
        frame.calc = SinglePointCalculator(frame, **results)
        frames.append(frame)
    return frames


def write(path: Path, frames: list[Atoms], *, energy: float = 1.0, forces: float = 1.0, wrap: bool = False) -> None:
    written = []
    for atoms in frames:
        copy = atoms.copy()
        if wrap:
            copy.wrap()
        results = {"energy": atoms.calc.results["energy"] * energy, "forces": atoms.calc.results["forces"] * forces}
        copy.calc = SinglePointCalculator(copy, **results)
        written.append(copy)
    ase.io.write(path, written)


def test_forces_are_confirmed(tmp_path: Path, trajectory: list[Atoms]) -> None:
    write(tmp_path / "a.extxyz", trajectory)
    source, collected = read_all(tmp_path, "a.extxyz")
    np.testing.assert_allclose(collected.block.forces[:8], trajectory[0].get_forces(), rtol=1e-5)
    notes = notes_of(source)
    assert "force_sign: the energy falls along the forces in 100% of" in notes
    assert 0.97 < float(re.search(r"near frames, (\S+) times as much", notes)[1]) < 1.03


def test_a_leaking_split_names_only_rules_that_divide_these_files(tmp_path: Path, trajectory: list[Atoms]) -> None:
    write(tmp_path / "a.extxyz", trajectory)
    write(tmp_path / "b.extxyz", trajectory[:5])
    at_random = {"by": "structure"}
    one = OwnData(write_manifest(tmp_path / "one.yaml", files=["a.extxyz"], splits=at_random))
    two = OwnData(write_manifest(tmp_path / "two.yaml", files=["a.extxyz", "b.extxyz"], splits=at_random))
    assert "so a random split leaks; consider by: order\n" in f"{notes_of(one)}\n"
    assert "so a random split leaks; consider by: order or by: file\n" in f"{notes_of(two)}\n"


def test_gradients_are_turned_and_it_is_said(tmp_path: Path, trajectory: list[Atoms]) -> None:
    write(tmp_path / "a.extxyz", trajectory, forces=-1.0)
    source, collected = read_all(tmp_path, "a.extxyz")
    np.testing.assert_allclose(collected.block.forces[:8], trajectory[0].get_forces(), rtol=1e-5)
    assert "GUESSED force_sign: gradient, for read the other way the energy falls along the forces in 0%" in notes_of(
        source
    )


def test_a_declared_sign_is_kept_and_doubted(tmp_path: Path, trajectory: list[Atoms]) -> None:
    write(tmp_path / "a.extxyz", trajectory, forces=-1.0)
    source, collected = read_all(tmp_path, "a.extxyz", force_sign="force")
    np.testing.assert_allclose(collected.block.forces[:8], -trajectory[0].get_forces(), rtol=1e-5)
    assert "WARNING, force_sign: these look like gradients, not forces" in notes_of(source)


@pytest.mark.parametrize(
    ("declared", "energy", "forces", "mistake"),
    [
        ({}, 1 / units.Hartree, 1.0, "energies in hartree taken as eV"),
        ({}, 1.0, 1 / units.Hartree, "forces in hartree/Å taken as eV/Å"),
        ({}, 1.0, units.Bohr / units.Hartree, "forces in hartree/bohr taken as eV/Å"),
        ({}, 1.0, units.mol / units.kcal, "forces in kcal/mol/Å taken as eV/Å"),
    ],
)
def test_units_that_do_not_belong_together(tmp_path, trajectory, declared, energy, forces, mistake) -> None:
    write(tmp_path / "a.extxyz", trajectory, energy=energy, forces=forces)
    source, _ = read_all(tmp_path, "a.extxyz", **declared)
    assert f"looks like {mistake}" in notes_of(source)


def test_hartree_per_angstrom_is_found_by_itself(tmp_path: Path, trajectory: list[Atoms]) -> None:
    """Energies declared in hartree suggest hartree/bohr; the work between frames says otherwise (as for ANI-1x)."""
    write(tmp_path / "a.extxyz", trajectory, energy=1 / units.Hartree, forces=1 / units.Hartree)
    source, collected = read_all(tmp_path, "a.extxyz", units={"energy": "hartree"})
    np.testing.assert_allclose(collected.block.forces[:8], trajectory[0].get_forces(), rtol=1e-5)
    assert "GUESSED units.forces: hartree/Å after all" in notes_of(source)


def test_unrelated_frames_are_not_tested(tmp_path: Path) -> None:
    from tests.jmp_data.own_data.written import random_atoms

    ase.io.write(tmp_path / "a.extxyz", random_atoms(30))
    source, _ = read_all(tmp_path, "a.extxyz")
    assert "force_sign: not tested: 0 pairs" in notes_of(source)


def test_energies_without_meaning_are_undecided(tmp_path: Path, trajectory: list[Atoms]) -> None:
    rng = np.random.default_rng(1)
    frames = [atoms.copy() for atoms in trajectory]
    for frame, atoms in zip(frames, trajectory, strict=True):
        frame.calc = SinglePointCalculator(frame, energy=-300 + rng.normal(), forces=atoms.get_forces())
    ase.io.write(tmp_path / "a.extxyz", frames)
    source = OwnData(write_manifest(tmp_path / "my.yaml", files=["a.extxyz"]))
    notes = notes_of(source)
    assert "GUESSED force_sign" not in notes
    assert "WARNING, force_sign: undecided" in notes
