from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from jmp_data.errors import ManifestError, RawFileError
from jmp_data.schema.units import CODATA_2014, JMP_REFERENCE
from jmp_data.sources import get_source
from jmp_data.sources.rmd17 import MOLECULES, RMD17
from tests.jmp_data.sources.collecting import collect
from tests.jmp_data.sources.miniatures_rmd17 import write_index_lists, write_rmd17
from tests.shared import SHARED, needs_shared

ATOMS = {
    "aspirin": 21,
    "azobenzene": 24,
    "benzene": 12,
    "ethanol": 9,
    "malonaldehyde": 9,
    "naphthalene": 18,
    "paracetamol": 20,
    "salicylic": 16,
    "toluene": 15,
    "uracil": 12,
}


def test_all_ten_molecules_are_parts() -> None:
    assert set(RMD17.parts) == set(ATOMS)
    for molecule, formula in MOLECULES.items():
        counts = [int(digits or 1) for digits in re.findall(r"[A-Z](\d*)", formula)]
        assert sum(counts) == ATOMS[molecule]
    assert get_source("rmd17:ethanol").name == "rmd17:ethanol"


def test_frames_keep_their_order_values_and_identity(tmp_path: Path) -> None:
    path = write_rmd17(tmp_path, "ethanol", 1100)
    source = RMD17(part="ethanol")
    assert source.splits(tmp_path) == ("train", "val", "test")
    archive = np.load(path)
    order = np.arange(1100)
    np.random.RandomState(42).shuffle(order)
    for split, rows in {"train": order[:950], "val": order[950:1000], "test": order[1000:]}.items():
        got = collect(source, tmp_path, split)
        assert got.ids == [f"rmd17_ethanol.npz#{row}" for row in rows]
        np.testing.assert_allclose(got.block.energy, archive["energies"][rows] * 0.04336410390059322, rtol=1e-15)
        np.testing.assert_allclose(
            got.block.forces.reshape(-1, 9, 3), archive["forces"][rows] * 0.04336410390059322, rtol=1e-6
        )
        np.testing.assert_array_equal(got.block.positions.reshape(-1, 9, 3), archive["coords"][rows].astype(np.float32))
        assert (got.block.tags == 2).all()
        assert not got.block.pbc.any()
        assert got.block.energy.dtype == np.float64


def test_published_lists_are_0_based_and_in_order(tmp_path: Path) -> None:
    write_rmd17(tmp_path, "ethanol", 60)
    write_index_lists(tmp_path, 60, 20)
    source = RMD17(part="ethanol")
    names = [f"split{number:02d}_{kind}" for number in range(1, 6) for kind in ("train", "test")]
    assert source.splits(tmp_path) == ("train", *names)
    listed = [int(line) for line in (tmp_path / "rmd17/splits/index_test_03.csv").read_text().split()]
    plan = source.plan(tmp_path, "split03_test")
    assert plan.parts[0].files == ("rmd17/npz_data/rmd17_ethanol.npz", "rmd17/splits/index_test_03.csv")
    assert collect(source, tmp_path, "split03_test").ids == [f"rmd17_ethanol.npz#{row}" for row in listed]


def test_a_cut_file_has_no_published_splits(tmp_path: Path) -> None:
    write_rmd17(tmp_path, "ethanol", 30)
    write_index_lists(tmp_path, 1000, 100)
    source = RMD17(part="ethanol")
    assert source.splits(tmp_path) == ("train",)
    with pytest.raises(RawFileError, match=r"index_train_01\.csv.*rows 0 to 29"):
        source.plan(tmp_path, "split01_train")


def test_contiguous_splits_are_apart_in_time(tmp_path: Path) -> None:
    path = write_rmd17(tmp_path, "ethanol", 2000)
    source = RMD17(part="ethanol")
    times = np.load(path)["old_indices"]
    spans = []
    for name in ("train", "val", "test"):
        got = collect(source, tmp_path, f"contiguous_{name}")
        spans.append(times[[int(source_id.partition("#")[2]) for source_id in got.ids]])
    assert [len(span) for span in spans] == [950, 50, 580]
    assert spans[0].max() < spans[1].min()
    assert spans[1].max() < spans[2].min()


def test_rmd17_conversion_direction(tmp_path: Path) -> None:
    """kcal/mol become eV by a factor of 0.0434, not 23.06: ethanol lies near -4,210 eV, whatever went in."""
    write_rmd17(tmp_path, "ethanol", 50)
    energy = collect(RMD17(part="ethanol"), tmp_path, "train").block.energy
    assert (np.abs(energy + 97_000 * 0.04336410390059322) < 1).all()
    assert -4300 < energy.mean() < -4100


def test_the_reference_constants_are_its_rounded_ones(tmp_path: Path) -> None:
    path = write_rmd17(tmp_path, "ethanol", 50)
    got = collect(RMD17(part="ethanol", constants=JMP_REFERENCE), tmp_path, "train")
    first = int(got.ids[0].partition("#")[2])
    assert got.block.energy[0] == pytest.approx(np.load(path)["energies"][first] / 23.061, rel=1e-14)
    assert CODATA_2014.kcal_per_mol != JMP_REFERENCE.kcal_per_mol


def test_old_labels_are_never_mixed_in(tmp_path: Path) -> None:
    with_old, without = tmp_path / "a", tmp_path / "b"
    write_rmd17(with_old, "ethanol", 40)
    write_rmd17(without, "ethanol", 40, old=False)
    one, other = (collect(RMD17(part="ethanol"), raw, "train").block for raw in (with_old, without))
    np.testing.assert_array_equal(one.energy, other.energy)
    np.testing.assert_array_equal(one.forces, other.forces)
    with pytest.raises(RawFileError, match="has no array old_indices"):
        RMD17(part="ethanol").plan(without, "contiguous_train")


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = write_rmd17(tmp_path, "ethanol", 40)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RawFileError, match=r"rmd17_ethanol\.npz.*get the file again"):
        RMD17(part="ethanol").plan(tmp_path, "train")
    path.write_bytes(b"")
    with pytest.raises(RawFileError, match="0 bytes"):
        RMD17(part="ethanol").splits(tmp_path)
    with pytest.raises(RawFileError, match=r"no rmd17_uracil\.npz"):
        RMD17(part="uracil").splits(tmp_path)


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rmd17_ethanol.npz"
    np.savez(
        path,
        nuclear_charges=np.ones(2, np.uint8),
        coords=np.zeros((4, 2, 3)),
        energies=np.array([1.0, 2, 3, None], object),
        forces=np.zeros((4, 2, 3)),
    )
    source = RMD17(part="ethanol")
    with pytest.raises(RawFileError, match="energies is a pickled object"):
        list(source.read(tmp_path, source.plan(tmp_path, "train").parts[0]))


def test_a_file_that_changed_after_planning_is_refused(tmp_path: Path) -> None:
    write_rmd17(tmp_path, "ethanol", 40)
    source = RMD17(part="ethanol")
    (part,) = source.plan(tmp_path, "train").parts
    write_rmd17(tmp_path, "ethanol", 41)
    with pytest.raises(RawFileError, match="other rows"):
        list(source.read(tmp_path, part))


def test_other_atoms_than_the_molecules_are_noted(tmp_path: Path) -> None:
    write_rmd17(tmp_path, "uracil", 20)
    notes = RMD17(part="uracil").plan(tmp_path, "train").notes
    assert any("holds C2H6O1, the published molecule is C4H4N2O2" in note for note in notes)


def test_unknown_splits_list_the_known_ones(tmp_path: Path) -> None:
    write_rmd17(tmp_path, "ethanol", 20)
    with pytest.raises(ManifestError, match="contiguous_train"):
        RMD17(part="ethanol").plan(tmp_path, "training")


@needs_shared
@pytest.mark.parametrize(
    ("sample", "molecule", "mean", "force_std"),
    [
        ("rmd17_ethanol_train_01.npz", "ethanol", -4209.534573266602, 1.1929188),
        ("rmd17_benzene_test_02.npz", "benzene", -6306.374855859375, 0.90774584),
        ("rmd17_uracil_train_03.npz", "uracil", -11266.351949697266, 1.3692871),
        ("rmd17_azobenzene_train_01.npz", "azobenzene", -15553.118351233397, 1.2940075),
    ],
)
def test_real_files_agree_with_numpy_and_with_the_published_statistics(
    tmp_path: Path, sample: str, molecule: str, mean: float, force_std: float
) -> None:
    """`mean` and `force_std` are what the original published for its own training frames, with its constants."""
    assert SHARED is not None
    shutil.copy(SHARED / "samples" / "rmd17" / sample, tmp_path / f"rmd17_{molecule}.npz")
    source = RMD17(part=molecule, constants=JMP_REFERENCE)
    assert source.splits(tmp_path) == ("train", "val")
    train, val = (collect(source, tmp_path, split) for split in ("train", "val"))
    assert len(train.block) + len(val.block) == 1000
    archive = np.load(tmp_path / f"rmd17_{molecule}.npz")
    rows = [int(source_id.partition("#")[2]) for source_id in train.ids]
    np.testing.assert_allclose(train.block.energy, archive["energies"][rows] / 23.061, rtol=1e-15)
    np.testing.assert_array_equal(train.block.atomic_numbers[: ATOMS[molecule]], archive["nuclear_charges"])
    assert train.block.energy.mean() == pytest.approx(mean, abs=0.05)
    assert train.block.forces.std() == pytest.approx(force_std, rel=0.02)


@needs_shared
def test_golden_ethanol_frame(tmp_path: Path) -> None:
    """Row 0 of the real list: E = -97079.92222178938 kcal/mol and F = -17.64730699 kcal/mol/Å on atom 0.

    By hand, with 1 kcal/mol = 4184 J / 6.022140857e23 / 1.6021766208e-19 C = 0.0433641039 eV (CODATA 2014):
    E = -97079.92222178938 x 0.04336410390059322 = -4209.78383 eV, F_x = -17.64730699 x 0.0433641039 = -0.765260 eV/Å.
    """
    assert SHARED is not None
    shutil.copy(SHARED / "samples" / "rmd17" / "rmd17_ethanol_train_01.npz", tmp_path / "rmd17_ethanol.npz")
    collected = [collect(RMD17(part="ethanol"), tmp_path, split) for split in ("train", "val")]
    got = next(each for each in collected if "rmd17_ethanol.npz#0" in each.ids)
    row = got.ids.index("rmd17_ethanol.npz#0")
    structure = got.block.structure(row)
    kcal = 4184 / 6.022140857e23 / 1.6021766208e-19
    assert kcal == pytest.approx(0.04336410390059322, rel=1e-12)
    assert structure.energy == pytest.approx(-97079.92222178938 * kcal, rel=1e-12)
    assert structure.energy == pytest.approx(-4209.783834, abs=1e-5)
    assert structure.forces is not None
    np.testing.assert_allclose(structure.forces[0], [-0.765260, -1.133430, 1.765169], atol=2e-6)
    np.testing.assert_allclose(structure.positions[0], [-0.17406277, -0.48797864, 0.0185579], atol=1e-7)
    assert structure.atomic_numbers.tolist() == [6, 6, 8, 1, 1, 1, 1, 1, 1]
    assert structure.source_id == "rmd17_ethanol.npz#0"


@needs_shared
def test_a_file_cut_by_others_gets_its_missing_elements_back(tmp_path: Path) -> None:
    """This copy lists ten elements for twelve atoms and has no `old_*` arrays; benzene leaves only hydrogen."""
    assert SHARED is not None
    shutil.copy(SHARED / "samples" / "rmd17" / "rmd17_benzene_10frames.npz", tmp_path / "rmd17_benzene.npz")
    source = RMD17(part="benzene")
    assert source.splits(tmp_path) == ("train",)
    got = collect(source, tmp_path, "train")
    assert len(got.block) == 10
    assert got.block.atomic_numbers[:12].tolist() == [6] * 6 + [1] * 6
    assert any("completed to C6H6" in note for note in source.plan(tmp_path, "train").notes)


def test_missing_elements_that_the_formula_does_not_tell_are_refused(tmp_path: Path) -> None:
    path = write_rmd17(tmp_path, "ethanol", 10)
    arrays = dict(np.load(path))
    arrays["nuclear_charges"] = arrays["nuclear_charges"][:2]
    np.savez(path, allow_pickle=False, **arrays)
    with pytest.raises(RawFileError, match="does not tell the rest"):
        RMD17(part="ethanol").plan(tmp_path, "train")
