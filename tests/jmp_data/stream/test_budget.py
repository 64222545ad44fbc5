import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jmp_data.mixture import Mixture
from jmp_data.stream.budget import ROOM, BudgetCuts, Weigher
from jmp_data.stream.epoch_order import EpochOrder
from tests.jmp_data.stream.memory_dataset import IndexDataset, make_dataset
from tests.jmp_data.stream.test_balance import oc20_sizes


def plan(mixture, world_size, *, max_atoms=None, max_edges=None, batch_size=None, start=0):
    order = EpochOrder(mixture, seed=0, epoch=0, window_blocks=3)
    weigh = Weigher(batch_size, max_atoms, max_edges, neighbors=30)
    cuts = BudgetCuts(order, weigh.limits, weigh, world_size)
    stops, position = [start], start
    while position < order.size:
        stops += cuts.stops(len(stops) - 1, position, 50).tolist()
        position = stops[-1]
    samples = order.samples(start, order.size)
    bounds = np.array(stops) - start
    return order, cuts, stops, samples, cuts.assign(samples, bounds)


def rank_loads(samples, stops, ranks, world_size):
    """(num_steps, world_size) atoms and structures."""
    step = np.repeat(np.arange(len(stops) - 1), np.diff(stops))
    atoms, counts = np.zeros((len(stops) - 1, world_size), int), np.zeros((len(stops) - 1, world_size), int)
    np.add.at(atoms, (step, ranks), samples.natoms)
    np.add.at(counts, (step, ranks), 1)
    return atoms, counts


@st.composite
def datasets(draw):
    seed = draw(st.integers(0, 1000))
    sizes = draw(st.lists(st.integers(20, 60), min_size=2, max_size=6))
    return make_dataset("a", sizes, seed=seed, atoms=(draw(st.integers(1, 5)), draw(st.integers(5, 40))))


@given(datasets(), st.sampled_from([1, 2, 3, 4, 7, 8, 16, 64]), st.integers(1, 300))
@settings(max_examples=120, deadline=None)
def test_no_rank_gets_more_than_its_budget_and_none_is_idle(dataset, world_size, max_atoms):
    mixture = Mixture.single(dataset)
    if len(dataset) < world_size:
        return
    _, cuts, stops, samples, ranks = plan(mixture, world_size, max_atoms=max_atoms)
    atoms, counts = rank_loads(samples, stops, ranks, world_size)
    assert counts.min() >= 1
    assert counts.sum() == len(dataset)
    assert cuts.num_steps == len(stops) - 1
    over = (atoms > max_atoms) & (counts > 1)
    # Only the last step may have to put more on a rank than it can hold.
    assert not over[:-1].any()
    if over[-1].any():
        assert len(dataset) - stops[-2] < 2 * world_size
        assert dataset.natoms.max() * 2 > max_atoms


@given(datasets(), st.sampled_from([240, 480, 960, 1440]), st.data())
@settings(max_examples=60, deadline=None)
def test_steps_depend_on_the_global_budget_alone(dataset, budget, data):
    """For every number of ranks whose own budget holds ROOM of the largest structures."""
    mixture = Mixture.single(dataset)
    largest = int(dataset.natoms.max())
    worlds = [w for w in range(1, 65) if budget % w == 0 and budget // w >= ROOM * largest and w <= len(dataset)]
    chosen = data.draw(st.lists(st.sampled_from(worlds or [1]), min_size=2, max_size=4))
    plans = {world: plan(mixture, world, max_atoms=budget // world)[2] for world in chosen}
    assert len({tuple(stops) for stops in plans.values()}) == 1


@given(datasets(), st.sampled_from([1, 2, 5]), st.integers(40, 200), st.data())
@settings(max_examples=40, deadline=None)
def test_planning_can_begin_at_any_step(dataset, world_size, max_atoms, data):
    mixture = Mixture.single(dataset)
    stops = plan(mixture, world_size, max_atoms=max_atoms)[2]
    number = data.draw(st.integers(0, len(stops) - 2))
    assert plan(mixture, world_size, max_atoms=max_atoms, start=stops[number])[2] == stops[number:]


@given(datasets(), st.sampled_from([1, 2, 4]), st.integers(50, 200), st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_several_limits_hold_together(dataset, world_size, max_atoms, batch_size):
    _, _, stops, samples, ranks = plan(
        Mixture.single(dataset), world_size, max_atoms=max_atoms, max_edges=20 * max_atoms, batch_size=batch_size
    )
    atoms, counts = rank_loads(samples, stops, ranks, world_size)
    alone = counts == 1
    inner = slice(None, -1)
    assert ((atoms <= max_atoms) | alone)[inner].all()
    assert ((30 * atoms <= 20 * max_atoms) | alone)[inner].all(), "an atom counts as 30 edges"
    assert (counts <= batch_size)[inner].all()


def test_an_oversized_structure_goes_alone():
    natoms = np.full(64, 10, np.int32)
    natoms[20] = 500
    mixture = Mixture.single(IndexDataset("a", [64], natoms))
    for world_size in (1, 2, 4):
        _, _, stops, samples, ranks = plan(mixture, world_size, max_atoms=60)
        step = np.repeat(np.arange(len(stops) - 1), np.diff(stops))
        giant = np.flatnonzero(samples.natoms == 500)[0]
        company = (step == step[giant]) & (ranks == ranks[giant])
        assert company.sum() == 1


def test_oc20_budgets_are_filled_and_balanced():
    natoms = oc20_sizes(np.random.default_rng(0), 60_000).astype(np.int32)
    mixture = Mixture.single(IndexDataset("oc20", np.full(150, 400), natoms))
    reference = None
    for world_size in (1, 8, 64):
        _, _, stops, samples, ranks = plan(mixture, world_size, max_atoms=64_000 // world_size)
        atoms, _ = rank_loads(samples, stops, ranks, world_size)
        assert atoms.max() <= 64_000 // world_size
        assert atoms[:-2].sum() / (64_000 * (len(stops) - 3)) > 0.95
        assert (atoms.max(axis=1) / atoms.mean(axis=1)).max() <= 1.05
        assert reference is None or stops == reference
        reference = stops
