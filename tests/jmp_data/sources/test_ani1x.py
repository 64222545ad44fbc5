"""ANI-1x: real groups of the release, golden values, the split rule, and labels that are missing."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from jmp_data import demo
from jmp_data.errors import ManifestError, MissingFileError, RawFileError
from jmp_data.schema import Block
from jmp_data.schema.units import CODATA_2014, JMP_REFERENCE
from jmp_data.sources import ani1x, get_source, hdf5_frames
from jmp_data.sources.ani1x import split_of_formula
from tests.jmp_data.sources.reading import read_split
from tests.raw_archives import write_ani1x
from tests.shared import SHARED, needs_shared

SPLITS = ("train", "val", "test")
HARTREE = 27.211386024367243


def group(formula_numbers: list[int], num_frames: int, seed: int = 0) -> demo.FormulaGroup:
    rng = np.random.default_rng(seed)
    return demo.FormulaGroup(
        atomic_numbers=np.array(formula_numbers),
        coordinates=rng.normal(size=(num_frames, len(formula_numbers), 3)).astype(np.float32),
        energy=rng.normal(-40, 1, num_frames),
        forces=rng.normal(size=(num_frames, len(formula_numbers), 3)).astype(np.float32),
    )


def test_golden_values(tmp_path: Path) -> None:
    """A water-like record: -76.5 × 27.211386024367243 = -2081.671030864094 eV; half a hartree/Å is 13.605693 eV/Å."""
    with h5py.File(tmp_path / "ani1x-release.h5", "w") as file:
        node = file.create_group("H2O1")
        node["atomic_numbers"] = np.array([8, 1, 1], np.uint8)
        node["coordinates"] = np.array([[[0, 0, 0.125], [0.75, 0, -0.5], [-0.75, 0, -0.5]]], np.float32)
        node["wb97x_dz.energy"] = np.array([-76.5])
        node["wb97x_dz.forces"] = np.array([[[0.5, 0, 0], [-0.25, 0, 0], [-0.25, 0, 0]]], np.float32)
    structure = read_split("ani1x", tmp_path, "train").block.structure(0)
    assert structure.energy == pytest.approx(-2081.671030864094, abs=1e-12)
    # The denominator is Å: with hartree/bohr the force would be 25.7 eV/Å.
    expected = np.float32([13.605693012183622, -6.802846506091811, -6.802846506091811])
    np.testing.assert_array_equal(structure.forces[:, 0], expected)
    assert structure.atomic_numbers.tolist() == [8, 1, 1]
    assert structure.positions[1].tolist() == [0.75, 0, -0.5]
    assert structure.tags.tolist() == [2, 2, 2]
    assert structure.cell is None
    assert not structure.pbc.any()
    assert not structure.fixed.any()
    assert structure.source_id == "ani1x-release.h5#H2O1/0"


@needs_shared
def test_real_groups_agree_with_h5py(tmp_path: Path) -> None:
    assert SHARED is not None
    shutil.copy(SHARED / "samples" / "ani1x" / "ani1x-release_3groups.h5", tmp_path / "ani1x-release.h5")
    source = get_source("ani1x")
    outcomes = {split: read_split("ani1x", tmp_path, split) for split in source.splits(tmp_path)}
    assert sum(len(outcome.block) for outcome in outcomes.values()) == 6
    with h5py.File(tmp_path / "ani1x-release.h5") as file:
        for outcome in outcomes.values():
            assert not outcome.quarantined  # NaN in other labels is no reason to drop a frame
            for row, source_id in enumerate(outcome.ids):
                formula, frame = source_id.split("#")[1].split("/")
                structure, node = outcome.block.structure(row), file[formula]
                assert structure.energy == node["wb97x_dz.energy"][int(frame)] * HARTREE
                forces = node["wb97x_dz.forces"][int(frame)].astype(np.float64) * HARTREE
                np.testing.assert_allclose(structure.forces, forces, rtol=1e-7)
                np.testing.assert_array_equal(structure.positions, node["coordinates"][int(frame)])
                np.testing.assert_array_equal(structure.atomic_numbers, node["atomic_numbers"])


def test_reference_constants_use_the_originals_hartree(tmp_path: Path) -> None:
    write_ani1x(tmp_path)
    default = read_split("ani1x", tmp_path, "train").block
    reference = read_split("ani1x", tmp_path, "train", constants=JMP_REFERENCE).block
    np.testing.assert_array_equal(default.energy, reference.energy)  # the original used ASE's value for this set
    assert JMP_REFERENCE.hartree != CODATA_2014.hartree


def test_nan_in_a_requested_label_quarantines_the_row_only(tmp_path: Path) -> None:
    node = group([6, 1, 1, 1, 1], 5)
    node.energy[1] = np.nan
    node.forces[3, 2, 1] = np.nan
    demo.write_ani1x(tmp_path / "ani1x-release.h5", [node])
    outcome = read_split("ani1x", tmp_path, "train")
    assert [int(source_id.rsplit("/", 1)[1]) for source_id in outcome.ids] == [0, 2, 4]
    assert [item.source_id[-1] for item in outcome.quarantined] == ["1", "3"]
    assert {item.reason for item in outcome.quarantined} == {"nan_label"}
    assert "ani1x-release.h5#C1H4/1: energy not finite" in outcome.quarantined[0].message
    assert outcome.quarantined[1].record.count("NaN") == 1
    np.testing.assert_allclose(outcome.block.energy, node.energy[[0, 2, 4]] * HARTREE)


@pytest.mark.parametrize(
    ("formula", "split"),
    [
        ("C2H6O1", "test"),  # sha256sum: 08efe857…, 0x08efe857 / 2^32 = 0.0349
        ("C1H4", "val"),  # 1a5e28f7… → 0.1030
        ("C4H10", "train"),  # b7a788f0… → 0.7174
        ("H2O1", "train"),  # ff43b468… → 0.9971
    ],
)
def test_the_split_rule_is_the_documented_one(formula: str, split: str) -> None:
    assert split_of_formula(formula) == split


def test_splits_partition_the_formulas(tmp_path: Path) -> None:
    write_ani1x(tmp_path, groups=40, conformations=2)
    outcomes = {split: read_split("ani1x", tmp_path, split) for split in get_source("ani1x").splits(tmp_path)}
    formulas = {split: {name.split("#")[1].split("/")[0] for name in out.ids} for split, out in outcomes.items()}
    assert set(formulas) == {"train", "val", "test"}
    assert sum(map(len, formulas.values())) == len(set.union(*formulas.values())) == 40
    assert len(formulas["train"]) > 20


def test_a_formula_keeps_its_split_when_others_are_added(tmp_path: Path) -> None:
    for folder, groups in (("few", 20), ("many", 40)):
        write_ani1x(tmp_path / folder, groups=groups, conformations=1)
    few, many = (
        {
            name: split
            for split in ("train", "val", "test")
            for name in read_split("ani1x", tmp_path / folder, split).ids
        }
        for folder in ("few", "many")
    )
    assert few.items() <= many.items()


@pytest.mark.parametrize("numbers", [[6, 1, 1, 1, 1], [1, 1], [8, 1, 1], [6, 6, 8, 1, 1, 1, 1]])
def test_a_single_formula_is_always_trained_on(tmp_path: Path, numbers: list[int]) -> None:
    demo.write_ani1x(tmp_path / "ani1x-release.h5", [group(numbers, 3)])
    assert get_source("ani1x").splits(tmp_path) == ("train",)
    assert len(read_split("ani1x", tmp_path, "train").block) == 3


def test_parts_and_blocks_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ani1x, "MAX_STRUCTURES_PER_PART", 40)
    monkeypatch.setattr(hdf5_frames, "MAX_STRUCTURES_PER_PART", 40)
    monkeypatch.setattr(ani1x, "FRAMES_PER_BLOCK", 8)
    monkeypatch.setattr(hdf5_frames, "FRAMES_PER_BLOCK", 8)
    demo.write_ani1x(tmp_path / "ani1x-release.h5", [group([6] * n + [1], 95 if n == 3 else 9, n) for n in range(1, 9)])
    source = get_source("ani1x")
    plan = source.plan(tmp_path, "train")
    assert max(part.num_records for part in plan.parts) <= 40
    items = [item for part in plan.parts for item in source.read(tmp_path, part)]
    blocks = [item for item in items if isinstance(item, Block)]
    assert max(map(len, blocks)) < 16
    with h5py.File(tmp_path / "ani1x-release.h5") as file:
        trained = [name for name in sorted(file) if split_of_formula(name) == "train"]
        expected = [energy for name in trained for energy in file[name]["wb97x_dz.energy"]]
    np.testing.assert_allclose(np.concatenate([block.energy for block in blocks]), np.array(expected) * HARTREE)


def test_a_part_is_bounded_in_atoms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ani1x, "MAX_ATOMS_PER_PART", 50)
    monkeypatch.setattr(hdf5_frames, "MAX_ATOMS_PER_PART", 50)
    demo.write_ani1x(tmp_path / "ani1x-release.h5", [group([6] * 7, 30)])
    assert [part.num_records for part in get_source("ani1x").plan(tmp_path, "train").parts] == [7, 7, 7, 7, 2]


@pytest.mark.parametrize("key", ["wb97x_dz.energy", "wb97x_dz.forces", "coordinates", "atomic_numbers"])
def test_a_missing_key_is_named_before_any_work(tmp_path: Path, key: str) -> None:
    demo.write_ani1x(tmp_path / "ani1x-release.h5", [group([6, 1, 1, 1, 1], 2)])
    with h5py.File(tmp_path / "ani1x-release.h5", "a") as file:
        del file["C1H4"][key]
    with pytest.raises(RawFileError, match=rf"ani1x-release\.h5: group /C1H4 lacks {key}"):
        get_source("ani1x").plan(tmp_path, "train")


def test_shapes_that_do_not_fit_are_named_before_any_work(tmp_path: Path) -> None:
    demo.write_ani1x(tmp_path / "ani1x-release.h5", [group([6, 1, 1, 1, 1], 2)])
    with h5py.File(tmp_path / "ani1x-release.h5", "a") as file:
        del file["C1H4"]["wb97x_dz.energy"]
        file["C1H4"]["wb97x_dz.energy"] = np.zeros(3)
    with pytest.raises(RawFileError, match="do not fit together"):
        get_source("ani1x").plan(tmp_path, "train")


def test_another_layout_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "ani1x-release.h5", "w") as file:
        file["energies"] = np.zeros(3)
    with pytest.raises(RawFileError, match="another layout"):
        get_source("ani1x").plan(tmp_path, "train")


@pytest.mark.parametrize(("content", "message"), [(b"", "0 bytes"), (b"<html></html>", "cannot be read as HDF5")])
def test_what_is_no_hdf5_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "ani1x-release.h5").write_bytes(content)
    with pytest.raises(RawFileError, match=message):
        get_source("ani1x").splits(tmp_path)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    write_ani1x(tmp_path)
    path = tmp_path / "ani1x-release.h5"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(RawFileError, match=r"ani1x-release\.h5: cannot be read as HDF5.*get the file again"):
        get_source("ani1x").plan(tmp_path, "train")


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "ani1x_other.h5").touch()
    with pytest.raises(MissingFileError, match="jmp-data download ani1x"):
        get_source("ani1x").splits(tmp_path)
    with pytest.raises(MissingFileError, match="raw folder"):
        get_source("ani1x").splits(tmp_path / "nowhere")


def test_an_unknown_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="train, val, test"):
        get_source("ani1x").plan(tmp_path, "val_id")
