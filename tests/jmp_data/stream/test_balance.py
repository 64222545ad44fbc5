from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jmp_data.stream.balance import imbalance, share_out


def oc20_sizes(rng, count):
    """Atom counts like those of OC20: mean 73, from 8 to 225."""
    sizes = rng.gamma(4.2, 73 / 4.2, 4 * count)
    sizes = np.rint(sizes[(sizes >= 8) & (sizes <= 225)])[:count]
    assert len(sizes) == count
    assert 70 < sizes.mean() < 76
    return sizes


def test_heaviest_of_64_ranks_is_within_5_percent_of_the_mean():
    steps = 200
    cost = oc20_sizes(np.random.default_rng(0), 64 * 8 * steps)
    bounds = np.arange(steps + 1) * 64 * 8
    heaviest = imbalance(cost, share_out(cost, bounds, 64, equal_counts=True), bounds, 64)
    assert heaviest.max() <= 1.05
    assert heaviest.mean() <= 1.03
    dealt_in_turn = imbalance(cost, np.arange(len(cost), dtype=np.int32) % 64, bounds, 64)
    assert dealt_in_turn.mean() > 1.2, "what balancing is for"


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=6),
    st.integers(1, 64),
    st.integers(0, 100),
)
def test_counts_differ_by_at_most_one(extra, world_size, seed):
    lengths = np.array(extra) + world_size
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    cost = np.random.default_rng(seed).integers(1, 200, bounds[-1]).astype(float)
    ranks = share_out(cost, bounds, world_size, equal_counts=True)
    for start, stop in pairwise(bounds):
        counts = np.bincount(ranks[start:stop], minlength=world_size)
        assert counts.max() - counts.min() <= 1


def test_greedy_rule_by_hand():
    ranks = share_out(np.array([5.0, 4.0, 3.0, 3.0, 3.0, 2.0]), np.array([0, 6]), 2, equal_counts=True)
    # 5 | 4 → 5 | 4+3 → 5+3 | 4+3 → 5+3 | 4+3+3, full → 5+3+2
    assert ranks.tolist() == [0, 1, 1, 0, 1, 0]


def test_steps_are_balanced_one_by_one():
    cost = np.random.default_rng(1).integers(1, 99, 60).astype(float)
    together = share_out(cost, np.array([0, 20, 60]), 4, equal_counts=True)
    assert np.array_equal(together[:20], share_out(cost[:20], np.array([0, 20]), 4, equal_counts=True))
    assert np.array_equal(together[20:], share_out(cost[20:], np.array([0, 40]), 4, equal_counts=True))
