"""Every real sample of a supported format, compared with what ASE or h5py reads from it."""

from __future__ import annotations

from pathlib import Path

import ase.db
import ase.io
import h5py
import numpy as np
import pytest
from ase import Atoms
from ase.constraints import FixAtoms
from ase.units import Bohr, Hartree, kcal, mol

from jmp_data.errors import UnsafePickleError
from jmp_data.own_data import OwnData
from jmp_data.trust import TrustThresholds, check_records
from tests.jmp_data.own_data.manifests import notes_of, read_all, write_manifest
from tests.jmp_data.sources.collecting import Collected
from tests.shared import SHARED, needs_shared

pytestmark = needs_shared
SAMPLES = (SHARED or Path()) / "samples"

FRAMES = [
    "extxyz/carbon_reduced_100.xyz",
    "extxyz/ethanol_reduced_100.xyz",
    "extxyz/hfo2.extxyz",
    "extxyz/Perovskite.xyz",
    "oc20/toy_c3h8_relax.extxyz",
    "oc20/random1447590.traj",
    "oc20/ocp_atoms.json",
    "oc22/atom_ocp22.json",
    "ase_traj/MoS2.traj",
    "ase_traj/ocp_nrr_mp-2677_H_0.traj",
    "ase_traj/ocp_nrr_oqmd-344251_NNH_0.traj",
    "ase_traj/finetune_structure_0001.traj",
    "ase_traj/finetune_structure_0002.traj",
    "ase_db/oxides.db",
    "ase_db/10_thin_mp_traj_systems.db",
    "md22/md22_Ac-Ala3-NHMe_frames0-2.xyz",
]
IN_KCAL = ("ethanol", "md22")


def close(value: object, expected: object, *, bound: float = 2e-7) -> None:
    """Equal up to float32, in which all but energies are stored."""
    np.testing.assert_allclose(np.asarray(value, np.float64), expected, rtol=bound, atol=1e-9)


def check_geometry(collected: Collected, frames: list[Atoms]) -> None:
    block = collected.block
    assert collected.quarantined == []
    np.testing.assert_array_equal(block.natoms, [len(atoms) for atoms in frames])
    np.testing.assert_array_equal(block.atomic_numbers, np.concatenate([atoms.numbers for atoms in frames]))
    close(block.positions, np.concatenate([atoms.positions for atoms in frames]))
    close(block.cell, np.stack([atoms.cell.array for atoms in frames]))
    np.testing.assert_array_equal(block.pbc, np.stack([atoms.pbc for atoms in frames]))
    fixed = [np.zeros(len(atoms), bool) for atoms in frames]
    for mask, atoms in zip(fixed, frames, strict=True):
        for constraint in atoms.constraints:
            assert isinstance(constraint, FixAtoms)
            mask[constraint.index] = True
    np.testing.assert_array_equal(block.fixed, np.concatenate(fixed))
    tags = [atoms.get_tags() if atoms.has("tags") else np.full(len(atoms), 2) for atoms in frames]
    np.testing.assert_array_equal(block.tags, np.concatenate(tags))
    assert check_records(block, TrustThresholds()) == []  # real structures must be believed


def labels(atoms: Atoms) -> tuple[float, np.ndarray, np.ndarray | None]:
    """Energy, raw forces and stress as ASE holds them, whatever they are called; a virial over minus the volume."""
    results = dict(atoms.calc.results)
    energy = results.get("energy", atoms.info.get("Energy"))
    forces = results.get("forces", atoms.arrays.get("force"))
    if "virial" in atoms.info:
        return energy, forces, -atoms.info["virial"] / atoms.get_volume()
    return energy, forces, atoms.get_stress(voigt=False) if "stress" in results else None


@pytest.mark.parametrize("name", FRAMES)
def test_frames_equal_what_ase_reads(tmp_path: Path, name: str) -> None:
    frames: list[Atoms] = ase.io.read(SAMPLES / name, ":")
    _, collected = read_all(tmp_path, SAMPLES / name)
    check_geometry(collected, frames)
    factor = kcal / mol if any(word in name for word in IN_KCAL) else 1.0
    energies, forces, stresses = zip(*map(labels, frames), strict=True)
    np.testing.assert_allclose(collected.block.energy, np.array(energies) * factor, rtol=1e-15)
    close(collected.block.forces, np.concatenate(forces) * factor)
    if stresses[0] is not None:
        close(collected.block.stress, np.stack(stresses))
    else:
        assert "stress" not in collected.block.columns


def test_forces_on_fixed_atoms_are_raw(tmp_path: Path) -> None:
    atoms = ase.io.read(SAMPLES / "oc20/random1447590.traj", -1)
    _, collected = read_all(tmp_path, SAMPLES / "oc20/random1447590.traj")
    last = collected.block.structure(len(collected.block) - 1)
    assert np.abs(last.forces).max() == pytest.approx(0.118, abs=5e-4)
    assert np.abs(last.forces[~last.fixed]).max() == pytest.approx(0.016, abs=5e-4)
    assert np.abs(last.forces[last.fixed]).max() > 0
    close(last.forces, atoms.get_forces(apply_constraint=False))


def test_energy_is_preferred_to_free_energy_and_it_is_said(tmp_path: Path) -> None:
    source, collected = read_all(tmp_path, SAMPLES / "oc20/random1447590.traj")
    assert collected.block.energy[0] == -17.87281992
    assert "'energy' is taken, not 'free_energy'; they differ by up to 0.00766" in notes_of(source)


def test_kilocalories_are_recognised(tmp_path: Path) -> None:
    source, collected = read_all(tmp_path, SAMPLES / "extxyz/ethanol_reduced_100.xyz")
    # -97,079.92222178938 kcal/mol x 0.04336410390059322 eV, the first line of the file.
    assert collected.block.energy[0] == pytest.approx(-4209.783833, abs=1e-6)
    assert "GUESSED units.energy: kcal/mol: -97,079.9222 for C2H6O" in notes_of(source)


def test_hartree_is_read_from_the_metadata_of_a_database(tmp_path: Path) -> None:
    path = SAMPLES / "ase_db/schnetpack_test_qm9.db"
    targets = {"homo": {}, "gap": {"key": "data.gap"}, "heat_capacity": {}, "dipole_moment": {}}
    source, collected = read_all(tmp_path, path, targets=targets)
    rows = list(ase.db.connect(path).select())
    np.testing.assert_allclose(
        collected.block.energy, [row.data["energy_U0"][0] * 27.211386024367243 for row in rows], rtol=1e-15
    )
    np.testing.assert_allclose(collected.block.homo, [row.data["homo"][0] * Hartree for row in rows], rtol=1e-14)
    np.testing.assert_allclose(collected.block.heat_capacity, [row.data["heat_capacity"][0] for row in rows])
    units = {field.name: field.unit for field in source.schema.targets}
    assert units == {
        "energy": "eV",
        "homo": "eV",
        "gap": "eV",
        "heat_capacity": "cal/mol/K",
        "dipole_moment": "e·Å",
    }
    assert "forces" not in source.schema
    assert "hartree, from the metadata _property_unit_dict" in notes_of(source)


def test_groups_of_aimnet(tmp_path: Path) -> None:
    targets = {"charges": {}, "dipole": {"unit": "e·Å"}, "mult": {}}
    source, collected = read_all(tmp_path, SAMPLES / "hdf5_other/aimnet_dataset.h5", targets=targets)
    block = collected.block
    with h5py.File(SAMPLES / "hdf5_other/aimnet_dataset.h5") as file:
        groups = [file[name] for name in sorted(file)]
        np.testing.assert_array_equal(block.energy, np.concatenate([group["energy"][:] for group in groups]))
        for key, name in {"coord": "positions", "forces": "forces"}.items():
            np.testing.assert_array_equal(
                getattr(block, name), np.concatenate([group[key][:].reshape(-1, 3) for group in groups])
            )
        np.testing.assert_array_equal(block.atomic_numbers, np.concatenate([g["numbers"][:].ravel() for g in groups]))
        np.testing.assert_array_equal(block.charges, np.concatenate([g["charges"][:].ravel() for g in groups]))
        np.testing.assert_array_equal(block.mult, np.concatenate([g["mult"][:] for g in groups]))
    assert len(block) == 195
    assert source.schema["charges"].level == "atom"
    assert source.schema["mult"].dtype == "int64"


def test_gradients_and_bohr_of_spice(tmp_path: Path) -> None:
    source, collected = read_all(tmp_path, SAMPLES / "spice/SPICE-1.1.4_1group.hdf5")
    with h5py.File(SAMPLES / "spice/SPICE-1.1.4_1group.hdf5") as file:
        (group,) = file.values()
        close(collected.block.positions, group["conformations"][:].reshape(-1, 3) * Bohr)
        np.testing.assert_allclose(collected.block.energy, group["dft_total_energy"][:] * Hartree, rtol=1e-14)
        close(collected.block.forces, -group["dft_total_gradient"][:].reshape(-1, 3).astype(float) * Hartree / Bohr)
    assert "gradient, by the name of 'dft_total_gradient'" in notes_of(source)


def test_forces_of_ani_are_per_angstrom(tmp_path: Path) -> None:
    _, collected = read_all(tmp_path, SAMPLES / "ani1x/ani1x-release_3groups.h5")
    with h5py.File(SAMPLES / "ani1x/ani1x-release_3groups.h5") as file:
        forces = np.concatenate([file[name]["wb97x_dz.forces"][:].reshape(-1, 3) for name in sorted(file)])
    close(collected.block.forces, forces.astype(float) * Hartree)


def test_cif_files_equal_what_ase_reads(tmp_path: Path) -> None:
    _, collected = read_all(tmp_path, SAMPLES / "qmof/*.cif", targets={"pbe_ddec_charge": {}})
    assert len(collected.block) == 7
    for row, path in enumerate(sorted((SAMPLES / "qmof").glob("*.cif"))):
        ours, atoms = collected.block.structure(row).to_ase(), ase.io.read(path)
        np.testing.assert_array_equal(ours.numbers, atoms.numbers)
        np.testing.assert_allclose(ours.cell.cellpar(), atoms.cell.cellpar(), rtol=2e-6)
        # ASE lays the lattice otherwise; fractions are the same in both.
        difference = ours.get_scaled_positions(wrap=False) - atoms.get_scaled_positions(wrap=False)
        assert np.abs(difference - np.rint(difference)).max() < 1e-5


def test_an_unknown_pickle_is_refused_in_one_line(tmp_path: Path) -> None:
    path = SAMPLES / "pickled_lmdb/matsciml_alexandria_devset_data_000.lmdb"
    source = OwnData(write_manifest(tmp_path / "my.yaml", files=[str(path)]))
    with pytest.raises(UnsafePickleError, match=r"data_000.lmdb: record 0: the pickle asks for numpy") as caught:
        source.splits(tmp_path)
    assert "\n" not in str(caught.value)
