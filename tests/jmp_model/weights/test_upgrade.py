from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jmp_data.errors import CheckpointError
from jmp_model.weights import upgrade
from jmp_model.weights.upgrade import upgrade_state

HERE = Path("run/checkpoint")


def test_the_present_version_stays_as_it_is() -> None:
    state = {"version": 1, "step": 4}
    assert upgrade_state(state, to=1, where=HERE) == state


def test_each_version_is_taken_one_step_further(monkeypatch: pytest.MonkeyPatch) -> None:
    def first(state: dict[str, Any]) -> dict[str, Any]:
        return {**state, "steps": state["step"]}

    def second(state: dict[str, Any]) -> dict[str, Any]:
        return {**state, "steps": state["steps"] * 2}

    monkeypatch.setattr(upgrade, "UPGRADES", {1: first, 2: second})
    assert upgrade_state({"version": 1, "step": 4}, to=3, where=HERE) == {"version": 3, "step": 4, "steps": 8}
    assert upgrade_state({"version": 2, "steps": 1}, to=3, where=HERE) == {"version": 3, "steps": 2}


@pytest.mark.parametrize(
    ("state", "message"),
    [({"version": 9}, "newer than this code"), ({"version": 0}, "cannot be read any more"), ({}, "no version")],
)
def test_versions_out_of_reach_are_refused(state: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=f"run/checkpoint: .*{message}"):
        upgrade_state(state, to=2, where=HERE)
