import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jmp_data.errors import ManifestError
from jmp_data.mixture.selection import RowSelection


def kept_by_brute_force(ptr, include, exclude, first):
    rows = range(ptr[-1]) if include is None else include
    rows = [row for row in rows if exclude is None or row not in set(exclude)]
    return rows if first is None else rows[:first]


@st.composite
def selections(draw):
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=8))
    ptr = np.concatenate([[0], np.cumsum(sizes)])
    lists = st.none() | st.sets(st.integers(0, int(ptr[-1]) - 1)).map(lambda rows: np.array(sorted(rows), np.int64))
    return ptr, draw(lists), draw(lists), draw(st.none() | st.integers(1, int(ptr[-1]) + 3))


def all_rows(selection):
    return np.concatenate(
        [selection.rows(block) + selection.block_ptr[block] for block in range(len(selection.block_ptr) - 1)]
    )


@given(selections())
def test_keeps_what_a_plain_loop_keeps(case):
    ptr, include, exclude, first = case
    selection = RowSelection(ptr, include, exclude, first)
    expected = kept_by_brute_force(ptr, include, exclude, first)
    assert all_rows(selection).tolist() == list(expected)
    assert selection.size == len(expected)
    assert selection.kept.tolist() == [len(selection.rows(block)) for block in range(len(ptr) - 1)]


@given(selections(), st.floats(0.01, 1.0), st.integers(0, 5))
def test_fraction_is_exact_even_and_seeded(case, fraction, seed):
    ptr, include, exclude, first = case
    whole = RowSelection(ptr, include, exclude, first)
    part = RowSelection(ptr, include, exclude, first, fraction=fraction, seed=seed)
    rows = all_rows(part)
    assert set(rows) <= set(all_rows(whole))
    assert part.size == len(rows) == int(whole.size * fraction + 1e-9)
    assert np.all(np.abs(part.kept - whole.kept * fraction) <= 1), "spread over the blocks"
    assert np.array_equal(rows, all_rows(RowSelection(ptr, include, exclude, first, fraction, seed)))


def test_seeds_choose_differently():
    ptr = np.array([0, 200])
    chosen = [set(RowSelection(ptr, fraction=0.5, seed=seed).rows(0)) for seed in (0, 1)]
    assert chosen[0] != chosen[1]


def test_fingerprint_tells_selections_apart():
    ptr = np.array([0, 10])
    rows = np.array([1, 2])
    variants = [
        RowSelection(ptr),
        RowSelection(ptr, include=rows),
        RowSelection(ptr, exclude=rows),
        RowSelection(ptr, first=2),
        RowSelection(ptr, fraction=0.2),
        RowSelection(ptr, fraction=0.2, seed=1),
    ]
    assert len({variant.fingerprint for variant in variants}) == len(variants)
    assert variants[0].fingerprint == "all"


@pytest.mark.parametrize("settings", [{"first": 0}, {"fraction": 0.0}, {"fraction": 1.1}])
def test_empty_subsets_are_refused(settings):
    with pytest.raises(ManifestError):
        RowSelection(np.array([0, 10]), **settings)
