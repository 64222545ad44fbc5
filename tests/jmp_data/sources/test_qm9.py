from __future__ import annotations

import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from ase.data import chemical_symbols
from ase.db import connect

from jmp_data.errors import MissingFileError, RawFileError
from jmp_data.schema.units import JMP_REFERENCE
from jmp_data.sources import qm9, qm9_flavours
from jmp_data.sources.qm9 import QM9
from jmp_data.sources.qm9_records import parse_xyz, read_uncharacterized
from tests.jmp_data.sources.collecting import Collected, collect
from tests.jmp_data.sources.miniatures_qm9 import (
    WATER_ENERGIES,
    reference_order,
    write_archive,
    write_sdf_and_csv,
    write_uncharacterized,
    xyz_text,
)
from tests.shared import SHARED, needs_shared

HARTREE = 27.211386024367243
SPLITS = ("train", "val", "test")


def numbers_of(got: Collected) -> list[int]:
    return [int(re.findall(r"(\d+)(?:\.xyz)?$", source_id)[0]) for source_id in got.ids]


def all_splits(raw: Path) -> dict[str, Collected]:
    return {split: collect(QM9(), raw, split) for split in QM9().splits(raw)}


def test_star_caret_exponents_are_read() -> None:
    molecule = parse_xyz(xyz_text(7), 7)
    np.testing.assert_allclose(molecule.positions[1:, 1:], [[2.01e-2, 1.5345e-3], [1.3007924048, 6e-6]])


def test_units_levels_and_kinds(tmp_path: Path) -> None:
    write_archive(tmp_path, {index: xyz_text(index) for index in range(1, 11)})
    got = collect(QM9(), tmp_path, "train")
    first = got.block.structure(0)
    index = numbers_of(got)[0]
    assert first.targets["U0"] == pytest.approx((WATER_ENERGIES[0] - index * 1e-3) * HARTREE, rel=1e-12)
    assert first.targets["homo"] == pytest.approx(-0.2928 * HARTREE, rel=1e-12)
    assert first.targets["mu"] == 1.8511
    assert first.targets["alpha"] == 6.31
    assert first.targets["cv"] == 6.002
    np.testing.assert_allclose(first.targets["mulliken_charges"], [-0.589706, 0.294853, 0.294853], rtol=1e-6)
    assert first.energy is None
    assert "U0_atom" not in first.targets  # the archive has none
    schema = QM9.schema
    assert {field.unit for field in schema.targets} == {"GHz", "D", "a0³", "a0²", "eV", "cal/(mol K)", "e"}
    assert schema["gap"].kind == "intensive"
    assert schema["U0"].kind == "extensive"
    assert schema["mulliken_charges"].level == "atom"


def test_qm9_skipped_ids_are_numbers_of_molecules(tmp_path: Path) -> None:
    """`uncharacterized.txt` counts from 1; taking its numbers as positions from 0 drops the neighbours instead."""
    write_archive(tmp_path, {index: xyz_text(index) for index in range(1, 21)})
    write_uncharacterized(tmp_path, [3, 4, 20, 58])
    splits = all_splits(tmp_path)
    kept = [index for index in range(1, 21) if index not in (3, 4, 20)]
    assert sorted(number for got in splits.values() for number in numbers_of(got)) == kept
    assert splits["train"].skipped == {"uncharacterized": 3}
    assert all(not got.skipped for name, got in splits.items() if name != "train")
    # Positions of the rule count the kept molecules only.
    order = reference_order(17)
    assert numbers_of(splits["train"]) == sorted(kept[position] for position in order[:13])
    assert numbers_of(splits["val"]) == [kept[order[13]]]


def test_the_table_of_uncharacterized_molecules_lies_between_rulers(tmp_path: Path) -> None:
    path = write_uncharacterized(tmp_path, [58, 61, 133866])
    assert read_uncharacterized(path) == {58, 61, 133866}
    path.write_text("58\n61\n")
    with pytest.raises(RawFileError, match="no table between rulers"):
        read_uncharacterized(path)


def test_the_whole_archive_needs_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_archive(tmp_path, {index: xyz_text(index) for index in range(1, 6)})
    assert "all 5 molecules are kept" in " ".join(QM9().plan(tmp_path, "train").notes)
    monkeypatch.setattr(qm9, "NUM_PUBLISHED", 5)
    with pytest.raises(MissingFileError, match=r"uncharacterized\.txt"):
        QM9().plan(tmp_path, "train")


def test_large_sets_are_split_as_the_reference_did(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(qm9, "_HELD_OUT", 5)
    write_archive(tmp_path, {index: xyz_text(index) for index in range(1, 31)})
    splits = all_splits(tmp_path)
    order = reference_order(30) + 1
    assert numbers_of(splits["train"]) == sorted(order[:20])
    assert numbers_of(splits["val"]) == sorted(order[20:25])
    assert numbers_of(splits["test"]) == sorted(order[25:])


def test_both_flavours_give_the_same_molecules_and_splits(tmp_path: Path) -> None:
    archive, table = tmp_path / "archive", tmp_path / "table"
    write_archive(archive, {index: xyz_text(index) for index in range(1, 13)})
    write_sdf_and_csv(table, range(1, 13))
    for folder in (archive, table):
        write_uncharacterized(folder, [2])
    for split in SPLITS:
        one, other = collect(QM9(), archive, split), collect(QM9(), table, split)
        assert numbers_of(one) == numbers_of(other)
        for name in ("U0", "homo", "mu", "cv", "A"):
            np.testing.assert_allclose(one.block.columns[name], other.block.columns[name], rtol=1e-9)
        assert np.isnan(other.block.mulliken_charges).all()
        np.testing.assert_array_equal(one.block.atomic_numbers, other.block.atomic_numbers)
        # Atomisation energies alone are in kcal/mol there: -213.087624 kcal/mol = -9.2404 eV.
        np.testing.assert_allclose(other.block.U0_atom, -213.087624 * 0.04336410390059322, rtol=1e-9)
        np.testing.assert_allclose(other.block.U0_atom, -9.2404, atol=1e-4)


def test_unpacked_files_are_read_and_listed_part_by_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qm9, "_FILES_PER_PART", 3)
    for index in range(1, 11):
        (tmp_path / f"dsgdb9nsd_{index:06d}.xyz").write_text(xyz_text(index))
    plan = QM9().plan(tmp_path, "train")
    assert [part.num_records for part in plan.parts] == [3, 3, 2]
    assert all(len(part.files) == part.num_records for part in plan.parts)
    got = collect(QM9(), tmp_path, "train")
    assert sorted({name for part in plan.parts for name in part.files}) == got.ids


def test_a_bad_record_is_quarantined_with_its_text(tmp_path: Path) -> None:
    texts = {index: xyz_text(index) for index in range(1, 11)}
    texts[1] = texts[1].replace("\t 1.3007924048", "\tabc")
    texts[2] = texts[2].replace("gdb 2", "gdb 3")
    texts[4] = texts[4][:150]
    texts[5] = texts[5].replace("O\t-0.034", "Xx\t-0.034")
    write_archive(tmp_path, texts)
    quarantined = [record for got in all_splits(tmp_path).values() for record in got.quarantined]
    by_number = {int(record.source_id[-10:-4]): record for record in quarantined}
    assert set(by_number) == {1, 2, 4, 5}
    assert {record.reason for record in quarantined} == {"malformed_record"}
    assert "belongs to molecule gdb 3" in by_number[2].message
    assert "lines, expected 8" in by_number[4].message
    assert by_number[5].record == texts[5]


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    path = write_archive(tmp_path, {index: xyz_text(index) for index in range(1, 200)})
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(RawFileError, match=r"dsgdb9nsd\.xyz\.tar\.bz2: not a whole archive"):
        QM9().splits(tmp_path)


def test_a_molecule_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for folder in ("a", "b"):
        (tmp_path / folder / "dsgdb9nsd_000001.xyz").write_text(xyz_text(1))
    with pytest.raises(RawFileError, match="molecule 1 more than once"):
        QM9().splits(tmp_path)


def test_tables_without_properties_or_in_another_order_are_refused(tmp_path: Path) -> None:
    write_sdf_and_csv(tmp_path, [1, 2, 3])
    table = tmp_path / "gdb9.sdf.csv"
    rows = table.read_text().splitlines()
    table.write_text("\n".join([rows[0], rows[2], rows[1], rows[3]]) + "\n")
    with pytest.raises(RawFileError, match="record 1 is gdb_1, but row 1"):
        collect(QM9(), tmp_path, "train")
    table.write_text("\n".join(rows[:3]) + "\n")
    with pytest.raises(RawFileError, match="more records than"):
        collect(QM9(), tmp_path, "test")
    table.write_text("mol_id,smiles\ngdb_1,C\n")
    with pytest.raises(RawFileError, match="has no column A, B"):
        QM9().splits(tmp_path)


def test_the_reference_constants_apply(tmp_path: Path) -> None:
    write_archive(tmp_path, {index: xyz_text(index) for index in range(1, 6)})
    got = collect(QM9(constants=JMP_REFERENCE), tmp_path, "train")
    index = numbers_of(got)[0]
    assert got.block.U0[0] == pytest.approx((WATER_ENERGIES[0] - index * 1e-3) / 0.0367493, rel=1e-12)


@needs_shared
def test_the_real_archive_agrees_with_another_reader(tmp_path: Path) -> None:
    """Molecules 1 to 10 against the database that SchNetPack's authors made of the same files, in hartree."""
    assert SHARED is not None
    shutil.copy(SHARED / "samples/qm9/dsgdb9nsd_first10.tar.bz2", tmp_path / qm9_flavours.ARCHIVE_NAMES[0])
    theirs = {
        "A": "rotational_constant_A",
        "mu": "dipole_moment",
        "alpha": "isotropic_polarizability",
        "r2": "electronic_spatial_extent",
        "cv": "heat_capacity",
    }
    in_hartree = {
        "homo": "homo",
        "lumo": "lumo",
        "gap": "gap",
        "zpve": "zpve",
        "U0": "energy_U0",
        "U": "energy_U",
        "H": "enthalpy_H",
        "G": "free_energy",
    }
    seen = []
    for got in all_splits(tmp_path).values():
        for row, number in enumerate(numbers_of(got)):
            entry = connect(SHARED / "samples/ase_db/schnetpack_test_qm9.db").get(number)
            structure = got.block.structure(row)
            np.testing.assert_array_equal(structure.atomic_numbers, entry.numbers)
            np.testing.assert_allclose(structure.positions, entry.positions, atol=1e-6)
            for name, other in theirs.items():
                np.testing.assert_allclose(structure.targets[name], entry.data[other][0], rtol=1e-6)
            for name, other in in_hartree.items():
                np.testing.assert_allclose(structure.targets[name], entry.data[other][0] * HARTREE, rtol=1e-6)
            seen.append(number)
    assert sorted(seen) == list(range(1, 11))


@needs_shared
def test_golden_methane(tmp_path: Path) -> None:
    """Molecule 1 of the real archive, by hand: 1 hartree = 27.2113860 eV (CODATA 2014).

    U0 = -40.47893 hartree = -1101.48779 eV; gap = 0.5048 hartree = 13.73631 eV; zpve = 0.044749 hartree = 1.21768 eV.
    """
    assert SHARED is not None
    shutil.copy(SHARED / "samples/qm9/dsgdb9nsd_first10.tar.bz2", tmp_path / qm9_flavours.ARCHIVE_NAMES[0])
    found = [(got, numbers_of(got)) for got in all_splits(tmp_path).values()]
    got, numbers = next((got, numbers) for got, numbers in found if 1 in numbers)
    methane = got.block.structure(numbers.index(1))
    assert [chemical_symbols[number] for number in methane.atomic_numbers] == ["C", "H", "H", "H", "H"]
    assert methane.targets["U0"] == pytest.approx(-1101.48779, abs=1e-5)
    assert methane.targets["gap"] == pytest.approx(13.73631, abs=1e-5)
    assert methane.targets["zpve"] == pytest.approx(1.21768, abs=1e-5)
    assert methane.targets["alpha"] == 13.21
    np.testing.assert_allclose(methane.positions[0], [-0.0126981359, 1.0858041578, 0.0080009958], atol=1e-7)
    np.testing.assert_allclose(methane.targets["mulliken_charges"][0], -0.535689, atol=1e-6)
    assert methane.source_id == "dsgdb9nsd.xyz.tar.bz2#dsgdb9nsd_000001.xyz"


@needs_shared
def test_real_loose_files_are_read(tmp_path: Path) -> None:
    assert SHARED is not None
    for path in (SHARED / "samples/qm9").glob("*.xyz"):
        shutil.copy(path, tmp_path)
    with tarfile.open(SHARED / "samples/qm9/dsgdb9nsd_first10.tar.bz2") as archive:
        archive.extractall(tmp_path, filter="data")
    splits = all_splits(tmp_path)
    assert sum(len(got.block) for got in splits.values()) == 15
    assert not any(got.quarantined for got in splits.values())
    for got in splits.values():
        for row, source_id in enumerate(got.ids):
            text = (tmp_path / source_id).read_text().replace("*^", "e").splitlines()
            structure = got.block.structure(row)
            assert structure.natoms == int(text[0])
            assert structure.targets["G"] == pytest.approx(float(text[1].split("\t")[14]) * HARTREE, rel=1e-12)
            expected = [[float(word) for word in line.split("\t")[1:4]] for line in text[2 : 2 + structure.natoms]]
            np.testing.assert_allclose(structure.positions, expected, atol=1e-6)
