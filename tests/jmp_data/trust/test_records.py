"""What a record shows by itself, against ASE's neighbour list and numbers worked out by hand."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.neighborlist import neighbor_list
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from jmp_data.schema import Block, Schema, Structure
from jmp_data.sources.protocol import Source
from jmp_data.sources.rmd17 import RMD17
from jmp_data.sources.spice import Spice
from jmp_data.trust import TrustThresholds, check_records
from jmp_data.trust.nearest import nearest_distances
from tests.jmp_data.sources.collecting import collect
from tests.jmp_data.trust.waters import block_of, only, water
from tests.shared import SHARED, needs_shared


def reasons(block: Block, thresholds: TrustThresholds) -> dict[int, str]:
    return {finding.row: finding.reason for finding in check_records(block, thresholds)}


def test_ordinary_structures_pass() -> None:
    assert check_records(block_of(*(water(seed) for seed in range(50))), TrustThresholds()) == []
    assert check_records(block_of(water(0)).take(np.zeros(0, int)), TrustThresholds()) == []


def test_atoms_too_close_are_named_with_their_distance() -> None:
    positions = molecule("H2O").positions.copy()
    positions[1] = positions[0] + [0.0, 0.2, 0.1]
    (found,) = check_records(block_of(water(0), water(1, positions=positions)), TrustThresholds())
    assert (found.row, found.reason) == (1, "atoms_too_close")
    assert found.message == "two atoms are 0.224 Å apart, less than 0.4 Å"  # sqrt(0.2² + 0.1²)


def test_atoms_on_top_of_each_other_are_told_apart_from_close_ones() -> None:
    """A radius graph has no edge between them."""
    positions = molecule("H2O").positions.copy()
    positions[2] = positions[1]
    cell = np.diag([6.0, 6, 6])
    wrapped = positions.copy()
    wrapped[2] += [6, -12, 6]
    block = block_of(
        water(0, positions=positions), water(1), water(2, positions=wrapped, cell=cell, pbc=np.ones(3, bool))
    )
    assert reasons(block, TrustThresholds()) == {0: "atoms_on_top", 2: "atoms_on_top"}
    assert reasons(block, only(min_distance=0.4)) == {0: "atoms_too_close", 2: "atoms_too_close"}
    assert reasons(block, only(on_top_distance=0.01)) == {0: "atoms_on_top", 2: "atoms_on_top"}


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
    assert reasons(block_of(replace(across, pbc=np.zeros(3, bool))), TrustThresholds()) == {}


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.booleans(), st.booleans(), st.floats(0.3, 2.0))
def test_nearest_pairs_are_those_of_ase(seed: int, periodic: bool, partly: bool, limit: float) -> None:
    random = np.random.default_rng(seed)
    structures, expected = [], np.full(6, np.inf)
    for row in range(6):
        natoms = int(random.integers(1, 12))
        pbc = random.random(3) < 0.5 if partly else np.full(3, periodic)
        cell = np.diag(random.uniform(3.5, 6, 3)) + random.uniform(-1.5, 1.5, (3, 3))
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
        expected[row] = neighbor_list("d", atoms, limit - 1e-4).min(initial=np.inf)
    found = nearest_distances(block_of(*structures), limit)
    known = np.isfinite(expected)
    np.testing.assert_allclose(found[known], expected[known], atol=2e-6)
    assert (found[~known] > limit - 2e-4).all()


def test_large_forces_are_found() -> None:
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
    (found,) = check_records(block, only(max_net_force=0.1))
    assert "add up to 5.196 eV/Å" in found.message


def test_missing_labels_are_not_judged() -> None:
    assert reasons(block_of(water(0), water(5, energy=None, forces=None)), TrustThresholds()) == {}
    geometry = Block.from_structures([replace(water(0), energy=None, forces=None)], Schema(()))
    assert reasons(geometry, TrustThresholds()) == {}


def test_all_that_is_wrong_is_said() -> None:
    block = block_of(water(0), water(1, positions=np.zeros((3, 3)), forces=np.full((3, 3), 1e4)))
    found = [finding.reason for finding in check_records(block, TrustThresholds())]
    assert found == ["atoms_on_top", "large_force", "net_force"]


def test_thresholds_are_checked() -> None:
    with pytest.raises(ValidationError, match="min_distanc"):
        TrustThresholds.model_validate({"min_distanc": 0.5})
    with pytest.raises(ValidationError):
        TrustThresholds(max_force=-1)
    with pytest.raises(ValidationError, match="energy_outlier"):  # known only when nothing can be set aside any more
        TrustThresholds.model_validate({"quarantine": ["energy_outlier"]})
    assert TrustThresholds.model_validate({"max_force": None}).max_force is None


@needs_shared
@pytest.mark.parametrize(
    ("source", "sample", "name"),
    [
        (RMD17(part="ethanol"), "rmd17/rmd17_ethanol_train_01.npz", "rmd17_ethanol.npz"),
        (Spice(part="pubchem"), "spice/SPICE-1.1.4_1group.hdf5", "SPICE-1.1.4.hdf5"),
    ],
)
def test_published_structures_are_believed(tmp_path: Path, source: Source, sample: str, name: str) -> None:
    assert SHARED is not None
    shutil.copy(SHARED / "samples" / sample, tmp_path / name)
    assert check_records(collect(source, tmp_path, "train").block, TrustThresholds()) == []
