import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jmp_data.report.axes import BINS, compact, count_edges, nice_ticks, plain, rebin, value_edges

FLOATS = st.floats(-1e6, 1e6, allow_nan=False, width=32)


@given(st.lists(st.lists(FLOATS, min_size=1, max_size=50), min_size=1, max_size=3))
def test_value_axes_hold_all_but_the_outermost_values(samples: list[list[float]]) -> None:
    arrays = [np.array(sample) for sample in samples]
    edges = value_edges(arrays)
    assert len(edges) == BINS + 1
    assert (np.diff(edges) > 0).all()
    pooled = np.concatenate(arrays)
    beyond = ((pooled < edges[0]) | (pooled > edges[-1])).sum()
    assert beyond <= 2 + 0.002 * len(pooled)


def test_one_wild_value_does_not_flatten_the_axis() -> None:
    values = np.append(np.random.default_rng(0).normal(size=5000), 1e6)
    edges = value_edges([values])
    assert edges[-1] < 10
    assert edges[0] < -2


def test_an_axis_of_equal_values_has_a_width() -> None:
    edges = value_edges([np.full(7, -25000.0)])
    assert edges[0] < -25000 < edges[-1]


@given(st.lists(st.integers(0, 100), min_size=1, max_size=400).filter(any))
def test_bins_of_whole_numbers_lose_none(counts: list[int]) -> None:
    array = np.array(counts)
    edges = count_edges([array])
    assert rebin(array, edges).sum() == array.sum()
    assert len(edges) <= 62
    assert edges[0] >= -0.5


@given(st.floats(-1e5, 1e5), st.floats(1e-3, 1e5), st.integers(2, 8))
def test_ticks_are_round_and_few_and_inside(low: float, span: float, most: int) -> None:
    ticks = nice_ticks(low, low + span, most)
    assert 1 <= len(ticks) <= most + 1
    assert all(low - 1e-6 * span <= tick <= low + span * (1 + 1e-6) for tick in ticks)
    if len(ticks) > 1:
        step = ticks[1] - ticks[0]
        np.testing.assert_allclose(np.diff(ticks), step, rtol=1e-6)
        assert f"{step:.6e}".split("e")[0].rstrip("0").rstrip(".") in ("1", "2", "2.5", "5")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (-25000.4, "−25,000"), (0.5, "0.5"), (1e-5, "1e-05"), (123.456, "123.5"), (2.0, "2"), (3e8, "3e+08")],
)
def test_numbers_are_written_as_people_read_them(value: float, text: str) -> None:
    assert plain(value) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (999, "999"), (1000, "1.0k"), (34_400, "34k"), (999_600, "1.0M"), (2.5e9, "2.5G")]
)
def test_counts_are_short(count: float, text: str) -> None:
    assert compact(count) == text
