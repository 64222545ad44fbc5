from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from ase import units

from jmp_data.errors import MissingFileError, RawFileError
from jmp_data.schema.units import JMP_REFERENCE
from jmp_data.sources import spice
from jmp_data.sources.spice import SUBSETS, Spice
from tests.jmp_data.sources.collecting import Collected, collect
from tests.jmp_data.sources.miniatures_spice import AMINO_ACIDS, DIPEPTIDES, PUBCHEM, write_group, write_spice
from tests.shared import SHARED, needs_shared

HARTREE, BOHR = 27.211386024367243, 0.5291772105638411
NAMES = {
    "SPICE DES Monomers Single Points Dataset v1.1": "des_monomers",
    "SPICE Solvated Amino Acids Single Points Dataset v1.1": "solvated_amino_acids",
    "SPICE DES370K Single Points Dataset v1.0": "des370k",
    "SPICE DES370K Single Points Dataset Supplement v1.1": "des370k",
    "SPICE Dipeptides Single Points Dataset v1.3": "dipeptides",
    "SPICE PubChem Set 10 Single Points Dataset v1.0": "pubchem",
    "SPICE PubChem Boron Silicon v1.0": "pubchem",
    "SPICE Solvated PubChem Set 1 v1.0": "solvated_pubchem",
    "SPICE Ion Pairs Single Points Dataset v1.2": "ion_pairs",
    "SPICE Amino Acid Ligand v1.0": "amino_acid_ligand",
    "SPICE Water Clusters v1.0": "water_clusters",
}


def frames_of(got: Collected) -> list[tuple[str, int]]:
    pairs = (source_id.partition("#")[2].rpartition("/") for source_id in got.ids)
    return [(name, int(frame)) for name, _, frame in pairs]


def test_every_published_subset_belongs_to_one_part(tmp_path: Path) -> None:
    write_spice(tmp_path, {f"molecule {number}": (text, 10) for number, text in enumerate(NAMES)})
    assert set(NAMES.values()) == set(SUBSETS)
    for part in SUBSETS:
        got = {
            name
            for split in Spice(part=part).splits(tmp_path)
            for name, _ in frames_of(collect(Spice(part=part), tmp_path, split))
        }
        assert got == {f"molecule {number}" for number, text in enumerate(NAMES) if NAMES[text] == part}


def test_gradient_is_not_force(tmp_path: Path) -> None:
    """SPICE stores +dE/dx; the original shipped with that sign for a year. Energy must fall along +F."""
    numbers, stiffness, equilibrium = (1, 1), 0.4, 1.4  # hartree/bohr², bohr: a spring between two atoms
    distances = np.linspace(1.0, 2.0, 41)
    positions = np.zeros((41, 2, 3), np.float32)
    positions[:, 1, 0] = distances
    gradient = np.zeros_like(positions)
    gradient[:, 1, 0] = stiffness * (distances - equilibrium)
    gradient[:, 0, 0] = -gradient[:, 1, 0]
    path = write_spice(tmp_path, {"H2": (DIPEPTIDES, 41)}, numbers=numbers)
    with h5py.File(path, "r+") as file:
        file["H2/conformations"][:] = positions
        file["H2/dft_total_gradient"][:] = gradient
        file["H2/dft_total_energy"][:] = 0.5 * stiffness * (distances - equilibrium) ** 2
    block = collect(Spice(part="dipeptides"), tmp_path, "train").block
    x, energy, forces = block.positions[1::2, 0].astype(float), block.energy, block.forces[1::2, 0]
    slopes = np.gradient(energy, x)
    np.testing.assert_allclose(forces[1:-1], -slopes[1:-1], atol=0.05 * np.abs(slopes).max())
    assert forces[0] > 0  # compressed: the atoms are pushed apart


def test_atomic_units_become_ev_and_angstrom(tmp_path: Path) -> None:
    path = write_spice(tmp_path, {"a": (DIPEPTIDES, 12), "b": (DIPEPTIDES, 8)})
    got = collect(Spice(part="dipeptides"), tmp_path, "train")
    with h5py.File(path) as file:
        for row, (name, frame) in enumerate(frames_of(got)):
            group, structure = file[name], got.block.structure(row)
            assert structure.energy == pytest.approx(group["dft_total_energy"][frame] * HARTREE, rel=1e-14)
            np.testing.assert_allclose(structure.positions, group["conformations"][frame] * BOHR, rtol=1e-6)
            expected = -group["dft_total_gradient"][frame].astype(float) * (units.Hartree / units.Bohr)
            np.testing.assert_allclose(structure.forces, expected, rtol=2e-7)
            targets = structure.targets
            np.testing.assert_allclose(targets["formation_energy"], group["formation_energy"][frame] * HARTREE)
            np.testing.assert_allclose(targets["dipole"], group["scf_dipole"][frame] * BOHR, rtol=1e-6)
            np.testing.assert_allclose(targets["quadrupole"], group["scf_quadrupole"][frame] * BOHR**2, rtol=1e-6)
            np.testing.assert_array_equal(targets["mbis_charges"], group["mbis_charges"][frame][:, 0])


def test_reference_split_shuffles_all_conformations_together(tmp_path: Path) -> None:
    write_spice(tmp_path, {"b": (AMINO_ACIDS, 30), "a": (AMINO_ACIDS, 33), "c": (PUBCHEM, 9)})
    source = Spice(part="solvated_amino_acids")
    flat = [("a", frame) for frame in range(33)] + [("b", frame) for frame in range(30)]  # file order: alphabetic
    order = np.arange(63)
    np.random.RandomState(42).shuffle(order)
    expected = {"train": order[:50], "val": order[50:56], "test": order[56:]}
    for split, rows in expected.items():
        assert frames_of(collect(source, tmp_path, split)) == [flat[row] for row in sorted(rows)]


def test_molecule_splits_leak_no_molecule(tmp_path: Path) -> None:
    groups = {f"molecule{number:02d}": (DIPEPTIDES, 3 + number % 4) for number in range(25)}
    write_spice(tmp_path, groups)
    source = Spice(part="dipeptides")
    found = [frames_of(collect(source, tmp_path, f"molecule_{name}")) for name in ("train", "val", "test")]
    molecules = [{name for name, _ in frames} for frames in found]
    assert [len(names) for names in molecules] == [21, 2, 2]
    assert set.union(*molecules) == set(groups)  # 25 names in all, so no molecule is in two splits
    assert sum(map(len, found)) == sum(count for _, count in groups.values())
    # The reference's own split does leak, and says so.
    leaky = [{name for name, _ in frames_of(collect(source, tmp_path, name))} for name in ("train", "test")]
    assert leaky[0] & leaky[1]


def test_absent_optional_data_sets_become_nan(tmp_path: Path) -> None:
    path = write_spice(tmp_path, {"a": (DIPEPTIDES, 10)}, optional=("mbis_charges", "formation_energy"))
    with h5py.File(path, "r+") as file:
        write_group(file, "b", DIPEPTIDES, 10, numbers=(1, 1))
        write_group(file, "c [Na+].[Cl-] ", DIPEPTIDES, 0, numbers=(11, 17))
    got = collect(Spice(part="dipeptides"), tmp_path, "train")
    for row, (name, _) in enumerate(frames_of(got)):
        targets = got.block.structure(row).targets
        assert ("mbis_charges" in targets) == ("formation_energy" in targets) == (name == "b")
        assert "dipole" in targets


def test_parts_cut_a_split_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_spice(tmp_path, {f"m{number}": (DIPEPTIDES, 7) for number in range(9)})
    source = Spice(part="dipeptides")
    whole = collect(source, tmp_path, "train")
    monkeypatch.setattr(spice, "_ROWS_PER_PART", 11)
    monkeypatch.setattr(spice, "_STRUCTURES_PER_BLOCK", 4)
    cut = collect(source, tmp_path, "train")
    assert cut.ids == whole.ids
    np.testing.assert_array_equal(cut.block.forces, whole.block.forces)


def test_the_references_single_subset_file_is_read(tmp_path: Path) -> None:
    write_spice(tmp_path, {"a": (DIPEPTIDES, 10)}, name="dipeptides.h5")
    assert Spice(part="dipeptides").splits(tmp_path) == ("train", "val", "test")
    with pytest.raises(MissingFileError, match="no SPICE-<version>"):
        Spice(part="pubchem").splits(tmp_path)


def test_missing_subsets_and_strange_groups_are_said_so(tmp_path: Path) -> None:
    path = write_spice(tmp_path, {"a": (DIPEPTIDES, 10), "rna": ("RNA Single Point Dataset v1.0", 10)})
    with pytest.raises(MissingFileError, match="has no molecules of spice:ion_pairs; it has dipeptides"):
        Spice(part="ion_pairs").splits(tmp_path)
    assert any("1 groups, rna first" in note for note in Spice(part="dipeptides").plan(tmp_path, "train").notes)
    write_spice(tmp_path, {"a": (DIPEPTIDES, 10)}, name="SPICE-2.0.1.hdf5")
    with pytest.raises(RawFileError, match="which one is meant"):
        Spice(part="dipeptides").splits(tmp_path)
    path.unlink()
    with h5py.File(tmp_path / "SPICE-2.0.1.hdf5", "r+") as file:
        file["a/conformations"].attrs["units"] = "angstrom"
    with pytest.raises(RawFileError, match="states conformations in angstrom"):
        Spice(part="dipeptides").splits(tmp_path)
    with h5py.File(tmp_path / "SPICE-2.0.1.hdf5", "r+") as file:
        del file["a/dft_total_energy"]
    with pytest.raises(RawFileError, match="group /a lacks dft_total_energy"):
        Spice(part="dipeptides").splits(tmp_path)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = write_spice(tmp_path, {"a": (DIPEPTIDES, 10)})
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(RawFileError, match=r"SPICE-1\.1\.4\.hdf5.*get the file again"):
        Spice(part="dipeptides").splits(tmp_path)


def test_version_2_0_0_is_warned_of(tmp_path: Path) -> None:
    write_spice(tmp_path, {"a": (DIPEPTIDES, 10)}, name="SPICE-2.0.0.hdf5")
    assert any("exploded" in note for note in Spice(part="dipeptides").plan(tmp_path, "train").notes)


def test_the_reference_constants_apply(tmp_path: Path) -> None:
    path = write_spice(tmp_path, {"a": (DIPEPTIDES, 20)})
    got = collect(Spice(part="dipeptides", constants=JMP_REFERENCE), tmp_path, "train")
    frame = frames_of(got)[0][1]
    with h5py.File(path) as file:
        expected = -file["a/dft_total_gradient"][frame].astype(float) / 0.0367493 / 0.529177
        np.testing.assert_allclose(got.block.forces[:3], expected, rtol=2e-7)


@needs_shared
def test_the_real_group_converts_whole(tmp_path: Path) -> None:
    assert SHARED is not None
    path = shutil.copy(SHARED / "samples/spice/SPICE-1.1.4_1group.hdf5", tmp_path / "SPICE-1.1.4.hdf5")
    source = Spice(part="pubchem")
    splits = {name: collect(source, tmp_path, name) for name in source.splits(tmp_path)}
    assert {name: len(got.block) for name, got in splits.items()} == {"train": 40, "val": 5, "test": 5}
    with h5py.File(path) as file:
        group = file["103147721"]
        for got in splits.values():
            for row, (name, frame) in enumerate(frames_of(got)):
                assert name == "103147721"
                structure = got.block.structure(row)
                expected = -group["dft_total_gradient"][frame].astype(float) * HARTREE / BOHR
                np.testing.assert_allclose(structure.forces, expected, rtol=2e-7)
                np.testing.assert_array_equal(structure.atomic_numbers, group["atomic_numbers"][:])
                assert structure.forces is not None
                assert np.abs(structure.forces.sum(axis=0)).max() < 1e-4 * HARTREE / BOHR
    # Energy falls along +F between conformations only on average; bond lengths tell that lengths are in Å now.
    first = splits["train"].block.structure(0)
    distances = np.linalg.norm(first.positions[:, None] - first.positions[None], axis=-1)
    hydrogens = first.atomic_numbers == 1
    shortest = np.where(np.eye(len(distances), dtype=bool), np.inf, distances)[hydrogens].min(axis=1)
    assert 0.95 < np.median(shortest) < 1.15


@needs_shared
def test_golden_conformation(tmp_path: Path) -> None:
    """Conformation 0 of the real group, by hand: 1 hartree = 27.2113860 eV, 1 bohr = 0.52917721 Å (CODATA 2014).

    E = -370.43397424571714 hartree = -10080.02186 eV; formation -4.271002275159901 hartree = -116.21989 eV;
    x = (1.3423489, 4.156236, -3.2724566) bohr = (0.710341, 2.199385, -1.731709) Å;
    gradient (-0.00179922, 0.03140596, -0.01925333) hartree/bohr, times -51.422067: F = (0.092520, -1.614959, 0.990046).
    """
    assert SHARED is not None
    shutil.copy(SHARED / "samples/spice/SPICE-1.1.4_1group.hdf5", tmp_path / "SPICE-1.1.4.hdf5")
    source = Spice(part="pubchem")
    for split in source.splits(tmp_path):
        got = collect(source, tmp_path, split)
        if ("103147721", 0) in frames_of(got):
            break
    row = frames_of(got).index(("103147721", 0))
    structure = got.block.structure(row)
    assert structure.energy == pytest.approx(-10080.02186, abs=2e-5)
    assert structure.targets["formation_energy"] == pytest.approx(-116.21989, abs=1e-5)
    assert structure.forces is not None
    np.testing.assert_allclose(structure.positions[0], [0.710341, 2.199385, -1.731709], atol=1e-6)
    np.testing.assert_allclose(structure.forces[0], [0.092520, -1.614959, 0.990046], atol=1e-5)
    np.testing.assert_allclose(structure.targets["dipole"], [0.751676, -1.027354, 1.554420], atol=1e-5)
    assert structure.source_id == "SPICE-1.1.4.hdf5#103147721/0"
