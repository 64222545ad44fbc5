from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.neighborlist import neighbor_list
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from jmp_data.schema import Block, Schema, Structure
from jmp_data.schema.fields import ENERGY, FORCES
from jmp_data.sources.protocol import Source
from jmp_data.sources.rmd17 import RMD17
from jmp_data.sources.spice import Spice
from jmp_data.trust import TrustThresholds, check_trust
from tests.jmp_data.sources.collecting import collect
from tests.shared import SHARED, needs_shared

OFF = TrustThresholds(
    min_distance=None, max_force=None, max_net_force=None, force_outlier=None, energy_outlier=None, duplicates=False
)


def water(seed: int, **changes: Any) -> Structure:
    random = np.random.default_rng(seed)
    atoms = molecule("H2O")
    forces = random.normal(size=(3, 3))
    values: dict[str, Any] = {
        "atomic_numbers": atoms.numbers,
        "positions": atoms.positions + random.normal(scale=0.03, size=(3, 3)),
        "energy": -2081.0 + random.normal(scale=0.05),
        "forces": forces - forces.mean(axis=0),
        "source_id": f"water#{seed}",
    }
    return Structure(**(values | changes))


def block_of(*structures: Structure) -> Block:
    return Block.from_structures(structures, Schema((ENERGY, FORCES)))


def only(**limits: Any) -> TrustThresholds:
    return OFF.model_copy(update=limits)


def reasons(block: Block, thresholds: TrustThresholds) -> dict[int, str]:
    return {rejection.row: rejection.reason for rejection in check_trust(block, thresholds)}


def test_ordinary_structures_pass() -> None:
    assert check_trust(block_of(*(water(seed) for seed in range(50))), TrustThresholds()) == []
    assert check_trust(block_of(water(0)).take(np.zeros(0, int)), TrustThresholds()) == []


def test_atoms_too_close_are_named_with_their_distance() -> None:
    positions = molecule("H2O").positions.copy()
    positions[1] = positions[0] + [0.0, 0.2, 0.1]
    (found,) = check_trust(block_of(water(0), water(1, positions=positions)), TrustThresholds())
    assert (found.row, found.reason) == (1, "atoms_too_close")
    assert "water#1: two atoms are 0.224 Å apart" in found.message


def test_atoms_on_top_of_each_other_are_caught() -> None:
    """A radius graph has no edge between them."""
    positions = molecule("H2O").positions.copy()
    positions[2] = positions[1]
    cell = np.diag([6.0, 6, 6])
    wrapped = positions.copy()
    wrapped[2] += [6, -12, 6]
    block = block_of(
        water(0, positions=positions), water(1), water(2, positions=wrapped, cell=cell, pbc=np.ones(3, bool))
    )
    found = check_trust(block, only(min_distance=0.4))
    assert [(each.row, each.reason) for each in found] == [(0, "atoms_too_close"), (2, "atoms_too_close")]
    assert "0.000 Å" in found[0].message


def test_images_count_as_atoms() -> None:
    """One atom in a cell of 0.3 Å, and two atoms that meet across a face though they are far apart inside."""
    thin = Structure(
        atomic_numbers=[29], positions=[[0, 0, 0]], cell=np.diag([5, 5, 0.3]), energy=0, forces=np.zeros((1, 3))
    )
    across = Structure(
        atomic_numbers=[29, 29],
        positions=[[0.05, 0, 0], [4.95, 0, 0]],
        cell=np.diag([5.0, 5, 5]),
        energy=0,
        forces=np.zeros((2, 3)),
    )
    assert reasons(block_of(thin, across), TrustThresholds()) == {0: "atoms_too_close", 1: "atoms_too_close"}
    open_ends = replace_pbc(across)
    assert reasons(block_of(open_ends), TrustThresholds()) == {}


def replace_pbc(structure: Structure) -> Structure:
    return replace(structure, pbc=np.zeros(3, bool))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.booleans(), st.booleans(), st.floats(0.3, 2.0))
def test_nearest_pairs_are_those_of_ase(seed: int, periodic: bool, partly: bool, limit: float) -> None:
    random = np.random.default_rng(seed)
    structures, expected = [], {}
    for row in range(6):
        natoms = int(random.integers(1, 9))
        pbc = random.random(3) < 0.5 if partly else np.full(3, periodic)
        cell = np.diag(random.uniform(2, 6, 3)) + random.uniform(-1.5, 1.5, (3, 3))
        positions = random.uniform(-3, 9, (natoms, 3)).astype(np.float32)
        structures.append(
            Structure(
                atomic_numbers=np.full(natoms, 6),
                positions=positions,
                cell=cell.astype(np.float32),
                pbc=pbc,
                energy=0.0,
                forces=np.zeros((natoms, 3)),
            )
        )
        atoms = Atoms(numbers=np.full(natoms, 6), positions=positions, cell=cell.astype(np.float32), pbc=pbc)
        distances = neighbor_list("d", atoms, limit)
        if len(distances) and distances.min() < limit - 1e-5:
            expected[row] = "atoms_too_close"
    assert reasons(block_of(*structures), only(min_distance=limit)) == expected


def test_large_forces_are_caught_alone() -> None:
    forces = np.zeros((3, 3))
    forces[0, 0], forces[1, 0] = 400.0, -400.0
    block = block_of(water(0), water(1, forces=forces))
    assert reasons(block, TrustThresholds()) == {1: "large_force"}
    assert reasons(block, only(max_force=500.0)) == {}


def test_net_forces_matter_on_isolated_molecules_only() -> None:
    forces = np.ones((3, 3))
    cell = np.diag([8.0, 8, 8])
    block = block_of(
        water(0),
        water(1, forces=forces),
        water(2, forces=forces, cell=cell, pbc=np.ones(3, bool)),
        water(3, forces=forces, fixed=np.array([True, False, False])),
    )
    assert reasons(block, TrustThresholds()) == {1: "net_force"}
    # Three atoms of (1, 1, 1): the sum is 3 * sqrt(3) = 5.196 eV/Å, the limit 0.1 * sqrt(3).
    (found,) = check_trust(block, only(max_net_force=0.1))
    assert "add up to 5.196 eV/Å" in found.message


def test_energy_outliers_are_judged_within_their_composition() -> None:
    """34 hartree too low, as one published dipeptide is, stands out among its siblings, not among other molecules."""
    waters = [water(seed) for seed in range(30)]
    waters[7] = water(7, energy=-2081.0 - 34 * 27.2114)
    methane = molecule("CH4")
    others = [
        Structure(
            atomic_numbers=methane.numbers, positions=methane.positions, energy=-1100.0 - row, forces=np.zeros((5, 3))
        )
        for row in range(5)
    ]
    block = block_of(*waters, *others)
    (found,) = check_trust(block, only(energy_outlier=30.0))
    assert (found.row, found.reason) == (7, "energy_outlier")
    assert "others of its composition have -693." in found.message
    assert reasons(block_of(*waters[:15]), only(energy_outlier=30.0)) == {}  # too few to know what is usual


def test_identical_energies_do_not_make_outliers_of_near_ones() -> None:
    """The median deviation is zero; only the floor keeps half an electronvolt from being infinitely far."""
    waters = [water(seed, energy=-2081.0) for seed in range(29)] + [water(29, energy=-2080.5)]
    assert reasons(block_of(*waters), only(energy_outlier=30.0)) == {}
    assert reasons(block_of(*waters), only(energy_outlier=30.0, min_energy_deviation=0.0)) == {29: "energy_outlier"}


def test_force_outliers() -> None:
    forces = np.zeros((3, 3))
    forces[0, 0], forces[1, 0] = 90.0, -90.0
    waters = [water(seed) for seed in range(30)]
    waters[3] = water(3, forces=forces)
    assert reasons(block_of(*waters), TrustThresholds()) == {3: "force_outlier"}
    assert reasons(block_of(*waters), only(force_outlier=50.0, min_force_deviation=100.0)) == {}


def test_missing_labels_are_not_judged() -> None:
    waters = [water(seed) for seed in range(30)]
    waters[5] = water(5, energy=None, forces=None)
    assert reasons(block_of(*waters), TrustThresholds()) == {}
    geometry = Block.from_structures([replace(water(0), energy=None, forces=None)], Schema(()))
    assert reasons(geometry, TrustThresholds()) == {}


def test_duplicates_name_the_structure_that_they_repeat() -> None:
    crystal = bulk("NaCl", "rocksalt", a=5.64)
    salt = Structure.from_ase(crystal)
    wider = Structure.from_ase(bulk("NaCl", "rocksalt", a=5.64).copy())
    stretched = replace(wider, cell=np.asarray(wider.cell) * 1.5)
    labelled = [replace(s, energy=0.0, forces=np.zeros((2, 3))) for s in (salt, stretched)]
    block = block_of(water(0), water(1), labelled[0], water(0, source_id="again"), labelled[1], labelled[0])
    found = check_trust(block, TrustThresholds())
    assert [(each.row, each.reason) for each in found] == [(3, "duplicate_frame"), (5, "duplicate_frame")]
    assert found[0].message == "again: repeats water#0"
    shuffled = water(0)
    swapped = replace(shuffled, positions=np.asarray(shuffled.positions)[[0, 2, 1]])
    assert reasons(block_of(water(0), swapped), TrustThresholds()) == {}  # another order of atoms is no exact repeat


def test_the_first_failed_check_counts_once() -> None:
    positions = np.zeros((3, 3))
    block = block_of(water(0), water(1, positions=positions, forces=np.full((3, 3), 1e4)))
    (found,) = check_trust(block, TrustThresholds())
    assert found.reason == "atoms_too_close"


def test_thresholds_are_checked() -> None:
    with pytest.raises(ValidationError, match="min_distanc"):
        TrustThresholds.model_validate({"min_distanc": 0.5})
    with pytest.raises(ValidationError):
        TrustThresholds(max_force=-1)
    assert TrustThresholds.model_validate({"max_force": None}).max_force is None


@needs_shared
@pytest.mark.parametrize(
    ("source", "sample", "name"),
    [
        (RMD17(part="ethanol"), "rmd17/rmd17_ethanol_train_01.npz", "rmd17_ethanol.npz"),
        (RMD17(part="uracil"), "rmd17/rmd17_uracil_train_03.npz", "rmd17_uracil.npz"),
        (Spice(part="pubchem"), "spice/SPICE-1.1.4_1group.hdf5", "SPICE-1.1.4.hdf5"),
    ],
)
def test_published_structures_are_believed(tmp_path: Path, source: Source, sample: str, name: str) -> None:
    assert SHARED is not None
    shutil.copy(SHARED / "samples" / sample, tmp_path / name)
    assert check_trust(collect(source, tmp_path, "train").block, TrustThresholds()) == []
