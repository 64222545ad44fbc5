from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jmp_data.errors import ManifestError, StateMismatchError
from jmp_data.stream.steps import FixedCuts


def sizes_of(cuts):
    bounds = [cuts.cut(step) for step in range(cuts.num_steps + 1)]
    return [b - a for a, b in pairwise(bounds)]


@given(st.integers(1, 5000), st.integers(1, 40), st.integers(1, 64))
def test_nothing_is_dropped_and_no_rank_is_idle(size, batch_size, world_size):
    if size < world_size:
        with pytest.raises(ManifestError, match="cannot be shared"):
            FixedCuts(size, batch_size * world_size, world_size)
        return
    cuts = FixedCuts(size, batch_size * world_size, world_size)
    sizes = sizes_of(cuts)
    assert sum(sizes) == size
    assert min(sizes) >= world_size
    if batch_size > 1:
        assert len(sizes) == -(-size // (batch_size * world_size))
        assert max(sizes) <= batch_size * world_size
    else:
        assert max(sizes) <= 2 * world_size


@given(st.integers(64, 5000), st.integers(2, 60))
def test_cuts_do_not_depend_on_who_shares_a_step(size, global_batch):
    worlds = [w for w in range(1, global_batch // 2 + 1) if global_batch % w == 0]
    assert len({tuple(sizes_of(FixedCuts(size, global_batch, w))) for w in worlds}) == 1


@given(st.integers(1, 2000), st.integers(1, 50), st.integers(1, 300))
def test_stops_go_on_from_any_step(size, global_batch, at_least):
    cuts = FixedCuts(size, global_batch, 1)
    for step in range(cuts.num_steps):
        stops = cuts.stops(step, cuts.cut(step), at_least)
        assert stops.tolist() == [cuts.cut(s) for s in range(step + 1, step + 1 + len(stops))]
        assert len(stops) == min(-(-at_least // global_batch), cuts.num_steps - step)


def test_a_position_between_steps_is_refused():
    with pytest.raises(StateMismatchError, match="not the start of a step"):
        FixedCuts(100, 10, 1).stops(2, 21, 1)


def test_short_last_step_is_evened_out():
    assert sizes_of(FixedCuts(100, 32, 1)) == [32, 32, 18, 18]
    assert sizes_of(FixedCuts(90, 32, 1)) == [32, 32, 26]
    assert sizes_of(FixedCuts(20, 32, 1)) == [20]
    assert sizes_of(FixedCuts(33, 8, 8)) == [8, 8, 8, 9], "one structure a rank: the last two steps are one"
