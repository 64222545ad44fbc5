"""Frames of XYZ texts, sound and broken: every frame is found once, and none is read with another's rows."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jmp_data.errors import RawFileError
from jmp_data.own_data.extxyz import ExtXyz
from jmp_data.own_data.records import FileIndex, Record, Rows, Unreadable
from jmp_data.own_data.xyz_frames import walk_frames

READER = ExtXyz()


def frame(number: int, natoms: int, *, announced: int | None = None, header: str = "") -> str:
    rows = "".join(f"H {number}.0 {atom}.0 0.0\n" for atom in range(natoms))
    comment = header or f"Properties=species:S:1:pos:R:3 energy=-{number}.5"
    return f"{natoms if announced is None else announced}\n{comment}\n{rows}"


def everything(index: FileIndex) -> Rows:
    return Rows(0, 0, np.ones(index.count, bool))


def outcomes(path: Path) -> list[Record | Unreadable]:
    return list(READER.read(path, everything(READER.index(path))))


@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=12), data=st.data())
def test_any_rows_are_read_from_any_start(tmp_path_factory, sizes, data) -> None:
    path = tmp_path_factory.mktemp("xyz") / "some.xyz"
    path.write_text("".join(frame(number, natoms) for number, natoms in enumerate(sizes)))
    index = READER.index(path)
    assert index.count == len(sizes)
    rows = data.draw(st.lists(st.integers(0, len(sizes) - 1), min_size=1, unique=True).map(sorted))
    chosen = Rows.of(np.array(rows), index)
    chosen = Rows.from_selection(chosen.to_selection())
    found = list(READER.read(path, chosen))
    assert [record.row for record in found] == rows == chosen.numbers
    assert [record.natoms for record in found] == [sizes[row] for row in rows]
    assert [record.values["energy"] for record in found] == [-row - 0.5 for row in rows]


@pytest.mark.parametrize(
    ("damage", "problem", "lost"),
    [
        (frame(1, 3, announced=4), "4 atoms announced, fewer rows", 1),
        (frame(1, 3, announced=2), "2 atoms announced, more rows", 1),
        (frame(1, 3).replace("3\n", "three\n", 1), "expected the number of atoms, found 'three'", 1),
        (frame(1, 3).replace("3\n", "", 1), "expected the number of atoms, found 'Properties=", 1),
        (frame(1, 3).replace("1.0 1.0", "1.0 one"), "cannot be parsed", 1),
        (frame(1, 3).replace("H", "Qq", 1), "cannot be parsed", 1),
    ],
)
def test_a_damaged_frame_costs_only_itself(tmp_path: Path, damage: str, problem: str, lost: int) -> None:
    path = tmp_path / "some.xyz"
    path.write_text(frame(0, 2) + damage + frame(2, 1) + frame(3, 4))
    found = outcomes(path)
    energies = [record.values["energy"] for record in found if isinstance(record, Record)]
    assert energies[-2:] == [-2.5, -3.5]
    assert -1.5 not in energies
    bad = [outcome for outcome in found if isinstance(outcome, Unreadable)]
    assert len(bad) == lost
    assert problem in bad[0].message
    # All text of the file is in a record or kept as text.
    assert "H 1.0 0.0 0.0" in bad[0].text or "Qq 1.0" in bad[0].text


def test_rows_without_count_and_header_take_the_frame_before_with_them(tmp_path: Path) -> None:
    """The frame before has more rows than it says; which of them are its own, nobody can tell."""
    path = tmp_path / "some.xyz"
    path.write_text(frame(0, 2) + frame(1, 3).split("\n", 2)[2] + frame(2, 1))
    first, last = outcomes(path)
    assert isinstance(first, Unreadable)
    assert "H 1.0 2.0" in first.text
    assert last.values["energy"] == -2.5


def test_a_cut_file_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "some.xyz"
    path.write_text((frame(0, 2) + frame(1, 30))[:-200])
    good, bad = outcomes(path)
    assert isinstance(good, Record)
    assert isinstance(bad, Unreadable)
    assert bad.damaged_file
    assert "30 atoms announced, the file ends after" in bad.message


def test_a_file_cut_inside_a_row_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "some.xyz"
    path.write_text((frame(0, 2) + frame(1, 3))[:-6])
    good, bad = outcomes(path)
    assert isinstance(good, Record)
    assert isinstance(bad, Unreadable)
    assert bad.damaged_file


@given(st.integers(0, 10_000))
def test_a_text_cut_anywhere_gives_no_wrong_structure(tmp_path_factory, place: int) -> None:
    """Whole frames stay what they are; the one that is cut is set aside as damage, never read short."""
    texts = [
        f'3\nProperties=species:S:1:pos:R:3:forces:R:3 energy={-number - 10}.25 pbc="F F F"\n'
        + "".join(f"H {number}.125 {atom}.5 0.75 {number}.5 -{atom}.5 1.25\n" for atom in range(3))
        for number in range(4)
    ]
    whole = "".join(texts)
    place %= len(whole)
    path = tmp_path_factory.mktemp("cut") / "a.xyz"
    path.write_text(whole[:place])
    if not whole[:place].strip():
        return
    found = outcomes(path)
    complete = sum(place >= len("".join(texts[: number + 1])) for number in range(4))
    for number, record in enumerate(found[:complete]):
        assert isinstance(record, Record)
        assert record.values["energy"] == -number - 10.25
        np.testing.assert_array_equal(record.values["forces"][:, 0], number + 0.5)
    rest = found[complete:]
    left = place - len("".join(texts[:complete]))
    assert len(rest) == (left > 0)
    if complete < 4 and left == len(texts[complete]) - 1:  # only the line end is missing
        assert isinstance(rest[0], Record)
    else:
        assert all(isinstance(each, Unreadable) and each.damaged_file for each in rest)


def test_blank_lines_and_plain_xyz(tmp_path: Path) -> None:
    path = tmp_path / "plain.xyz"
    path.write_text("\n" + frame(0, 2, header="made by hand") + "\n\n" + frame(1, 2, header="17") + "\n")
    first, second = outcomes(path)
    assert first.natoms == second.natoms == 2
    assert first.pbc is None


def test_packed_text(tmp_path: Path) -> None:
    path = tmp_path / "some.xyz.gz"
    text = "".join(frame(number, 3) for number in range(5)).encode()
    path.write_bytes(gzip.compress(text))
    index = READER.index(path)
    assert [r.row for r in READER.read(path, Rows.of(np.array([2, 4]), index))] == [2, 4]
    path.write_bytes(gzip.compress(text)[:-30])
    with pytest.raises(RawFileError, match=r"some.xyz.gz: cannot be unpacked"):
        READER.index(path)


def test_a_file_that_shrank_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "some.xyz"
    path.write_text(frame(0, 2) + frame(1, 2))
    rows = everything(READER.index(path))
    path.write_text(frame(0, 2))
    with pytest.raises(RawFileError, match="ends before frame 1"):
        list(READER.read(path, rows))


def test_compositions_without_parsing(tmp_path: Path) -> None:
    path = tmp_path / "some.xyz"
    other = "2\nProperties=pos:R:3:species:S:1 energy=1\n0 0 0 He\n0 0 1 C\n"
    path.write_text(frame(0, 2) + other + frame(1, 3, announced=4) + frame(2, 1))
    assert list(READER.formulas(path)) == ["H2", "CHe", "", "H"]


def test_frames_know_their_offsets(tmp_path: Path) -> None:
    path = tmp_path / "some.xyz"
    texts = [frame(0, 2), frame(1, 1, announced=5), frame(2, 3)]
    path.write_text("".join(texts))
    offsets = [found.offset for found in walk_frames(path)]
    assert offsets == [0, len(texts[0]), len(texts[0]) + len(texts[1])]
    assert b"".join(line for found in walk_frames(path) for line in found.lines) == "".join(texts).encode()
