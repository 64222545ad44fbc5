import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jmp_data.overlap.candidates import CandidateIndex
from jmp_data.overlap.fingerprint import Closeness, Kind
from jmp_data.overlap.settings import OverlapSettings


def random_index(rng: np.random.Generator, kind: Kind, size: int) -> CandidateIndex:
    width = 48 if kind == "molecule" else 33
    features = rng.normal(loc=3, scale=0.05, size=(size, width))
    return CandidateIndex(
        rng.integers(0, 4, size).astype(np.uint64) << np.uint64(60), features, Closeness(kind, OverlapSettings())
    )


@given(st.integers(0, 2**31), st.sampled_from(["molecule", "crystal"]), st.integers(1, 60))
def test_every_pair_within_the_bounds_is_a_candidate(seed: int, kind: Kind, size: int) -> None:
    rng = np.random.default_rng(seed)
    index, queries = random_index(rng, kind, size), random_index(rng, kind, 20)
    known = np.flatnonzero(index.known(queries.keys))
    assert set(queries.keys[known]) == set(queries.keys) & set(index.keys)
    found = index.nearest(queries.keys[known], queries.features[known], 5)
    for place, query in enumerate(known):
        features = np.broadcast_to(queries.features[query], index.features.shape)
        same = index.keys == queries.keys[query]
        expected = set(np.flatnonzero(same & index.closeness.within(features, index.features)))
        nearest = found.rows[place][found.rows[place] >= 0]
        assert set(nearest) <= expected
        assert set(nearest) == expected or found.crowded[place]
        rest = index.all_near(queries.keys[query], queries.features[query], skip=nearest)
        assert set(nearest) | set(rest) == expected
        assert not set(nearest) & set(rest)


def test_candidates_come_nearest_first() -> None:
    rng = np.random.default_rng(0)
    features = np.full((50, 48), 3.0)
    features[:, 0] += rng.uniform(0, 0.09, 50)
    index = CandidateIndex(np.zeros(50, np.uint64), features, Closeness("molecule", OverlapSettings()))
    query = np.full((1, 48), 3.0)
    order = np.argsort(features[:, 0])
    found = index.nearest(np.zeros(1, np.uint64), query, 8)
    assert found.rows[0].tolist() == order[:8].tolist()
    assert found.crowded[0]
    assert index.all_near(np.uint64(0), query[0], skip=found.rows[0]).tolist() == order[8:].tolist()


def test_nothing_is_found_in_an_empty_query() -> None:
    index = random_index(np.random.default_rng(0), "molecule", 3)
    assert len(index.nearest(np.zeros(0, np.uint64), np.zeros((0, 48)), 4).rows) == 0


@pytest.mark.parametrize("values", [{"near": 0.9}, {"near": 1e-4}, {"exact": 0.0}, {"strain": 0.5}])
def test_thresholds_that_mean_nothing_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        OverlapSettings(**values)
