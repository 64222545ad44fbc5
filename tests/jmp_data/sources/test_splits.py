from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jmp_data.errors import ManifestError, RawFileError
from jmp_data.sources.protocol import Part
from jmp_data.sources.splits import RowRange, choose_rows, cut, index_digest, plan_rows, shuffled, time_blocks


def test_the_shuffle_is_numpys_frozen_one() -> None:
    # RandomState(42).shuffle(arange(10)), as any NumPy since 2006 gives it.
    assert shuffled(10).tolist() == [8, 1, 5, 0, 7, 2, 9, 4, 3, 6]


def test_the_digest_is_of_64_bit_little_endian_integers() -> None:
    import hashlib
    import struct

    assert index_digest(np.array([3, 1])) == hashlib.sha256(struct.pack("<qq", 3, 1)).hexdigest()


@given(st.integers(0, 300), st.integers(0, 100), st.integers(0, 100))
def test_a_cut_loses_and_doubles_no_row(count: int, train: int, val: int) -> None:
    splits = cut(shuffled(count), {"train": train, "val": val, "test": -1})
    assert sorted(np.concatenate(list(splits.values())).tolist()) == list(range(count))
    assert len(splits["train"]) == min(train, count)


@given(st.integers(0, 400), st.integers(1, 50))
def test_blocks_of_time_are_apart(count: int, val: int) -> None:
    times = np.random.default_rng(0).permutation(count) * 7
    splits = time_blocks(times, {"train": 100, "val": val, "test": -1})
    spans = [times[splits[f"contiguous_{name}"]] for name in ("train", "val", "test")]
    assert len(spans[0]) <= 100
    assert len(spans[1]) <= val
    for earlier, later in itertools.pairwise(spans):
        if len(earlier) and len(later):
            assert earlier.max() < later.min()
    if count >= 100:
        assert min(map(len, spans)) > 0


def test_parts_hold_a_rule_and_no_rows() -> None:
    rows = shuffled(1000)[:700]
    plan = plan_rows("train", ["a.npz"], rows, rule="RandomState(42)", count=1000, rows_per_part=300)
    assert [part.num_records for part in plan.parts] == [300, 300, 100]
    assert all(len(repr(part.selection)) < 150 for part in plan.parts)
    again = [RowRange.of(part).take(rows, 1000, "a.npz") for part in plan.parts]
    assert np.array_equal(np.concatenate(again), rows)
    assert index_digest(rows) in plan.notes[0]


def test_another_list_than_planned_is_refused() -> None:
    (part,) = plan_rows("train", ["a.npz"], shuffled(10), rule="r", count=10, rows_per_part=99).parts
    assert isinstance(part, Part)
    with pytest.raises(RawFileError, match=r"a\.npz.*other rows"):
        RowRange.of(part).take(shuffled(11), 11, "a.npz")


def test_an_empty_or_unknown_split_is_said_so() -> None:
    splits = cut(shuffled(10), {"train": 10, "val": 5})
    with pytest.raises(ManifestError, match="val is empty"):
        choose_rows(splits, "val", "here")
    with pytest.raises(ManifestError, match="no split 'extra'"):
        choose_rows(splits, "extra", "here")
