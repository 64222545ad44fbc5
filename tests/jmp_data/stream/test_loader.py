import itertools
import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jmp_data.errors import ManifestError, ShardError, StateMismatchError
from jmp_data.mixture import Mixture, Subset
from jmp_data.schema import Block, Field, Schema
from jmp_data.stream import StreamLoader, epoch_order, loader
from jmp_data.stream.budget import ROOM
from tests.jmp_data.stream.memory_dataset import make_dataset
from tests.jmp_data.stream.mixtures import identities, mixtures, owed_visits


@pytest.fixture(autouse=True)
def small_sections(monkeypatch):
    """Chapters and sections of a few batches, so that small epochs cross many of their borders."""
    monkeypatch.setattr(epoch_order, "CHAPTER_SAMPLES", 40)
    monkeypatch.setattr(loader, "SECTION_SAMPLES", 40)


limits = st.one_of(
    st.builds(lambda n: {"batch_size": n}, st.integers(1, 6)),
    st.builds(lambda n: {"max_atoms": n}, st.integers(10, 80)),
    st.builds(lambda n, b: {"max_edges": 30 * n, "batch_size": b}, st.integers(10, 80), st.integers(2, 8)),
)


def make(mixture, limit, rank=0, world_size=1, **settings):
    return StreamLoader(mixture, rank=rank, world_size=world_size, window_blocks=2, **limit, **settings)


def global_batches(mixture, limit, world_size, **settings):
    """What all ranks together get in each step, sorted; checks that no rank stops early or goes without."""
    ranks = [
        [identities(batch) for batch in make(mixture, limit, rank, world_size, **settings)]
        for rank in range(world_size)
    ]
    assert all(structures for rank in ranks for structures in rank)
    return [sorted(itertools.chain(*parts)) for parts in zip(*ranks, strict=True)]


@given(mixtures(max_blocks=4), limits, st.sampled_from([1, 2, 3, 5, 8, 17, 64]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_every_structure_is_delivered_as_often_as_the_rule_says(mixture, limit, world_size, shuffle):
    size = mixture.epoch_size if shuffle else mixture.num_structures
    if size < world_size:
        with pytest.raises(ManifestError, match="cannot be shared"):
            make(mixture, limit, 0, world_size, shuffle=shuffle)
        return
    steps = global_batches(mixture, limit, world_size, shuffle=shuffle)
    assert len(steps) == len(make(mixture, limit, 0, world_size, shuffle=shuffle))
    delivered = list(itertools.chain(*steps))
    for number, member in enumerate(mixture):
        visits = np.bincount([s for d, s in delivered if d == number], minlength=len(member.dataset))
        owed = owed_visits(member)
        assert np.array_equal(
            visits, owed if shuffle else np.minimum(owed, 1) if member.samples >= member.size else visits
        )
    assert len(delivered) == size


@given(mixtures(max_blocks=4, plain=True), st.sampled_from([4, 12, 24, 64]), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_global_batches_are_the_same_for_every_number_of_ranks(mixture, global_batch, seed):
    worlds = [w for w in (1, 2, 3, 4, 6, 8, 12, 32, 64) if global_batch % w == 0 and 2 * w <= global_batch]
    worlds = [w for w in worlds if w <= mixture.epoch_size]
    plans = [global_batches(mixture, {"batch_size": global_batch // w}, w, seed=seed) for w in worlds]
    assert all(plan == plans[0] for plan in plans)


@given(mixtures(max_blocks=4, plain=True), st.sampled_from([240, 360, 720]))
@settings(max_examples=30, deadline=None)
def test_budgeted_global_batches_are_the_same_for_every_number_of_ranks(mixture, budget):
    largest = max(int(member.dataset.natoms.max()) for member in mixture)
    worlds = [w for w in (1, 2, 3, 4, 5, 6, 8, 12) if budget % w == 0 and budget // w >= ROOM * largest]
    worlds = [w for w in worlds if w <= mixture.epoch_size]
    plans = [global_batches(mixture, {"max_atoms": budget // w}, w) for w in worlds]
    assert all(plan == plans[0] for plan in plans)


@given(mixtures(max_blocks=4), limits, st.sampled_from([1, 2, 3]), st.data())
@settings(max_examples=60, deadline=None)
def test_resume_after_any_batch_equals_the_uninterrupted_run(mixture, limit, world_size, data):
    if mixture.epoch_size < world_size:
        return
    rank, epoch = data.draw(st.integers(0, world_size - 1)), data.draw(st.integers(0, 2))
    whole = make(mixture, limit, rank, world_size, seed=7)
    whole.set_epoch(epoch)
    expected = list(whole)
    stop = data.draw(st.integers(0, len(expected)))
    stopped = make(mixture, limit, rank, world_size, seed=7)
    stopped.set_epoch(epoch)
    list(itertools.islice(stopped, stop))
    state = json.loads(json.dumps(stopped.state_dict()))
    resumed = make(mixture, limit, rank, world_size, seed=7, prefetch_blocks=data.draw(st.integers(0, 5)))
    resumed.load_state_dict(state)
    assert resumed.epoch == epoch
    resumed.set_epoch(epoch)  # what a trainer does at the start of each epoch; must not forget the position
    rest = list(resumed)
    assert len(rest) == len(expected) - stop
    for batch, other in zip(rest, expected[stop:], strict=True):
        assert all(torch.equal(batch[key], other[key]) for key in other.to_dict())
    assert resumed.epoch == epoch + 1


@given(mixtures(max_blocks=4, plain=True), st.booleans(), st.data())
@settings(max_examples=40, deadline=None)
def test_resume_on_another_number_of_ranks(mixture, budgeted, data):
    largest = max(int(member.dataset.natoms.max()) for member in mixture)
    structures, worlds = data.draw(st.sampled_from([(12, [1, 2, 3, 4, 6]), (128, [1, 2, 8, 32, 64])]))
    total = 5 * structures * largest if budgeted else structures
    name = "max_atoms" if budgeted else "batch_size"
    before, after = (data.draw(st.sampled_from(worlds)) for _ in range(2))
    if mixture.epoch_size < max(before, after):
        return
    expected = global_batches(mixture, {name: total}, 1)
    first = make(mixture, {name: total // before}, 0, before)
    stop = data.draw(st.integers(0, len(expected)))
    list(itertools.islice(first, stop))
    state = first.state_dict()
    ranks = []
    for rank in range(after):
        resumed = make(mixture, {name: total // after}, rank, after)
        resumed.load_state_dict(state)
        ranks.append([identities(batch) for batch in resumed])
    assert [sorted(itertools.chain(*parts)) for parts in zip(*ranks, strict=True)] == expected[stop:]


def two(seed=0):
    return {"a": make_dataset("a", (9, 14, 5), seed=seed), "b": make_dataset("b", (40, 30), seed=1)}


def order_of(stream):
    return [identities(batch) for batch in stream]


def test_epochs_follow_one_another_and_can_be_chosen():
    mixture = Mixture.from_datasets(two())
    stream = StreamLoader(mixture, batch_size=8)
    first, second = order_of(stream), order_of(stream)
    assert stream.epoch == 2
    assert first != second
    stream.set_epoch(0)
    assert order_of(stream) == first
    again = StreamLoader(mixture, batch_size=8)
    again.set_epoch(1)
    assert order_of(again) == second


def test_breaking_out_and_iterating_again_starts_the_epoch_anew():
    stream = StreamLoader(Mixture.from_datasets(two()), batch_size=8)
    peek = identities(next(iter(stream)))
    assert order_of(stream)[0] == peek
    stream.set_epoch(0)
    list(itertools.islice(stream, 3))
    assert len(list(stream)) == len(stream)


def test_state_counts_batches_as_they_are_delivered():
    stream = StreamLoader(Mixture.from_datasets(two()), batch_size=8)
    for number, _ in enumerate(stream, start=1):
        state = stream.state_dict()
        assert (state["step"], state["epoch"]) == (number, 0)
    assert stream.state_dict() == {**state, "epoch": 1, "step": 0, "position": 0}


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_state_taken_at_the_end_of_an_epoch_yields_its_empty_rest_first(shuffle):
    stream = StreamLoader(Mixture.from_datasets(two()), batch_size=8, shuffle=shuffle)
    for _ in stream:
        state = stream.state_dict()
    resumed = StreamLoader(Mixture.from_datasets(two()), batch_size=8, shuffle=shuffle)
    resumed.load_state_dict(state)
    assert list(resumed) == []
    assert resumed.epoch == 1


def test_a_state_is_a_few_hundred_bytes():
    sets = {f"data_set_{i}": make_dataset(f"s{i}", (10,), seed=i) for i in range(4)}
    state = StreamLoader(Mixture.from_datasets(sets)).state_dict()
    assert len(json.dumps(state)) < 500


CHANGES = {
    "seed": (lambda: StreamLoader(Mixture.from_datasets(two()), 8, seed=1), "seed was 0, now 1"),
    "batch size": (lambda: StreamLoader(Mixture.from_datasets(two()), 9), "global batch size was 8, now 9"),
    "world size": (
        lambda: StreamLoader(Mixture.from_datasets(two()), 8, world_size=2),
        "global batch size was 8, now 16",
    ),
    "budget": (
        lambda: StreamLoader(Mixture.from_datasets(two()), max_atoms=99),
        "global max atoms was absent, now 99; global batch size was 8, now absent",
    ),
    "window": (lambda: StreamLoader(Mixture.from_datasets(two()), 8, window_blocks=3), "window blocks was 64, now 3"),
    "order": (lambda: StreamLoader(Mixture.from_datasets(two()), 8, shuffle=False), "shuffle was True, now False"),
    "content": (lambda: StreamLoader(Mixture.from_datasets(two(seed=9)), 8), "data set a was 45 samples with digest"),
    "temperature": (
        lambda: StreamLoader(Mixture.from_datasets(two(), temperature=1.0), 8),
        "data set a was 45 samples .*, now 28 samples",
    ),
    "subset": (
        lambda: StreamLoader(Mixture.from_datasets(two(), subsets={"b": Subset(first=69)}), 8),
        "data set b was 70 samples",
    ),
    "data sets": (
        lambda: StreamLoader(Mixture.from_datasets({"a": two()["a"]}), 8),
        "data set b was 70 samples with digest .*, now absent",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_state_of_another_stream_is_refused_with_what_differs(change):
    state = StreamLoader(Mixture.from_datasets(two()), 8).state_dict()
    other, words = CHANGES[change]
    with pytest.raises(StateMismatchError, match=words):
        other().load_state_dict(state)


def test_a_state_of_another_version_or_kind_is_refused():
    stream = StreamLoader(Mixture.from_datasets(two()), 8)
    for state in ({}, {**stream.state_dict(), "version": 2}):
        with pytest.raises(StateMismatchError, match="version"):
            stream.load_state_dict(state)
    with pytest.raises(StateMismatchError, match="not the start of a step"):
        stream.load_state_dict({**stream.state_dict(), "step": 1, "position": 7})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"max_atoms": 0}, "max_atoms is 0"),
        ({"world_size": 2, "rank": 2}, "rank 2"),
        ({"num_workers": -1}, "num_workers"),
        ({"targets": ["bandgap"]}, "no data set of the mixture has a target bandgap"),
        ({"graphs": {"a": 12.0}}, "graph settings"),
        ({"world_size": 1000}, "cannot be shared by 1000 ranks"),
        ({"window_blocks": 0}, "window_blocks 0"),
        ({"prefetch_blocks": -1}, "prefetch_blocks -1"),
        ({"graphs": "auto", "graphs_on": "gpu"}, "graphs_on is 'gpu'"),
    ],
)
def test_impossible_settings_are_refused_at_once(settings, words):
    with pytest.raises(ManifestError, match=words):
        StreamLoader(Mixture.from_datasets(two()), **settings)


def test_disagreeing_targets_are_refused():
    scalar, vector = (Schema((Field("gap", "structure", "float32", shape),)) for shape in [(), (3,)])
    mixture = Mixture.from_datasets({"a": make_dataset("a", schema=scalar), "b": make_dataset("b", schema=vector)})
    with pytest.raises(ManifestError, match="target gap of data set b"):
        StreamLoader(mixture)


def test_a_single_data_set_needs_no_mixture():
    dataset = make_dataset("a", (9, 14, 5))
    delivered = itertools.chain(*order_of(StreamLoader(dataset, batch_size=4)))
    assert sorted(delivered) == [(0, i) for i in range(28)]


def test_an_index_that_contradicts_the_blocks_is_an_error_not_garbage():
    dataset = make_dataset("a", (9, 14, 5))
    dataset.natoms = dataset.natoms[::-1].copy()
    with pytest.raises(ShardError, match="structure sizes differ"):
        list(StreamLoader(dataset))


def test_a_damaged_block_is_told_where_its_batch_is_asked_for():
    dataset = make_dataset("a", (9, 14, 5))

    def read_block(index, columns=None) -> Block:
        raise ShardError(f"shard 0, array positions, block {index}: checksum does not match")

    dataset.read_block = read_block
    with pytest.raises(ShardError, match="array positions, block"):
        next(iter(StreamLoader(dataset)))


def test_blocks_are_read_once_per_visit_and_memory_is_bounded():
    dataset = make_dataset("a", (10,) * 60)
    stream = StreamLoader(dataset, batch_size=5, window_blocks=4, prefetch_blocks=3)
    most = 0
    for number, _ in enumerate(stream, start=1):
        needed = -(-number * 5 // 10)
        most = max(most, int(dataset.reads.sum()) - needed)
    assert (dataset.reads == 1).all()
    assert most <= 4 + 4 + 3 + 4, "windows in use, read ahead, and the section in hand"


def test_resume_reads_only_what_it_needs():
    dataset = make_dataset("a", (10,) * 60)
    stream = StreamLoader(dataset, batch_size=5, window_blocks=2, prefetch_blocks=2)
    list(itertools.islice(stream, 110))
    state = stream.state_dict()
    dataset.reads[:] = 0
    stream.load_state_dict(state)
    next(iter(stream))
    assert dataset.reads.sum() <= 10


def test_a_loader_can_be_pickled():
    stream = pickle.loads(pickle.dumps(StreamLoader(Mixture.from_datasets(two()), batch_size=8)))
    assert len(order_of(stream)) == len(stream)


def test_planning_needs_no_torch():
    import subprocess
    import sys

    code = (
        "import sys, jmp_data.mixture, jmp_data.stream, jmp_data.stream.epoch_order, jmp_data.stream.budget, "
        "jmp_data.stream.worker; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
