import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jmp_data.mixture import Mixture
from jmp_data.stream import epoch_order
from jmp_data.stream.epoch_order import EpochOrder
from tests.jmp_data.stream.memory_dataset import IndexDataset, make_dataset
from tests.jmp_data.stream.mixtures import mixtures, owed_visits


@pytest.fixture(autouse=True)
def small_chapters(monkeypatch):
    monkeypatch.setattr(epoch_order, "CHAPTER_SAMPLES", 37)


def keys(samples):
    return np.stack([samples.dataset, samples.index], axis=1)


@given(mixtures(), st.integers(0, 3), st.integers(0, 3), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_an_epoch_visits_every_structure_as_often_as_the_rule_says(mixture, seed, epoch, window_blocks):
    order = EpochOrder(mixture, seed=seed, epoch=epoch, window_blocks=window_blocks)
    samples = order.samples(0, order.size)
    assert order.size == mixture.epoch_size == len(samples)
    for number, member in enumerate(mixture):
        own = samples.dataset == number
        visits = np.bincount(samples.index[own], minlength=len(member.dataset))
        assert np.array_equal(visits, owed_visits(member))
        assert np.array_equal(member.dataset.natoms[samples.index[own]], samples.natoms[own])


@given(mixtures(), st.data())
@settings(max_examples=40, deadline=None)
def test_any_range_is_the_same_wherever_reading_begins(mixture, data):
    make = lambda: EpochOrder(mixture, seed=1, epoch=2, window_blocks=2)  # noqa: E731
    whole = keys(make().samples(0, mixture.epoch_size))
    order = make()
    for _ in range(4):
        start = data.draw(st.integers(0, order.size - 1))
        stop = data.draw(st.integers(start + 1, order.size))
        assert np.array_equal(keys(order.samples(start, stop)), whole[start:stop])


@given(mixtures(plain=True))
@settings(max_examples=30, deadline=None)
def test_every_stretch_holds_nearly_the_mixture(mixture):
    order = EpochOrder(mixture, seed=0, epoch=0, window_blocks=2)
    dataset = order.samples(0, order.size).dataset
    for number, member in enumerate(mixture):
        so_far = np.cumsum(dataset == number)
        expected = member.samples * np.arange(1, order.size + 1) / order.size
        assert np.abs(so_far - expected).max() <= 2 + len(mixture)


@given(mixtures(), st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_without_shuffling_data_sets_follow_one_another_in_stored_order(mixture, window_blocks):
    order = EpochOrder(mixture, seed=5, epoch=9, window_blocks=window_blocks, shuffle=False)
    samples = order.samples(0, order.size)
    assert order.size == mixture.num_structures
    expected = [(n, i) for n, member in enumerate(mixture) for i in np.flatnonzero(owed_visits(member) > -1)]
    kept = {
        (n, b + r)
        for n, member in enumerate(mixture)
        for block, b in enumerate(member.dataset.block_ptr[:-1])
        for r in member.selection.rows(block)
    }
    assert [tuple(key) for key in keys(samples).tolist()] == [key for key in expected if key in kept]


def test_seeds_and_epochs_give_different_orders():
    mixture = Mixture.single(make_dataset("a", (30, 30, 30)))
    orders = [
        keys(EpochOrder(mixture, seed=seed, epoch=epoch, window_blocks=2).samples(0, 90)).tolist()
        for seed, epoch in [(0, 0), (0, 1), (1, 0)]
    ]
    assert orders[0] != orders[1] != orders[2] != orders[0]


@given(mixtures(), st.integers(1, 3), st.data())
@settings(max_examples=30, deadline=None)
def test_schedule_announces_every_window_before_its_chapter(mixture, window_blocks, data):
    order = EpochOrder(mixture, seed=0, epoch=0, window_blocks=window_blocks)
    position = data.draw(st.integers(0, order.size - 1))
    announced = list(order.schedule(position))
    assert [chapter for chapter, _ in announced] == sorted(chapter for chapter, _ in announced)
    first_need = {(window.dataset, window.start): chapter for chapter, window in announced}
    for chapter in range(order.chapter_of(position), order.num_chapters):
        for window in order.samples(order.chapter_start(chapter), order.chapter_start(chapter + 1)).windows:
            assert first_need[window.dataset, window.start] <= chapter
            assert window.start < order.consumed(chapter + 1)[window.dataset]
            assert window.stop > order.consumed(chapter)[window.dataset]


def test_copies_of_a_data_set_do_not_meet_within_a_window():
    """Seven visits of each structure: between two visits lies nearly the whole data set, not a few samples."""
    mixture = Mixture.from_datasets({"a": make_dataset("a", (50,) * 8)}, repeats={"a": 7.0})
    index = EpochOrder(mixture, seed=0, epoch=0, window_blocks=2).samples(0, 2800).index
    assert all(len(set(index[c * 400 : (c + 1) * 400])) == 400 for c in range(7))


def real_sizes():
    """The four pre-training sets at their published sizes, as indexes; blocks as the builder makes them."""
    sets = {}
    for name, size, block, atoms in [
        ("oc20", 100_000_000, 450, 73),
        ("oc22", 8_000_000, 400, 80),
        ("ani1x", 2_000_000, 2048, 15),
        ("transition1x", 10_000_000, 2048, 14),
    ]:
        blocks = np.full(-(-size // block), block)
        blocks[-1] = size - block * (len(blocks) - 1)
        sets[name] = IndexDataset(name, blocks, np.broadcast_to(np.int32(atoms), size))
    return sets


def test_120_million_structures_start_in_a_moment(monkeypatch):
    monkeypatch.undo()
    sets = real_sizes()
    tracemalloc.start()
    began = time.perf_counter()
    mixture = Mixture.from_datasets(sets, temperature=2.0)
    order = EpochOrder(mixture, seed=0, epoch=0, window_blocks=32)
    order.samples(174_000_000, 174_000_032)
    elapsed, (_, peak) = time.perf_counter() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert round(mixture.epoch_size / 1e6, 2) == 174.05
    assert elapsed < 2.0, "starting (and resuming at the far end of) an epoch"
    assert peak < 100e6, "bytes"
    began = time.perf_counter()
    order.samples(50_000_000, 50_300_000)
    assert (time.perf_counter() - began) / 300_000 < 10e-6, "planning a structure"
