import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jmp_data.mixture import Mixture
from jmp_data.stream import epoch_order
from jmp_data.stream.epoch_order import EpochOrder
from jmp_data.stream.reading import BlocksAhead
from tests.jmp_data.stream.memory_dataset import make_dataset
from tests.jmp_data.stream.mixtures import mixtures


class RecordingFetcher:
    """Keeps account of which blocks were asked for; hands out names instead of blocks."""

    def __init__(self):
        self.started = []

    def start(self, dataset, block):
        self.started.append((dataset, block))
        return lambda: (dataset, block)


@pytest.fixture(autouse=True)
def small_chapters(monkeypatch):
    monkeypatch.setattr(epoch_order, "CHAPTER_SAMPLES", 17)


@given(mixtures(), st.integers(1, 3), st.integers(0, 6), st.data())
@settings(max_examples=60, deadline=None)
def test_blocks_are_there_when_needed_and_not_many_more(mixture, window_blocks, prefetch, data):
    order = EpochOrder(mixture, seed=0, epoch=0, window_blocks=window_blocks)
    first = data.draw(st.integers(0, order.num_chapters - 1))
    fetcher = RecordingFetcher()
    ahead = BlocksAhead(order, order.chapter_start(first), fetcher, prefetch)
    for chapter in range(first, order.num_chapters):
        ahead.move_to(chapter, order.consumed(chapter))
        samples = order.samples(order.chapter_start(chapter), order.chapter_start(chapter + 1))
        for window, visit in zip(samples.window.tolist(), samples.visit.tolist(), strict=True):
            held = samples.windows[window]
            assert ahead.block(held, visit) == (held.dataset, int(held.blocks[visit]))
        announced = order.schedule(order.chapter_start(chapter))
        in_use = sum(len(set(window.blocks.tolist())) for need, window in announced if need <= chapter)
        assert ahead.num_blocks <= in_use + prefetch


def test_one_request_per_block_and_window():
    mixture = Mixture.from_datasets({"a": make_dataset("a", (5,) * 9)}, repeats={"a": 2.4})
    order, fetcher = EpochOrder(mixture, seed=0, epoch=0, window_blocks=4), RecordingFetcher()
    ahead = BlocksAhead(order, 0, fetcher, 2)
    for chapter in range(order.num_chapters):
        ahead.move_to(chapter, order.consumed(chapter))
    windows = list(order.schedule(0))
    assert len(fetcher.started) == sum(len(set(window.blocks.tolist())) for _, window in windows)
