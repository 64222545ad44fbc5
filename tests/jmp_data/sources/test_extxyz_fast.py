"""The frame parser: every number equals Python's `float`, whichever of the two ways it takes."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jmp_data.sources.extxyz_fast import index_frames, parse_frames

HEADER = (
    'Lattice="9 0 0 0 9 0 0 0 9" Properties=species:S:1:pos:R:3:move_mask:L:1:tags:I:1:forces:R:3 '
    'energy={energy} free_energy=0 pbc="T T T"\n'
)


def fixed_point(digits: int, decimals: int) -> st.SearchStrategy[str]:
    limit = 10**digits
    return st.integers(-limit, limit).map(lambda n: f"{Decimal(n).scaleb(-decimals):.{decimals}f}")


numbers = st.one_of(
    fixed_point(8, 8),
    fixed_point(11, 8),
    fixed_point(18, 8),
    fixed_point(21, 3),
    st.integers(-(10**25), 10**25).map(str),
    st.floats(allow_nan=False, allow_infinity=False, width=32).map(repr),
    st.floats(-1e30, 1e30).map(repr),
    st.sampled_from(["0", "-0.0", ".5", "5.", "+1.5", "1e-5", "-2E+3", "9007199254740993", "0.30000000000000004"]),
)


@given(values=st.lists(numbers, min_size=12, max_size=12), energy=st.floats(-1e9, 1e9))
def test_numbers_are_those_of_python(values: list[str], energy: float) -> None:
    triples = [" ".join(values[at : at + 3]) for at in range(0, 12, 3)]
    rows = f"Pt {triples[0]} T 1 {triples[1]}\nH   {triples[2]}\tF 0  {triples[3]} \n"
    frames = parse_frames(index_frames(f"2\n{HEADER.format(energy=repr(energy))}{rows}".encode()), np.array([0]))
    with np.errstate(over="ignore"):
        expected = np.array([float(value) for value in values]).astype(np.float32).reshape(2, 2, 3)
    np.testing.assert_array_equal(frames.atoms.positions, expected[:, 0])
    np.testing.assert_array_equal(frames.atoms.forces, expected[:, 1])
    np.testing.assert_array_equal(np.signbit(frames.atoms.forces), np.signbit(expected[:, 1]))
    assert frames.energy.tolist() == [energy]


def test_every_element() -> None:
    from ase.data import chemical_symbols

    rows = "".join(f"{symbol} 0 0 0 T 0 0 0 0\n" for symbol in chemical_symbols[1:])
    frames = parse_frames(index_frames(f"118\n{HEADER.format(energy=1)}{rows}".encode()), np.array([0]))
    np.testing.assert_array_equal(frames.atoms.atomic_numbers, np.arange(1, 119))


@pytest.mark.parametrize("symbol", ["A", "cu", "CU", "Xx", "Cuu", "1", "X", "C`", "Å"])
def test_what_is_no_element_is_refused(symbol: str) -> None:
    text = f"1\n{HEADER.format(energy=1)}{symbol} 0 0 0 T 0 0 0 0\n".encode()
    frames = parse_frames(index_frames(text), np.array([0]))
    assert len(frames.frames) == 0
    assert "cannot read" in str(frames.failures[0])
    assert frames.failures[0].line == 3


def test_windows_line_ends() -> None:
    text = f"1\n{HEADER.format(energy=-2.5)}Cu 0.5 1.5 2.5 T 2 0 0 1\n".replace("\n", "\r\n").encode()
    frames = parse_frames(index_frames(text * 3), np.arange(3))
    assert frames.energy.tolist() == [-2.5] * 3
    assert frames.atoms.positions.tolist() == [[0.5, 1.5, 2.5]] * 3


@pytest.mark.parametrize(
    ("tag", "mask", "readable"),
    [("12", "T", True), ("300", "T", False), ("-1", "T", False), ("1", "2", False), ("1", "True", True)],
)
def test_tags_and_masks(tag: str, mask: str, readable: bool) -> None:
    text = f"1\n{HEADER.format(energy=1)}Cu 0 0 0 {mask} {tag} 0 0 0\n".encode()
    frames = parse_frames(index_frames(text), np.array([0]))
    assert len(frames.frames) == readable
    assert not readable or (frames.atoms.tags[0] == int(tag) and frames.atoms.move_mask[0])


@pytest.mark.parametrize("text", [b"", b"\n\n  \n"])
def test_nothing_holds_no_frame(text: bytes) -> None:
    assert len(index_frames(text)) == 0
    assert len(parse_frames(index_frames(text), np.zeros(0, np.int64)).energy) == 0


@given(st.binary(max_size=300))
def test_garbage_is_indexed_without_a_fault(garbage: bytes) -> None:
    frame = f"1\n{HEADER.format(energy=1)}Cu 0 0 0 T 0 0 0 0\n".encode()
    index = index_frames(frame + garbage + b"\n" + frame)
    parse_frames(index, np.array([f for f in range(len(index)) if f not in index.broken], np.int64))
    assert (index.end >= index.start).all()
    assert index.end[-1] == len(index.text)
