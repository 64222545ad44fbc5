"""The labels in the demo archives, read from the files by other tools, are what the stated potentials say.

Each archive's forces are compared with central differences of a fresh calculator's energy, on fixed atoms too.
"""

from __future__ import annotations

import lzma
import pickle
from collections.abc import Iterator
from pathlib import Path

import ase.io
import h5py
import lmdb
import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.symbols import Symbols
from numpy.typing import NDArray

from jmp_data.demo import DemoSummary, write_demo_raw
from jmp_data.demo.molecules import CONFORMER_MOLECULES, HELD_OUT_MOLECULE, sample_conformers
from jmp_data.demo.reactions import HYDROGEN_SHIFTS
from jmp_data.demo.surfaces import relax_adsorbates

with pytest.MonkeyPatch.context() as patch:
    patch.setenv("OMP_NUM_THREADS", "1")  # read when tblite is loaded; its threads crawl on a busy machine
    tblite = pytest.importorskip("tblite.ase")

STEP = 0.01  # Å
FORCE_TOLERANCE = 5e-3  # eV/Å; self-consistent cycles stop at about 1e-5 eV, and 1e-5 / 0.01 is 1e-3
ENERGY_TOLERANCE = 2e-4  # eV; OC22 rounds positions to float32
SAMPLES = 4


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoSummary:
    return write_demo_raw(tmp_path_factory.mktemp("demo"), seed=3, scale=0.02)


def check_labels(
    atoms: Atoms, calculator: Calculator, energy: float, forces: NDArray[np.floating], rows: list[int]
) -> None:
    atoms = atoms.copy()
    atoms.calc = calculator
    assert atoms.get_potential_energy() == pytest.approx(energy, abs=ENERGY_TOLERANCE)
    origin = atoms.positions.copy()
    for row in rows:
        for axis in range(3):
            ends = []
            for sign in (-1, 1):
                atoms.positions = origin
                atoms.positions[row, axis] += sign * STEP
                ends.append(atoms.get_potential_energy())
            slope = (ends[1] - ends[0]) / (2 * STEP)
            assert -slope == pytest.approx(forces[row, axis], abs=FORCE_TOLERANCE + 0.002 * abs(slope))


def pick(count: int, seed: int = 0, size: int = SAMPLES) -> list[int]:
    return np.random.default_rng(seed).permutation(count)[:size].tolist()  # type: ignore[no-any-return]


def test_every_archive_is_there_with_its_counts(demo: DemoSummary) -> None:
    assert [archive.name for archive in demo.archives] == ["ani1x", "oc20", "oc22", "rmd17", "transition1x"]
    counts = {archive.name: archive.structures for archive in demo.archives}
    assert counts["oc20"] == {"s2ef_train_200K": 20, "s2ef_val_id": 4}
    assert counts["oc22"] == {"train": 4, "val_id": 2}
    assert counts["ani1x"] == {"all": 150}
    assert counts["transition1x"] == {"train": 66, "val": 66, "test": 66}
    assert counts["rmd17"] == {"ethanol": 30}


def read_oc20(directory: Path, split: str) -> list[Atoms]:
    with lzma.open(directory / f"oc20/{split}/{split}/0.extxyz.xz", "rt") as stream:
        return ase.io.read(stream, ":", format="extxyz")  # type: ignore[no-any-return]


def test_oc20_forces_are_gradients_of_emt_on_fixed_atoms_too(demo: DemoSummary) -> None:
    frames = read_oc20(demo.directory, "s2ef_train_200K")
    assert len(frames) == 20
    for index in pick(len(frames)):
        frame = frames[index]
        fixed, free = frame.constraints[0].index, np.flatnonzero(frame.get_tags() > 0)
        assert np.array_equal(np.sort(fixed), np.flatnonzero(frame.get_tags() == 0))
        forces = frame.get_forces(apply_constraint=False)
        assert np.abs(forces[fixed]).max() > 1e-3
        bare = Atoms(frame.numbers, frame.positions, cell=frame.cell, pbc=True)
        check_labels(bare, EMT(), frame.get_potential_energy(), forces, [fixed[0], free[0], free[-1]])


def test_oc20_frames_of_a_file_come_from_several_systems(demo: DemoSummary) -> None:
    path = demo.directory / "oc20/s2ef_train_200K/s2ef_train_200K/0.txt.xz"
    systems = [line.split(",")[0] for line in lzma.decompress(path.read_bytes()).decode().splitlines()]
    assert 1 < len(set(systems)) < len(systems)
    assert systems != sorted(systems)


def read_oc22(directory: Path, split: str) -> Iterator[dict[str, object]]:
    folder = directory / "oc22/s2ef_total_train_val_test_lmdbs/data/oc22/s2ef-total" / split
    for path in sorted(folder.glob("*.lmdb")):
        environment = lmdb.open(str(path), subdir=False, readonly=True, lock=False)
        with environment, environment.begin() as transaction:
            for index in range(pickle.loads(transaction.get(b"length"))):
                data = pickle.loads(transaction.get(str(index).encode()))
                yield data.to_dict() if "_store" in vars(data) else vars(data)


def test_oc22_forces_are_gradients_of_periodic_xtb(demo: DemoSummary) -> None:
    for fields in [*read_oc22(demo.directory, "train")][1:3]:
        numbers, positions, cell = (np.asarray(fields[name], dtype=float) for name in ("atomic_numbers", "pos", "cell"))
        atoms = Atoms(numbers.astype(int), positions, cell=cell[0], pbc=True)
        fixed = np.flatnonzero(np.asarray(fields["fixed"]))
        forces = np.asarray(fields["force"])
        assert np.abs(forces[fixed]).max() > 1e-3
        check_labels(
            atoms, tblite.TBLite(method="GFN1-xTB", verbosity=0), fields["y"], forces, [fixed[0], len(atoms) - 1]
        )


def test_ani1x_forces_are_gradients_in_hartree_per_angstrom(demo: DemoSummary) -> None:
    with h5py.File(demo.directory / "ani1x/ani1x-release.h5") as file:
        for formula, group in file.items():
            numbers = group["atomic_numbers"][:]
            assert formula == "".join(f"{s}{(Symbols(numbers) == s).sum()}" for s in sorted(set(Symbols(numbers))))
            assert np.isnan(group["wb97x_tz.energy"][:]).all()
            assert 0 < np.isnan(group["wb97x_dz.dipole"][:]).any(axis=1).sum() < len(group["coordinates"])
            for index in pick(len(group["coordinates"]), size=2):
                check_labels(
                    Atoms(numbers, group["coordinates"][index]),
                    tblite.TBLite(method="GFN2-xTB", verbosity=0),
                    group["wb97x_dz.energy"][index] * units.Hartree,
                    group["wb97x_dz.forces"][index] * units.Hartree,
                    pick(len(numbers), size=2),
                )


def test_transition1x_frames_are_those_of_a_path_search(demo: DemoSummary) -> None:
    with h5py.File(demo.directory / "transition1x/Transition1x.h5") as file:
        for split in ("train", "val", "test"):
            for formula, reactions in file[split].items():
                for name, node in reactions.items():
                    assert node == file["data"][formula][name]
                    positions, energies = node["positions"][:], node["wB97x_6-31G(d).energy"][:]
                    assert len(energies) % 8 == 10 % 8
                    assert np.array_equal(node["reactant/positions"][0], positions[0])
                    assert np.array_equal(node["product/positions"][0], positions[9])
                    # Steps along a path are short; a wrong frame order would jump.
                    path = np.linalg.norm(np.diff(positions[:10], axis=0), axis=2).max(axis=1)
                    assert path.max() < 0.7 * np.linalg.norm(positions[9] - positions[0], axis=1).max()
                    top = node["transition_state/wB97x_6-31G(d).energy"][0]
                    assert top == energies[-8:].max()
                    assert top > max(energies[0], energies[9])
                    for index in pick(len(energies), size=2):
                        check_labels(
                            Atoms(node["atomic_numbers"][:], positions[index]),
                            tblite.TBLite(method="GFN2-xTB", verbosity=0),
                            energies[index],
                            node["wB97x_6-31G(d).forces"][index],
                            pick(positions.shape[1], size=2),
                        )


def test_rmd17_forces_are_gradients_in_kcal_per_mol(demo: DemoSummary) -> None:
    kcal = units.kcal / units.mol
    with np.load(demo.directory / "rmd17/rmd17/npz_data/rmd17_ethanol.npz") as arrays:
        assert sorted(arrays["old_indices"]) == list(range(30))
        for energies, forces, method in (
            ("energies", "forces", "GFN2-xTB"),
            ("old_energies", "old_forces", "GFN1-xTB"),
        ):
            check_labels(
                Atoms(arrays["nuclear_charges"], arrays["coords"][4]),
                tblite.TBLite(method=method, verbosity=0),
                arrays[energies][4] * kcal,
                arrays[forces][4] * kcal,
                pick(9, size=3),
            )


def test_the_held_out_formula_is_in_no_pretraining_set() -> None:
    from ase.build import molecule

    pretraining = {*CONFORMER_MOLECULES, *(shift.molecule for shift in HYDROGEN_SHIFTS)}
    held_out = molecule(HELD_OUT_MOLECULE).get_chemical_formula()
    assert held_out == "C2H6O"
    assert held_out not in {molecule(name).get_chemical_formula() for name in pretraining}


def test_splits_of_transition1x_share_no_molecule() -> None:
    molecules = [
        {shift.molecule for shift in HYDROGEN_SHIFTS if shift.split == split} for split in ("train", "val", "test")
    ]
    assert len(set.union(*molecules)) == sum(map(len, molecules))


def test_the_same_seed_gives_the_same_structures_and_another_seed_others() -> None:
    first, again, other = (sample_conformers("CH3OH", 3, (seed,)) for seed in (5, 5, 6))
    # Workers run one thread and repeat to the last bit; here tblite may sum in several threads.
    np.testing.assert_allclose(first.positions, again.positions, atol=1e-3)
    assert np.abs(first.positions - other.positions).max() > 0.01
    frames, same = (relax_adsorbates(3, 0, (7,)) for _ in range(2))
    assert all(np.array_equal(one.forces, two.forces) for one, two in zip(frames, same, strict=True))
