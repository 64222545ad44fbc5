import pickle

import numpy as np
import pytest
from ase import Atoms
from ase.build import add_adsorbate, bulk, fcc111, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from hypothesis import given
from hypothesis import strategies as st

from jmp_data import Structure
from jmp_data.errors import InvalidStructureError
from tests.structures import assert_same_structure, random_structure


def slab() -> Atoms:
    atoms = fcc111("Cu", (2, 2, 3), vacuum=8.0)
    add_adsorbate(atoms, "O", 1.2, "fcc")
    atoms.set_constraint(FixAtoms(mask=atoms.get_tags() == 3))
    atoms.calc = EMT()
    atoms.get_potential_energy()
    return atoms


def test_forces_on_fixed_atoms_are_kept_raw() -> None:
    atoms = slab()
    raw = atoms.get_forces(apply_constraint=False)
    assert np.abs(raw[atoms.get_tags() == 3]).max() > 1e-3
    structure = Structure.from_ase(atoms)
    np.testing.assert_array_equal(structure.forces, raw)
    np.testing.assert_array_equal(structure.to_ase().get_forces(apply_constraint=False), raw)


def test_ase_round_trip_keeps_everything() -> None:
    atoms = slab()
    atoms.info["bandgap"] = 1.5
    atoms.set_array("charges", np.linspace(-1, 1, len(atoms)))
    structure = Structure.from_ase(atoms, source_id="here#1")
    back = Structure.from_ase(structure.to_ase())
    assert_same_structure(structure, back)
    assert set(structure.targets) >= {"bandgap", "charges", "energies", "free_energy"}
    np.testing.assert_array_equal(back.fixed, atoms.get_tags() == 3)


def test_stress_keeps_ase_sign_and_order() -> None:
    atoms = bulk("Cu", cubic=True)
    atoms.set_cell(atoms.cell.array + 0.1 * np.roll(np.eye(3), 1, axis=1), scale_atoms=True)
    atoms.calc = EMT()
    stress = atoms.get_stress(voigt=False)
    structure = Structure.from_ase(atoms)
    np.testing.assert_allclose(structure.targets["stress"], stress)
    np.testing.assert_allclose(structure.to_ase().get_stress(voigt=False), stress)


def test_molecule_has_no_cell_and_tag_two() -> None:
    structure = Structure.from_ase(molecule("CH3CH2OH"))
    assert structure.cell is None
    assert not structure.pbc.any()
    assert (structure.tags == 2).all()
    assert structure.energy is None


@given(st.integers(0, 2**31), st.integers(1, 30))
def test_random_round_trip(seed: int, natoms: int) -> None:
    structure = random_structure(np.random.default_rng(seed), natoms)
    assert_same_structure(structure, Structure.from_ase(structure.to_ase()))
    assert_same_structure(structure, pickle.loads(pickle.dumps(structure)))


@given(
    seed=st.integers(0, 2**31), natoms=st.integers(2, 12), pbc=st.tuples(st.booleans(), st.booleans(), st.booleans())
)
def test_atoms_come_back_from_a_structure(seed: int, natoms: int, pbc: tuple[bool, bool, bool]) -> None:
    rng = np.random.default_rng(seed)
    atoms = Atoms(
        numbers=rng.integers(1, 119, natoms),
        positions=rng.normal(scale=5, size=(natoms, 3)),
        cell=np.eye(3) * 8 + rng.normal(size=(3, 3)),
        pbc=pbc,
        tags=rng.integers(0, 3, natoms),
        magmoms=rng.normal(size=natoms),
    )
    fixed = np.flatnonzero(rng.integers(0, 2, natoms))
    if len(fixed):
        atoms.set_constraint(FixAtoms(indices=fixed))
    atoms.calc = SinglePointCalculator(
        atoms,
        energy=float(rng.normal()),
        free_energy=float(rng.normal()),
        forces=rng.normal(size=(natoms, 3)),
        stress=rng.normal(size=6),
        dipole=rng.normal(size=3),
        charges=rng.normal(size=natoms),
    )
    atoms.info |= {
        "gap": 1.5,
        "converged": True,
        "frame": 7,
        "config_type": "slab",
        "miller": np.array([1, 1, 0, 2] * 4),
    }
    atoms.set_array("hirshfeld", rng.normal(size=(natoms, 2)))
    back = Structure.from_ase(atoms, source_id="here").to_ase()
    assert back == atoms  # numbers, positions, cell, pbc
    np.testing.assert_array_equal(back.get_tags(), atoms.get_tags())
    assert [each.todict() for each in back.constraints] == [each.todict() for each in atoms.constraints]
    assert set(back.calc.results) == set(atoms.calc.results)
    for name, value in atoms.calc.results.items():
        np.testing.assert_array_equal(back.calc.results[name], value, err_msg=name)
    assert set(back.arrays) == set(atoms.arrays)
    for name, array in atoms.arrays.items():
        np.testing.assert_array_equal(back.arrays[name], array, err_msg=name)
    assert back.info.pop("source_id") == "here"
    assert set(back.info) == set(atoms.info)
    for name, value in atoms.info.items():
        np.testing.assert_array_equal(back.info[name], value, err_msg=name)


def test_arrays_are_read_only() -> None:
    positions = np.zeros((1, 3))
    structure = Structure(atomic_numbers=[6], positions=positions)
    with pytest.raises(ValueError):
        structure.positions[0, 0] = 1.0
    positions[:] = 5
    assert (structure.positions == 0).all()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"atomic_numbers": [0, 6]}, "atomic_number"),
        ({"atomic_numbers": [119, 6]}, "atomic_number"),
        ({"atomic_numbers": []}, "no_atoms"),
        ({"positions": np.zeros((3, 3))}, "shape"),
        ({"positions": np.full((2, 3), np.nan)}, "nonfinite_positions"),
        ({"forces": np.full((2, 3), np.inf)}, "nonfinite_forces"),
        ({"energy": float("nan")}, "nonfinite_energy"),
        ({"pbc": True}, "no_cell"),
        ({"pbc": True, "cell": np.ones((3, 3))}, "flat_cell"),
        ({"tags": [1]}, "shape"),
        ({"tags": np.array([257, 2, 2])}, "dtype"),
        ({"tags": np.array([-1, 2, 2])}, "dtype"),
    ],
)
def test_broken_structures_are_refused_with_a_reason(change: dict, code: str) -> None:
    good = {"atomic_numbers": [1, 6], "positions": np.zeros((2, 3))}
    with pytest.raises(InvalidStructureError) as caught:
        Structure(**{**good, **change}, source_id="f.h5#3")
    assert caught.value.code == code
    assert "f.h5#3" in str(caught.value)
