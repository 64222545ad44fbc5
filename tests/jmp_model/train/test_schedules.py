from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jmp_model.train.schedules import WarmupCosine


def test_published_values() -> None:
    schedule = WarmupCosine(peak=3e-4, warmup_steps=4, total_steps=10)
    expected = [6e-5, 1.4e-4, 2.2e-4, 3e-4, 3e-4, 2.8191343e-4, 2.325e-4, 1.65e-4, 9.75e-5, 4.80865705e-5, 3e-5]
    assert [schedule(step) for step in range(11)] == pytest.approx(expected, rel=1e-8)


def test_past_the_end_the_floor_holds_unless_asked_to_swing() -> None:
    held = WarmupCosine(peak=1.0, warmup_steps=4, total_steps=10)
    swinging = WarmupCosine(peak=1.0, warmup_steps=4, total_steps=10, past_end="swing")
    assert [held(step) for step in (10, 13, 16, 500)] == pytest.approx([0.1] * 4)
    assert swinging(16) == pytest.approx(1.0)
    assert swinging(11) == pytest.approx(swinging(9))


@given(warmup=st.integers(0, 50), rest=st.integers(1, 200))
def test_rises_to_the_peak_then_falls_to_the_floor(warmup: int, rest: int) -> None:
    schedule = WarmupCosine(peak=2.0, warmup_steps=warmup, total_steps=warmup + rest)
    rates = [schedule(step) for step in range(warmup + rest + 1)]
    assert rates[warmup] == pytest.approx(2.0)
    assert rates[-1] == pytest.approx(0.2)
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
