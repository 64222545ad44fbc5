from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jmp_data.mixture.selection import RowSelection
from jmp_data.stream.dataset_order import DatasetOrder


@st.composite
def orders(draw):
    sizes = draw(st.lists(st.integers(1, 15), min_size=1, max_size=10))
    selection = RowSelection(np.concatenate([[0], np.cumsum(sizes)]))
    samples = draw(st.integers(1, 4 * selection.size))
    window_blocks, shuffle = draw(st.integers(1, 12)), draw(st.booleans())
    key = draw(st.integers(0, 99))
    return DatasetOrder(0, selection, samples, key=key, window_blocks=window_blocks, shuffle=shuffle), window_blocks


@given(orders())
@settings(max_examples=200, deadline=None)
def test_windows_tile_the_epoch_sequence(case):
    order, window_blocks = case
    windows = list(order.windows(0))
    assert windows[0].start == 0
    assert windows[-1].stop == order.samples
    for before, after in pairwise(windows):
        assert before.stop == after.start
    for window in windows:
        assert 1 <= len(window.blocks) <= window_blocks
        visits, rows = window.samples
        assert len(visits) == window.stop - window.start
        assert np.array_equal(np.bincount(visits, minlength=len(window.blocks)), window.counts)
        for visit, count in enumerate(window.counts):
            assert sorted(rows[visits == visit]) == list(range(count))


@given(orders(), st.data())
@settings(max_examples=100, deadline=None)
def test_any_sample_finds_its_window(case, data):
    order, _ = case
    starts = [window.start for window in order.windows(0)]
    for _ in range(5):
        sample = data.draw(st.integers(0, order.samples - 1))
        assert order.window(sample).start == max(start for start in starts if start <= sample)
        assert next(order.windows(sample)).start == order.window(sample).start


def test_odd_visits_are_spread_over_the_copies():
    """100 blocks, 3.5 copies: the half copy's blocks are dealt to the three whole ones."""
    selection = RowSelection(np.arange(101) * 10)
    order = DatasetOrder(0, selection, 3500, key=1, window_blocks=8, shuffle=True)
    blocks = np.concatenate([np.repeat(window.blocks, window.counts) for window in order.windows(0)])
    for third in range(3):
        part = blocks[third * 3500 // 3 : (third + 1) * 3500 // 3]
        assert np.isin(np.arange(100), part).mean() > 0.95, "every third of the epoch goes once through all blocks"


def test_windows_draw_from_everywhere():
    selection = RowSelection(np.arange(1001) * 10)
    order = DatasetOrder(0, selection, 10_000, key=1, window_blocks=50, shuffle=True)
    centres = [window.blocks.mean() for window in order.windows(0)]
    assert np.abs(np.array(centres) - 500).max() < 150
