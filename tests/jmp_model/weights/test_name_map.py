"""The name map against the published key lists, and both directions against each other."""

from __future__ import annotations

import json

import pytest
import torch

from jmp_data.errors import CheckpointError
from jmp_model.model import PretrainingModel
from jmp_model.presets import PRETRAINING_TASKS, preset
from jmp_model.weights.name_map import from_released, is_parameter, our_name, released_names, to_released
from tests.shared import SHARED, needs_shared

# Totals that the original's instantiated models have.
TOTALS = {"small": (44_131_328, 405, 514, 38_842_368), "large": (234_267_648, 585, 734, 216_385_536)}


@pytest.fixture(scope="module", params=["small", "large"])
def named_model(request: pytest.FixtureRequest) -> tuple[str, PretrainingModel]:
    with torch.device("meta"):
        return request.param, PretrainingModel(preset(request.param))


def test_parameter_counts_are_the_published_ones(named_model: tuple[str, PretrainingModel]) -> None:
    name, model = named_model
    elements, tensors, entries, backbone = TOTALS[name]
    assert sum(p.numel() for p in model.parameters()) == elements
    assert len(list(model.parameters())) == tensors
    assert sum(p.numel() for p in model.backbone.parameters()) == backbone
    assert len(released_names(model.state_dict(), tasks=PRETRAINING_TASKS)) == entries


@needs_shared
def test_released_keys_agree_in_name_shape_and_order(named_model: tuple[str, PretrainingModel]) -> None:
    assert SHARED is not None
    name, model = named_model
    stored = json.loads((SHARED / "reference" / f"jmp-{name[0]}-keys.json").read_text())
    state = model.state_dict()
    pairs = released_names(state, tasks=PRETRAINING_TASKS)
    assert [released for released, _ in pairs] == list(stored)
    shapes = {released: [] if ours is None else list(state[ours].shape) for released, ours in pairs}
    assert shapes == stored


def test_trained_tensors_of_the_released_order_are_our_parameter_order(
    named_model: tuple[str, PretrainingModel],
) -> None:
    _, model = named_model
    released = [name for name, _ in released_names(model.state_dict(), tasks=PRETRAINING_TASKS)]
    assert [our_name(name) for name in released if is_parameter(name)] == [n for n, _ in model.named_parameters()]


def test_scalar_finetuning_keeps_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        small = PretrainingModel(preset("small", direct_forces=False))
    assert sum(p.numel() for p in small.backbone.parameters()) == 28_577_792


def test_round_trip_gives_the_same_tensors() -> None:
    state = PretrainingModel(preset("tiny")).state_dict()
    released = to_released(state)
    assert len(released) > len(state)
    back = from_released(released)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_aliases_that_differ_are_refused() -> None:
    released = to_released(PretrainingModel(preset("tiny")).state_dict())
    alias = next(name for name in released if ".seq_energy_pre." in name)
    released[alias] = released[alias] + 1
    with pytest.raises(CheckpointError, match="seq_energy_pre"):
        from_released(released)
