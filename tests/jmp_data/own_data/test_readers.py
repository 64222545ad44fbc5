"""Formats of which no real file is at hand, written here as their programs write them, and formats' odd corners."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from pathlib import Path

import ase.db
import ase.io
import h5py
import lmdb
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixBondLength, Hookean
from ase.stress import voigt_6_to_full_3x3_stress

from jmp_data.demo.write_oc22 import write_lmdb
from jmp_data.errors import ManifestError, MissingFileError, RawFileError
from jmp_data.own_data import OwnData
from jmp_data.own_data.formats import find_format
from tests.jmp_data.own_data.manifests import notes_of, read_all, write_manifest
from tests.jmp_data.own_data.written import random_atoms, write_aselmdb, write_mace
from tests.jmp_data.raw.pickled_records import dump_before_pyg2, dump_since_pyg2, record_attributes
from tests.jmp_data.sources.collecting import Collected

FRAMES = random_atoms(11)


def check(collected: Collected, frames: list[Atoms], *, tagged: bool = True) -> None:
    assert collected.quarantined == []
    assert len(collected.block) == len(frames)
    for row, atoms in enumerate(frames):
        found = collected.block.structure(row)
        np.testing.assert_array_equal(found.atomic_numbers, atoms.numbers)
        np.testing.assert_allclose(found.positions, atoms.positions, rtol=1e-6)
        np.testing.assert_allclose(found.cell, atoms.cell.array, rtol=1e-6)
        np.testing.assert_array_equal(found.pbc, atoms.pbc)
        assert found.energy == atoms.calc.results["energy"]
        np.testing.assert_allclose(found.forces, atoms.calc.results["forces"], rtol=1e-6)
        if "stress" in found.targets:
            expected = voigt_6_to_full_3x3_stress(atoms.calc.results["stress"])
            np.testing.assert_allclose(found.targets["stress"], expected, rtol=1e-6)
        if tagged:
            np.testing.assert_array_equal(found.tags, atoms.get_tags())
            np.testing.assert_array_equal(found.fixed, atoms.get_tags() == 0)


@pytest.mark.parametrize(("name", "format"), [("a.extxyz", "extxyz"), ("a.traj", "traj"), ("a.db", "ase_db")])
def test_what_ase_writes(tmp_path: Path, name: str, format: str) -> None:
    ase.io.write(tmp_path / name, FRAMES)
    source, collected = read_all(tmp_path, name, tags="given")
    check(collected, FRAMES, tagged=True)
    assert find_format(tmp_path / name) == format
    assert source.schema.names[-3:] == ("energy", "forces", "stress")
    first = "1" if format == "ase_db" else "0"
    assert collected.ids[0] == f"{name}#{first}"


def test_any_other_format_of_ase(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "POSCAR", FRAMES[0], format="vasp")
    ase.io.write(tmp_path / "some.xsf", FRAMES[:3])
    assert find_format(tmp_path / "POSCAR") == "ase"
    source, collected = read_all(tmp_path, "POSCAR", "some.xsf")
    assert [len(atoms) for atoms in (FRAMES[0], *FRAMES[:3])] == collected.block.natoms.tolist()
    # XSF keeps forces; the POSCAR has none, so its forces are NaN and no structure is lost.
    assert source.schema.names[-1] == "forces"
    assert np.isnan(collected.block.forces[: len(FRAMES[0])]).all()
    assert source.required == ()


def test_a_database_with_gaps(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "a.db", FRAMES)
    with ase.db.connect(tmp_path / "a.db") as database:
        database.delete([2, 5])
    _, collected = read_all(tmp_path, "a.db")
    assert [source_id.split("#")[1] for source_id in collected.ids] == ["1", "3", "4", "6", "7", "8", "9", "10", "11"]


def test_aselmdb(tmp_path: Path) -> None:
    write_aselmdb(tmp_path / "data.aselmdb", FRAMES)
    source, collected = read_all(tmp_path, "data.aselmdb", targets={"band_gap": {"unit": "eV"}})
    check(collected, FRAMES)
    np.testing.assert_allclose(collected.block.band_gap, 0.1 * np.arange(1, 12))
    assert collected.ids[0] == "data.aselmdb#1"
    assert source.schema["band_gap"].unit == "eV"


def test_aselmdb_in_a_folder_of_shards_with_deleted_rows(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    write_aselmdb(tmp_path / "shards/data.0000.aselmdb", FRAMES[:6], deleted=[2, 6])
    write_aselmdb(tmp_path / "shards/data.0001.aselmdb", FRAMES[6:])
    _, collected = read_all(tmp_path, "shards/*.aselmdb")
    check(collected, [FRAMES[place] for place in (0, 2, 3, 4, 6, 7, 8, 9, 10)])


def test_a_row_of_an_aselmdb_that_is_no_row(tmp_path: Path) -> None:
    write_aselmdb(tmp_path / "data.aselmdb", FRAMES)
    environment = lmdb.open(str(tmp_path / "data.aselmdb"), subdir=False, lock=False)
    with environment.begin(write=True) as transaction:
        transaction.put(b"3", b"\x78\x9cnothing")
        transaction.put(b"4", zlib.compress(b'{"numbers": [1], "positions": [[0, 0]]}'))
    environment.close()
    source, collected = read_all(tmp_path, "data.aselmdb")
    assert len(collected.block) == 9
    assert [item.reason for item in collected.quarantined] == ["damaged_record", "damaged_record"]
    assert collected.quarantined[0].source_id == "data.aselmdb#3"
    assert "2 of 11 sampled records cannot be read" in notes_of(source)


@pytest.mark.parametrize("dump", [dump_before_pyg2, dump_since_pyg2])
def test_ocp_lmdb(tmp_path: Path, dump) -> None:
    records = [record_attributes(natoms, seed=natoms) for natoms in range(3, 12)]
    write_lmdb(tmp_path / "data.0000.lmdb", [dump(record) for record in records])
    assert find_format(tmp_path / "data.0000.lmdb") == "ocp_lmdb"
    source, collected = read_all(tmp_path, "data.0000.lmdb", targets={"nads": {}})
    assert len(collected.block) == 9
    for row, record in enumerate(records):
        found = collected.block.structure(row)
        assert found.energy == record["y"]
        for name, column in (("pos", found.positions), ("force", found.forces), ("tags", found.tags)):
            np.testing.assert_array_equal(column, record[name].numpy())
        np.testing.assert_array_equal(found.cell, record["cell"].numpy()[0])
        np.testing.assert_array_equal(found.fixed, record["fixed"].numpy() == 1)
        assert found.pbc.all()
    notes = notes_of(source)
    assert "GUESSED keys.energy: 'y'" in notes
    assert "GUESSED pbc: periodic: 9 of 9 sampled structures have a cell and say nothing of it" in notes


def test_a_hostile_record_among_good_ones_is_set_aside(tmp_path: Path) -> None:
    records = [dump_since_pyg2(record_attributes(4, seed=seed)) for seed in range(5)]
    records[3] = b"\x80\x04cos\nsystem\n\x8c\x04true\x85R."
    write_lmdb(tmp_path / "data.lmdb", records)
    _, collected = read_all(tmp_path, "data.lmdb")
    assert len(collected.block) == 4
    (item,) = collected.quarantined
    assert (item.source_id, item.reason) == ("data.lmdb#3", "unsafe_pickle")
    assert bytes.fromhex(item.record) == records[3]


@pytest.mark.parametrize("properties_group", [True, False])
def test_mace_hdf5(tmp_path: Path, properties_group: bool) -> None:
    write_mace(tmp_path / "train.h5", FRAMES, properties_group=properties_group)
    source, collected = read_all(tmp_path, "train.h5")
    check(collected, FRAMES, tagged=False)
    assert collected.ids[4:6] == ["train.h5#config_batch_1/config_0", "train.h5#config_batch_1/config_1"]
    # The third structure has no stress: NaN, and a statement.
    assert np.isnan(collected.block.stress[2]).all()
    assert "stress" not in source.required
    assert "not all of 11 sampled structures have stress (10); the others get NaN" in notes_of(source)


def test_hdf5_of_no_known_layout(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = np.zeros(3)
    source = OwnData(write_manifest(tmp_path / "my.yaml", files=["a.h5"]))
    with pytest.raises(RawFileError, match=r"a.h5: no group has atomic numbers"):
        source.splits(tmp_path)


def cif_folder(folder: Path, count: int = 6) -> list[Atoms]:
    (folder / "cifs").mkdir()
    frames = random_atoms(count)
    for number, atoms in enumerate(frames):
        ase.io.write(folder / f"cifs/mof-{number}.cif", atoms)
    rows = [f"{number},mof-{count - 1 - number},{count - 1 - number}.25,True" for number in range(count)]
    (folder / "targets.csv").write_text("index,name,gap,is_metal\n" + "\n".join(rows) + "\n")
    return frames


def test_cifs_with_a_table_joined_by_name(tmp_path: Path) -> None:
    frames = cif_folder(tmp_path)
    targets = {"gap": {"unit": "eV"}, "is_metal": {}}
    source, collected = read_all(tmp_path, "cifs", table={"file": "targets.csv"}, targets=targets)
    # The table lists them backwards; joined by position every gap would be wrong.
    np.testing.assert_array_equal(collected.block.gap, np.arange(6) + 0.25)
    np.testing.assert_array_equal(collected.block.natoms, [len(atoms) for atoms in frames])
    np.testing.assert_array_equal(collected.block.is_metal, np.ones(6))
    (part,) = source.plan(tmp_path, "train").parts
    assert part.files[:2] == ("targets.csv", "cifs/mof-0.cif")


def test_a_cif_without_a_row_is_set_aside(tmp_path: Path) -> None:
    cif_folder(tmp_path)
    table = tmp_path / "targets.csv"
    table.write_text("".join(line for line in table.read_text().splitlines(True) if "mof-4" not in line))
    _, collected = read_all(tmp_path, "cifs/*.cif", table={"file": "targets.csv", "id": "name"}, targets={"gap": {}})
    (item,) = collected.quarantined
    assert item.message == "cifs/mof-4.cif#mof-4: targets.csv has no row 'mof-4' in column 'name'"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name,gap\nmof-1,1\nmof-1,2\n", "row 3: 'mof-1' occurs twice"),
        ("name,gap\nmof-1\n", "row 2 has 1 values, the header has 2"),
        ("id,gap\nx,1\n", "no column holds the names of the files, such as 'mof-0'"),
        ("name,gap\n", "no rows"),
    ],
)
def test_tables_that_cannot_be_joined(tmp_path: Path, content: str, message: str) -> None:
    cif_folder(tmp_path)
    (tmp_path / "targets.csv").write_text(content)
    source = OwnData(write_manifest(tmp_path / "my.yaml", files=["cifs"], table={"file": "targets.csv"}))
    with pytest.raises(RawFileError, match=f"targets.csv: .*{message}"):
        source.splits(tmp_path)


def test_a_cif_with_symmetry_is_expanded_and_a_disordered_one_refused(tmp_path: Path) -> None:
    from pymatgen.core import Lattice, Structure
    from pymatgen.io.cif import CifWriter

    salt = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    CifWriter(salt, symprec=0.01).write_file(tmp_path / "salt.cif")
    alloy = Structure(Lattice.cubic(3.0), [{"Cu": 0.5, "Au": 0.5}], [[0, 0, 0]])
    CifWriter(alloy).write_file(tmp_path / "alloy.cif")
    _, collected = read_all(tmp_path, "*.cif")
    assert collected.block.natoms.tolist() == [8]
    assert np.sort(collected.block.atomic_numbers).tolist() == [11] * 4 + [17] * 4
    assert abs(np.linalg.det(collected.block.cell[0])) == pytest.approx(5.64**3, rel=1e-5)
    assert [item.reason for item in collected.quarantined] == ["disordered_site"]


def test_files_that_nobody_reads(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(b"\x80\x04.")
    (tmp_path / "a.bin").write_bytes(b"nothing known")
    (tmp_path / "a.xyz").write_bytes(b"")
    for name, message in {
        "a.pkl": "is a pickle",
        "a.bin": "format not recognised",
        "a.xyz": "is empty",
    }.items():
        with pytest.raises(RawFileError, match=f"{name}: {message}"):
            find_format(tmp_path / name)
    with pytest.raises(MissingFileError, match="no such file"):
        find_format(tmp_path / "b.xyz")


def test_an_old_trajectory_is_a_pickle_and_stays_closed(tmp_path: Path) -> None:
    (tmp_path / "old.traj").write_bytes(b"PickleTrajectory\x80\x02cos\nsystem\n.")
    source = OwnData(write_manifest(tmp_path / "my.yaml", files=["old.traj"], format="traj"))
    with pytest.raises(RawFileError, match=r"old.traj: no ASE trajectory"):
        source.splits(tmp_path)


def test_a_broken_output_keeps_the_frames_before(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "a.xsf", FRAMES[:3])
    ase.io.write(tmp_path / "b.gen", FRAMES[0])
    (tmp_path / "b.gen").write_text((tmp_path / "b.gen").read_text()[:60])
    _, collected = read_all(tmp_path, "a.xsf", "b.gen", format="ase")
    assert len(collected.block) == 3
    (item,) = collected.quarantined
    assert item.source_id == "b.gen#0"
    assert item.damaged_file


def test_a_pattern_without_files(tmp_path: Path) -> None:
    source = OwnData(write_manifest(tmp_path / "my.yaml", files=["*.xyz"]))
    with pytest.raises(MissingFileError, match=r"no file matches '\*.xyz' in "):
        source.splits(tmp_path)


def test_a_table_needs_one_structure_a_file(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "a.xyz", FRAMES)
    (tmp_path / "t.csv").write_text("name,gap\na,1\n")
    source = OwnData(write_manifest(tmp_path / "my.yaml", files=["a.xyz"], table={"file": "t.csv"}))
    with pytest.raises(ManifestError, match=r"my.yaml: .*a.xyz: holds 11 structures"):
        source.splits(tmp_path)


WATER = "3\n{}\nO 0 0 0.1 0.1 0.2 0.3\nH 0 0.76 -0.47 0 0 -0.1\nH 0 -0.76 -0.47 -0.1 -0.2 -0.2\n"
COLUMNS = "Properties=species:S:1:pos:R:3:forces:R:3"


def test_a_word_in_the_comment_of_a_plain_xyz_is_no_energy(tmp_path: Path) -> None:
    """ASE makes `energy` in "an energy of -5 eV" a flag, and a flag as a number would be 1 eV."""
    (tmp_path / "a.xyz").write_text("2\nan energy of -5 eV\nC 0 0 0\nO 0 0 1.2\n" * 3)
    source, collected = read_all(tmp_path, "a.xyz")
    assert "energy" not in source.schema
    assert len(collected.block) == 3
    (tmp_path / "a.xyz").write_text(WATER.format(COLUMNS + " energy") + WATER.format(COLUMNS + " energy=-14.5") * 3)
    _, collected = read_all(tmp_path, "a.xyz", required=["energy"])
    assert [item.reason for item in collected.quarantined] == ["not_a_number"]
    assert collected.block.energy.tolist() == [-14.5] * 3


def test_words_for_nothing_are_nothing_and_other_texts_are_set_aside(tmp_path: Path) -> None:
    """One frame without an energy must not cost the others theirs."""
    energies = ["none", "-14.5", "None", "nan", "-14.25", "-14", "unconverged", "0.0"]
    (tmp_path / "a.xyz").write_text("".join(WATER.format(f"{COLUMNS} energy={energy}") for energy in energies))
    source, collected = read_all(tmp_path, "a.xyz")
    np.testing.assert_array_equal(collected.block.energy, [np.nan, -14.5, np.nan, np.nan, -14.25, -14, 0])
    (item,) = collected.quarantined
    assert (item.source_id, item.reason) == ("a.xyz#6", "not_a_number")
    assert "'unconverged'" in item.message
    assert source.required == ("forces",)


def test_texts_as_editors_leave_them(tmp_path: Path) -> None:
    """A byte order mark, line ends of Windows, a name in Latin-1, tabs, blank lines between frames."""
    text = WATER.format(f'{COLUMNS} energy=-14.5 pbc="F F F"') + "\n" + WATER.format(f"{COLUMNS} energy=-14.25")
    variants = {
        "mark": b"\xef\xbb\xbf" + text.encode(),
        "windows": text.replace("\n", "\r\n").encode(),
        "latin": text.replace("energy=-14.5", "energy=-14.5 author=Ångström").encode("latin-1"),
        "tabs": text.replace(" 0 ", "\t0\t").encode(),
        "blank": b"\n\n" + text.encode() + b"\n\n",
    }
    for name, content in variants.items():
        (tmp_path / f"{name}.xyz").write_bytes(content)
        _, collected = read_all(tmp_path, f"{name}.xyz")
        assert collected.quarantined == [], name
        assert collected.block.energy.tolist() == [-14.5, -14.25], name
        np.testing.assert_allclose(collected.block.forces[0], [0.1, 0.2, 0.3], rtol=1e-6)


def test_six_numbers_of_stress_are_in_voigt_order(tmp_path: Path) -> None:
    header = 'Lattice="4 0 0 0 4 0 0 0 4" Properties=species:S:1:pos:R:3 energy=-5 stress="0.1 0.2 0.3 0.4 0.5 0.6"'
    (tmp_path / "a.xyz").write_text(f"1\n{header}\nCu 0 0 0\n" * 3)
    _, collected = read_all(tmp_path, "a.xyz")
    # xx yy zz yz xz xy, ASE's order.
    expected = [[0.1, 0.6, 0.5], [0.6, 0.2, 0.4], [0.5, 0.4, 0.3]]
    np.testing.assert_allclose(collected.block.stress[0], expected, rtol=1e-6)


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz"])
def test_packed_texts(tmp_path: Path, suffix: str) -> None:
    pack = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}[suffix]
    (tmp_path / f"a.xyz.{suffix}").write_bytes(pack((WATER.format(f"{COLUMNS} energy=-14.5") * 4).encode()))
    ase.io.write(tmp_path / "b.cif", FRAMES[0])
    (tmp_path / f"b.cif.{suffix}").write_bytes(pack((tmp_path / "b.cif").read_bytes()))
    (tmp_path / "b.cif").unlink()
    (tmp_path / "t.csv").write_text("file,gap\nb.cif,1.5\n")
    _, collected = read_all(tmp_path, f"a.xyz.{suffix}")
    assert collected.block.energy.tolist() == [-14.5] * 4
    _, collected = read_all(tmp_path, f"b.cif.{suffix}", table={"file": "t.csv"}, targets={"gap": {}})
    assert collected.block.gap.tolist() == [1.5]
    assert collected.ids == [f"b.cif.{suffix}#b"]
    content = (tmp_path / f"a.xyz.{suffix}").read_bytes()
    (tmp_path / f"a.xyz.{suffix}").write_bytes(content[:-20])
    source = OwnData(write_manifest(tmp_path / "my.yaml", files=[f"a.xyz.{suffix}"]))
    with pytest.raises(RawFileError, match=rf"a.xyz.{suffix}: cannot be unpacked"):
        source.splits(tmp_path)


def test_constraints_that_hold_no_atom_are_read_over(tmp_path: Path) -> None:
    atoms = FRAMES[0].copy()
    atoms.calc = FRAMES[0].calc
    atoms.set_constraint([FixBondLength(0, 1), FixAtoms([2]), Hookean(0, 1, 5.0, 2.0)])
    bare = FRAMES[1].copy()
    bare.set_constraint()
    with ase.db.connect(tmp_path / "a.db") as database:
        database.write(atoms)
        database.write(bare)  # no calculator at all
    _, collected = read_all(tmp_path, "a.db")
    assert collected.quarantined == []
    assert np.flatnonzero(collected.block.fixed).tolist() == [2]
    assert collected.block.energy[0] == atoms.calc.results["energy"]
    assert np.isnan(collected.block.energy[1])
    np.testing.assert_allclose(collected.block.structure(0).forces, atoms.calc.results["forces"], rtol=1e-6)


def test_a_trajectory_that_is_cut_keeps_its_whole_frames(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "a.traj", FRAMES[:4])
    content = (tmp_path / "a.traj").read_bytes()
    (tmp_path / "a.traj").write_bytes(content[: -len(FRAMES[3]) * 24])
    _, collected = read_all(tmp_path, "a.traj")
    assert collected.block.energy.tolist() == [atoms.calc.results["energy"] for atoms in FRAMES[:3]]
    (item,) = collected.quarantined
    assert (item.source_id, item.reason, item.damaged_file) == ("a.traj#3", "unreadable_frame", True)


def test_a_label_of_another_shape_costs_its_own_record_only(tmp_path: Path) -> None:
    frames = [atoms.copy() for atoms in FRAMES]
    for atoms, original in zip(frames, FRAMES, strict=True):
        atoms.calc = SinglePointCalculator(atoms, **original.calc.results)
    frames[4].calc.results["forces"] = np.zeros((1, 3))
    write_aselmdb(tmp_path / "data.aselmdb", frames)
    source, collected = read_all(tmp_path, "data.aselmdb")
    assert source.required == ("energy", "forces", "stress")
    assert [(item.source_id, item.reason) for item in collected.quarantined] == [("data.aselmdb#5", "shape")]
    assert len(collected.block) == len(FRAMES) - 1
