"""OC20: hand-written frames, ASE as an independent reader, and every way in which a pair of files can be damaged."""

from __future__ import annotations

import lzma
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import ase.io
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jmp_data import demo
from jmp_data.errors import ManifestError, MissingFileError, RawFileError
from jmp_data.sources import get_source, oc20
from jmp_data.sources.oc20_pairs import match_frames
from tests.jmp_data.sources.collecting import Collected
from tests.jmp_data.sources.reading import read_split
from tests.raw_archives import random_frames
from tests.shared import SHARED, needs_shared

COLUMNS = "species:S:1:pos:R:3:move_mask:L:1:tags:I:1:forces:R:3"

GOLDEN_FRAMES = f"""3
Lattice="5.5 0.0 0.0 0.25 6.5 0.0 0.0 0.0 20.25" Properties={COLUMNS} energy=-12.345678901234 free_energy=-9 pbc="T T T"
Cu       0.00000000       1.50000000      -2.25000000  F        0       0.01234567      -0.50000000       0.00000000
O        3.12345678       0.00000001      12.00000000  T        1      -0.00000000       1.25000000     -10.00000000
Pt     123.45678912      -0.00000000       0.10000000  T        2       0.00000001       0.00000000       0.30000000
1
Lattice="10.0 0.0 0.0 0.0 10.0 0.0 0.0 0.0 10.0" Properties={COLUMNS} energy=1e-3 free_energy=0.5 pbc="T T F"
H        0.50000000       0.50000000       0.50000000  T        2       0.00000000       0.00000000       0.00000000
"""
GOLDEN_SYSTEMS = "random1447590,frame12,-10.25\nrandom7,frame0,0.5\n"


def write_pair(folder: Path, number: int, frames: str | bytes, systems: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    data = frames.encode() if isinstance(frames, str) else frames
    (folder / f"{number}.extxyz.xz").write_bytes(lzma.compress(data))
    (folder / f"{number}.txt.xz").write_bytes(lzma.compress(systems.encode()))


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Twenty random frames in one pair; returns the folder that holds the pair."""
    demo.write_oc20_split(tmp_path, "s2ef_train_200K", random_frames(1, 20), frames_per_file=20)
    return tmp_path / "s2ef_train_200K" / "s2ef_train_200K"


def damaged(archive: Path, change: Callable[[list[str]], None]) -> Collected:
    """Read the archive after a change to the lines of its frames."""
    path = archive / "0.extxyz.xz"
    lines = lzma.decompress(path.read_bytes()).decode().split("\n")
    change(lines)
    path.write_bytes(lzma.compress("\n".join(lines).encode()))
    return read_split("oc20", archive.parent.parent, "train")


def headers(lines: list[str]) -> list[int]:
    return [number for number, line in enumerate(lines) if "Properties=" in line]


def survivors(outcome: Collected) -> list[int]:
    """Which of the frames came through, by their record numbers, after a check of their values."""
    frames = random_frames(1, 20)
    rows = [int(source_id.split("#")[1].split(":")[0]) for source_id in outcome.ids]
    for row, number in enumerate(rows):
        structure = outcome.block.structure(row)
        assert structure.energy == frames[number].energy
        assert structure.targets["reference_energy"] == frames[number].reference_energy
        np.testing.assert_array_equal(structure.positions, frames[number].positions.astype(np.float32))
        assert f":random{frames[number].system}/frame{frames[number].frame}" in structure.source_id
    return rows


def test_golden_values(tmp_path: Path) -> None:
    write_pair(tmp_path / "s2ef_val_id" / "s2ef_val_id", 0, GOLDEN_FRAMES, GOLDEN_SYSTEMS)
    block = read_split("oc20", tmp_path, "val_id").block
    first, second = block.structure(0), block.structure(1)
    assert first.atomic_numbers.tolist() == [29, 8, 78]
    assert first.positions.dtype == np.float32
    assert first.positions[1].tolist() == np.float32([3.12345678, 1e-8, 12.0]).tolist()
    assert first.positions[2].tolist() == np.float32([123.45678912, 0.0, 0.1]).tolist()
    assert first.fixed.tolist() == [True, False, False]  # move_mask F is fixed
    assert first.tags.tolist() == [0, 1, 2]
    assert first.forces[0].tolist() == np.float32([0.01234567, -0.5, 0.0]).tolist()  # raw on the fixed atom too
    assert first.energy == -12.345678901234  # energy, not free_energy
    assert first.targets["reference_energy"] == -10.25
    assert first.cell.tolist() == [[5.5, 0, 0], [0.25, 6.5, 0], [0, 0, 20.25]]
    assert first.source_id == "s2ef_val_id/0.extxyz.xz#0:random1447590/frame12"
    assert second.energy == 0.001
    assert second.pbc.tolist() == [True, True, False]


def test_every_frame_agrees_with_ase(archive: Path) -> None:
    outcome = read_split("oc20", archive.parent.parent, "train")
    with lzma.open(archive / "0.extxyz.xz", "rt") as stream:
        reference = ase.io.read(stream, index=":", format="extxyz")
    assert len(outcome.block) == len(reference) == 20
    for row, atoms in enumerate(reference):
        structure = outcome.block.structure(row)
        fixed = np.zeros(len(atoms), bool)
        fixed[[index for constraint in atoms.constraints for index in constraint.index]] = True
        np.testing.assert_array_equal(structure.atomic_numbers, atoms.numbers)
        np.testing.assert_array_equal(structure.positions, atoms.positions.astype(np.float32))
        np.testing.assert_array_equal(structure.cell, atoms.cell.array.astype(np.float32))
        forces = atoms.get_forces(apply_constraint=False)
        np.testing.assert_array_equal(structure.forces, forces.astype(np.float32))
        assert structure.energy == atoms.get_potential_energy(apply_constraint=False)
        np.testing.assert_array_equal(structure.tags, atoms.get_tags())
        np.testing.assert_array_equal(structure.fixed, fixed)
        np.testing.assert_array_equal(structure.pbc, atoms.pbc)


@needs_shared
def test_real_writers_output_with_an_extra_column(tmp_path: Path) -> None:
    assert SHARED is not None
    text = (SHARED / "samples" / "oc20" / "toy_c3h8_relax.extxyz").read_text()
    systems = "".join(f"random5,frame{i},0.0\n" for i in range(101))
    write_pair(tmp_path / "s2ef_train_2M" / "s2ef_train_2M", 0, text, systems)
    block = read_split("oc20", tmp_path, "train").block
    reference = ase.io.read(SHARED / "samples" / "oc20" / "toy_c3h8_relax.extxyz", index=":")
    assert len(block) == len(reference) == 101
    for row in (0, 50, 100):
        expected = reference[row].get_forces(apply_constraint=False).astype(np.float32)
        np.testing.assert_array_equal(block.structure(row).forces, expected)
        assert block.structure(row).energy == reference[row].get_potential_energy(apply_constraint=False)


def test_headers_in_another_order_and_other_columns(tmp_path: Path) -> None:
    frame = (
        '2\npbc="T T T" energy=-2.5 free_energy=-3 Properties=tags:I:1:species:S:1:magmoms:R:1:forces:R:3:pos:R:3:'
        'move_mask:L:1 config="a b" Lattice="4 0 0 0 4 0 0 0 4"\n'
        "2 Cl 0.5 1 2 3 4 5 6 T\n0 H -0.5 1e-3 -2E+1 .5 4. +5 6 F\n"
    )
    write_pair(tmp_path / "s2ef_val_ood_cat", 3, frame, "random1,frame1,0.25\n")
    structure = read_split("oc20", tmp_path, "val_ood_cat").block.structure(0)
    assert structure.atomic_numbers.tolist() == [17, 1]
    assert structure.forces.tolist() == [[1, 2, 3], np.float32([0.001, -20, 0.5]).tolist()]
    assert structure.positions.tolist() == [[4, 5, 6], [4, 5, 6]]
    assert structure.tags.tolist() == [2, 0]
    assert structure.fixed.tolist() == [False, True]
    assert structure.energy == -2.5


def test_a_frame_without_move_mask_has_nothing_fixed(tmp_path: Path) -> None:
    frame = (
        GOLDEN_FRAMES.split("\n1\n")[0].replace("move_mask:L:1:", "").replace("  F  ", "").replace("  T  ", "") + "\n"
    )
    write_pair(tmp_path / "s2ef_val_id", 0, frame, "random1,frame1,0.25\n")
    structure = read_split("oc20", tmp_path, "val_id").block.structure(0)
    assert not structure.fixed.any()
    assert structure.tags.tolist() == [0, 1, 2]


def test_the_folder_of_the_pairs_itself_will_do(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(archive)
    outcome = read_split("oc20", Path(), "train")
    assert survivors(outcome) == list(range(20))
    assert all(name.startswith("s2ef_train_200K/0.extxyz.xz#") for name in outcome.ids)


def test_nan_forces_pass_through_to_validation(archive: Path) -> None:
    def change(lines: list[str]) -> None:
        row = headers(lines)[3] + 1
        lines[row] = lines[row][:-16] + "             nan"

    outcome = damaged(archive, change)
    assert len(outcome.block) == 20
    assert np.isnan(outcome.block.forces).sum() == 1


def test_train_is_the_largest_published_set(tmp_path: Path) -> None:
    for split, count in (("s2ef_train_200K", 2), ("s2ef_train_2M", 5), ("s2ef_val_ood_both", 3), ("s2ef_val_id", 1)):
        demo.write_oc20_split(tmp_path / "oc20", split, random_frames(count, count))
    source = get_source("oc20")
    assert source.splits(tmp_path) == ("train", "val_id", "val_ood_both")
    assert "train_2M; train_200K left out" in source.plan(tmp_path, "train").notes[0]
    assert len(read_split("oc20", tmp_path, "train").block) == 5
    assert len(read_split("oc20", tmp_path, "train_200K").block) == 2
    assert source.plan(tmp_path, "train_200K").split == "train_200K"
    assert source.plan(tmp_path, "val").split == "val_id"


@pytest.mark.parametrize("below", ["", "oc20", "downloads/oc20/unpacked"])
@pytest.mark.parametrize("doubled", [True, False])
def test_files_are_found_at_any_depth(tmp_path: Path, below: str, doubled: bool) -> None:
    folder = tmp_path / below / "s2ef_train_20M" / ("s2ef_train_20M" if doubled else "")
    write_pair(folder, 0, GOLDEN_FRAMES, GOLDEN_SYSTEMS)
    outcome = read_split("oc20", tmp_path, "train")
    assert outcome.ids[1] == "s2ef_train_20M/0.extxyz.xz#1:random7/frame0"


def test_files_come_in_numeric_order_and_parts_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oc20, "MAX_STRUCTURES_PER_PART", 7)
    for number in range(12):
        write_pair(tmp_path / "s2ef_train_200K", number, GOLDEN_FRAMES, GOLDEN_SYSTEMS)
    plan = get_source("oc20").plan(tmp_path, "train")
    assert [part.num_records for part in plan.parts] == [6, 6, 6, 6]
    names = [Path(name).name for part in plan.parts for name in part.files]
    assert names == [f"{number}.{kind}.xz" for number in range(12) for kind in ("extxyz", "txt")]


def test_folders_of_other_sets_are_not_taken(tmp_path: Path) -> None:
    for name in ("s2ef_md", "s2ef_rattled", "is2res_train_trajectories", "s2ef_test"):
        write_pair(tmp_path / name, 0, GOLDEN_FRAMES, GOLDEN_SYSTEMS)
    with pytest.raises(MissingFileError, match="jmp-data download oc20"):
        get_source("oc20").splits(tmp_path)


def test_two_copies_of_a_set_are_refused(tmp_path: Path) -> None:
    for place in ("a", "b"):
        write_pair(tmp_path / place / "s2ef_val_id", 0, GOLDEN_FRAMES, GOLDEN_SYSTEMS)
    with pytest.raises(RawFileError, match="point --raw at one"):
        get_source("oc20").splits(tmp_path)


def test_a_linked_folder_is_one_copy(tmp_path: Path) -> None:
    write_pair(tmp_path / "a" / "s2ef_val_id", 0, GOLDEN_FRAMES, GOLDEN_SYSTEMS)
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    assert len(read_split("oc20", tmp_path, "val_id").block) == 2


@pytest.mark.parametrize("missing", ["0.txt.xz", "0.extxyz.xz"])
def test_a_missing_partner_is_named_before_any_work(archive: Path, missing: str) -> None:
    (archive / missing).unlink()
    with pytest.raises(MissingFileError, match=rf"{missing} is missing"):
        get_source("oc20").plan(archive.parent.parent, "train")


def test_a_truncated_text_file_is_named_before_any_work(archive: Path) -> None:
    path = archive / "0.txt.xz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(RawFileError, match=r"0\.txt\.xz.*get the file again"):
        get_source("oc20").plan(archive.parent.parent, "train")


@pytest.mark.parametrize("split", ["test", "train_3M"])
def test_unknown_splits_are_refused(archive: Path, split: str) -> None:
    with pytest.raises(ManifestError, match="val_ood_both"):
        get_source("oc20").plan(archive.parent.parent, split)


def test_a_known_split_that_is_not_there(archive: Path) -> None:
    with pytest.raises(MissingFileError, match="s2ef_val_id"):
        get_source("oc20").plan(archive.parent.parent, "val")


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.3, 0.5, 0.77, 0.95, 0.999])
def test_a_truncated_xz_keeps_what_is_readable(archive: Path, keep: float) -> None:
    path = archive / "0.extxyz.xz"
    packed = path.read_bytes()
    path.write_bytes(packed[: int(keep * len(packed))])
    outcome = read_split("oc20", archive.parent.parent, "train")
    assert survivors(outcome) == list(range(len(outcome.block)))
    assert all(item.damaged_file for item in outcome.quarantined)
    assert {item.reason for item in outcome.quarantined} <= {"truncated_file", "malformed_frame"}
    assert all(item.message.startswith("s2ef_train_200K/s2ef_train_200K/0.extxyz.xz: ") for item in outcome.quarantined)
    assert keep < 0.9 or len(outcome.block) > 10


@given(st.data())
def test_a_text_cut_anywhere_never_gives_a_wrong_structure(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    raw = tmp_path_factory.mktemp("raw")
    demo.write_oc20_split(raw, "s2ef_train_200K", random_frames(1, 20))
    path = raw / "s2ef_train_200K" / "s2ef_train_200K" / "0.extxyz.xz"
    text = lzma.decompress(path.read_bytes())
    path.write_bytes(lzma.compress(text[: data.draw(st.integers(0, len(text) - 2))]))
    outcome = read_split("oc20", raw, "train")
    assert survivors(outcome) == list(range(len(outcome.block)))


def test_a_corrupt_xz_is_trusted_nowhere(archive: Path) -> None:
    path = archive / "0.extxyz.xz"
    packed = bytearray(path.read_bytes())
    packed[len(packed) // 2] ^= 0x55
    path.write_bytes(packed)
    outcome = read_split("oc20", archive.parent.parent, "train")
    assert len(outcome.block) == 0
    assert Counter(item.reason for item in outcome.quarantined) == {"corrupt_file": 20}


def _lose_header(lines: list[str]) -> None:
    lines[headers(lines)[7]] = "\x00 garbage"


def _lose_count(lines: list[str]) -> None:
    del lines[headers(lines)[7] - 1]


def _garble_count(lines: list[str]) -> None:
    lines[headers(lines)[7] - 1] = "7x"


def _announce_fewer(lines: list[str]) -> None:
    lines[headers(lines)[7] - 1] = "1"


def _lose_row(lines: list[str]) -> None:
    del lines[headers(lines)[7] + 2]


def _add_row(lines: list[str]) -> None:
    lines.insert(headers(lines)[7] + 2, lines[headers(lines)[7] + 2])


def _unknown_element(lines: list[str]) -> None:
    row = headers(lines)[7] + 2
    lines[row] = "Qq" + lines[row][2:]


def _garble_number(lines: list[str]) -> None:
    row = headers(lines)[7] + 2
    lines[row] = lines[row][:-4] + "12x4"


def _lose_column(lines: list[str]) -> None:
    row = headers(lines)[7] + 2
    lines[row] = lines[row][:-17]


def _lose_energy(lines: list[str]) -> None:
    row = headers(lines)[7]
    lines[row] = lines[row].replace(" energy=", " other=")


def _garble_lattice(lines: list[str]) -> None:
    row = headers(lines)[7]
    lines[row] = lines[row].replace('Lattice="', 'Lattice="1.0.0 ')


def _lose_force_column(lines: list[str]) -> None:
    row = headers(lines)[7]
    lines[row] = lines[row].replace("forces:R:3", "dipole:R:3")


@pytest.mark.parametrize(
    "change",
    [
        _lose_header,
        _lose_count,
        _garble_count,
        _announce_fewer,
        _lose_row,
        _add_row,
        _unknown_element,
        _garble_number,
        _lose_column,
        _lose_energy,
        _garble_lattice,
        _lose_force_column,
    ],
)
def test_a_malformed_frame_is_quarantined_alone(archive: Path, change: Callable[[list[str]], None]) -> None:
    outcome = damaged(archive, change)
    assert survivors(outcome) == [row for row in range(20) if row != 7]
    (item,) = outcome.quarantined
    assert item.reason == "malformed_frame"
    assert item.source_id.startswith("s2ef_train_200K/0.extxyz.xz#7:")
    assert "0.extxyz.xz: frame 7, line " in item.message
    assert item.record


def test_the_line_of_a_malformed_row_is_named(archive: Path) -> None:
    at = headers(lzma.decompress((archive / "0.extxyz.xz").read_bytes()).decode().split("\n"))[7] + 3
    assert f"frame 7, line {at}: cannot read 'Qq'" in damaged(archive, _unknown_element).quarantined[0].message


def test_frames_lost_in_the_middle_are_bracketed(archive: Path) -> None:
    def change(lines: list[str]) -> None:
        starts = headers(lines)
        del lines[starts[7] - 1 : starts[9] + 2]  # frames 7 and 8, and the head of frame 9

    outcome = damaged(archive, change)
    assert survivors(outcome) == [*range(6), *range(10, 20)]
    reasons = Counter(item.reason for item in outcome.quarantined)
    assert reasons == {"malformed_frame": 1, "pair_mismatch": 3}


def test_a_frame_removed_without_a_trace_makes_the_pair_untrusted(archive: Path) -> None:
    def change(lines: list[str]) -> None:
        starts = headers(lines)
        del lines[starts[7] - 1 : starts[8] - 1]

    outcome = damaged(archive, change)
    assert len(outcome.block) == 0
    assert "19 frames found for 20 lines of" in outcome.quarantined[0].message
    assert "0.txt.xz" in outcome.quarantined[0].message


def test_more_frames_than_lines_makes_the_pair_untrusted(archive: Path) -> None:
    path = archive / "0.txt.xz"
    lines = lzma.decompress(path.read_bytes()).decode().splitlines(keepends=True)
    path.write_bytes(lzma.compress("".join(lines[:-1]).encode()))
    outcome = read_split("oc20", archive.parent.parent, "train")
    assert Counter(item.reason for item in outcome.quarantined) == {"pair_mismatch": 19}


def test_a_malformed_line_of_the_text_file_costs_only_its_frame(archive: Path) -> None:
    path = archive / "0.txt.xz"
    lines = lzma.decompress(path.read_bytes()).decode().splitlines()
    lines[4] = "random12;frame3"
    path.write_bytes(lzma.compress("\n".join(lines).encode()))
    outcome = read_split("oc20", archive.parent.parent, "train")
    assert survivors(outcome) == [row for row in range(20) if row != 4]
    assert "0.txt.xz: line 5" in outcome.quarantined[0].message


def test_no_final_newline_is_no_damage(archive: Path) -> None:
    def change(lines: list[str]) -> None:
        assert lines.pop() == ""

    assert survivors(damaged(archive, change)) == list(range(20))


@given(
    lost=st.sets(st.integers(0, 29)),
    scars=st.sets(st.integers(0, 29)),
    num_lines=st.just(30),
)
def test_matched_frames_are_always_the_right_ones(lost: set[int], scars: set[int], num_lines: int) -> None:
    """Frames lost with a trace: the frame before (or the remains of the frame itself) is broken."""
    present = [frame for frame in range(num_lines) if frame not in lost]
    broken = {present.index(frame) for frame in scars if frame in present}
    for frame in lost:
        before = [other for other in present if other < frame]
        if not before:
            return  # a loss at the head leaves remains that are a frame of their own
        broken.add(len(before) - 1)
    lines = match_frames(len(present), num_lines, sorted(broken), cut=False)
    assert all(line in (-1, present[row]) for row, line in enumerate(lines.tolist()))
    if not lost:
        assert lines.tolist() == list(range(num_lines))
