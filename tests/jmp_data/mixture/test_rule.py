import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jmp_data.errors import ManifestError
from jmp_data.mixture import MixingRule

PAPER = {"oc20": 100_000_000, "oc22": 8_000_000, "ani1x": 2_000_000, "transition1x": 10_000_000}


def test_reproduces_the_published_table_at_temperature_2():
    shares = MixingRule(temperature=2.0).shares(PAPER)
    np.testing.assert_allclose(shares.probabilities, [0.57455, 0.16251, 0.08125, 0.18169], atol=5e-6)
    np.testing.assert_allclose(shares.repeats, [1, 3.5355, 7.0711, 3.1623], atol=5e-5)
    np.testing.assert_allclose(shares.samples / 1e6, [100.00, 28.28, 14.14, 31.62], atol=5e-3)
    assert round(shares.samples.sum() / 1e6, 2) == 174.05
    assert shares.samples[0] == PAPER["oc20"], "the least repeated data set is seen exactly once"


def test_temperature_1_is_proportional_and_infinity_uniform():
    assert MixingRule(temperature=1.0).shares(PAPER).samples.tolist() == list(PAPER.values())
    assert MixingRule(temperature=math.inf).shares(PAPER).samples.tolist() == [100_000_000] * 4


@given(
    sizes=st.lists(st.integers(1, 10**9), min_size=1, max_size=6),
    temperature=st.floats(0.5, 20.0),
)
def test_samples_are_the_exact_ceiling_of_the_rule(sizes, temperature):
    """Against 50-digit arithmetic: the exact product, rounded up, guard included."""
    from mpmath import ceil, mp, mpf, nint

    mp.dps = 50
    named = {str(i): n for i, n in enumerate(sizes)}
    shares = MixingRule(temperature=temperature).shares(named)
    total = mpf(sum(sizes))
    factors = [(n / total) ** (1 / mpf(temperature)) / n for n in map(mpf, sizes)]
    for n, f, samples in zip(sizes, factors, shares.samples, strict=True):
        exact = n * f / min(factors)
        close = abs(exact - nint(exact)) <= mpf("1.1e-12") * max(exact, 1)
        assert samples == (ceil(exact) if not close else samples)
        assert abs(samples - exact) < 1 + 1e-6 + mpf("1e-12") * exact  # beyond 2^53, doubles hold no odd numbers
        assert samples >= n
    assert shares.samples[int(np.argmin(shares.repeats))] == sizes[int(np.argmin(shares.repeats))]
    assert abs(shares.probabilities.sum() - 1) < 1e-12


def test_weights_and_repeats():
    sizes = {"a": 100, "b": 50}
    weighted = MixingRule(weights={"b": 3.0, "a": 1.0}).shares(sizes)
    assert weighted.probabilities.tolist() == [0.25, 0.75]
    assert weighted.samples.tolist() == [100, 300]
    repeated = MixingRule(repeats={"a": 1.5, "b": 0.1}).shares(sizes)
    assert repeated.samples.tolist() == [150, 5]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "exactly one"),
        ({"temperature": 1.0, "weights": {"a": 1.0}}, "temperature and weights"),
        ({"temperature": 0.0}, "temperature is 0"),
        ({"weights": {"a": -1.0}}, "weights of data set a"),
    ],
)
def test_impossible_rules_are_refused(settings, words):
    with pytest.raises(ManifestError, match=words):
        MixingRule(**settings)


def test_weights_must_name_every_data_set():
    with pytest.raises(ManifestError, match="give one for each"):
        MixingRule(weights={"a": 1.0}).shares({"a": 1, "b": 2})


def test_an_empty_data_set_is_named():
    with pytest.raises(ManifestError, match="data set b has no structures"):
        MixingRule(temperature=1.0).shares({"a": 1, "b": 0})
