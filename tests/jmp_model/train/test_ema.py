from __future__ import annotations

import pytest
import torch

from jmp_data.errors import CheckpointError
from jmp_model.train.ema import WeightAverage


def test_average_starts_before_the_first_step_and_has_no_warm_up() -> None:
    model = torch.nn.Linear(1, 1, bias=False).double()
    torch.nn.init.constant_(model.weight, 1.0)
    average = WeightAverage(model, 0.9)
    expected = 1.0
    for weight in (2.0, 5.0, -3.0):
        torch.nn.init.constant_(model.weight, weight)
        average.update(model)
        expected = 0.9 * expected + 0.1 * weight
        assert average.average["weight"].item() == pytest.approx(expected, rel=1e-15)


def test_averaged_weights_are_swapped_in_and_out_again_even_after_an_error() -> None:
    model = torch.nn.Linear(2, 2)
    average = WeightAverage(model, 0.5)
    averaged = model.weight.detach().clone()
    torch.nn.init.zeros_(model.weight)
    parameter = model.weight
    with pytest.raises(RuntimeError, match="inside"):
        fail_inside(average, model, averaged, parameter)
    assert torch.equal(model.weight, torch.zeros(2, 2))


def fail_inside(average: WeightAverage, model: torch.nn.Linear, averaged: torch.Tensor, parameter: object) -> None:
    with average.applied(model):
        assert torch.equal(model.weight, averaged)
        assert model.weight is parameter
        raise RuntimeError("inside")


def test_averages_of_another_model_are_refused() -> None:
    average = WeightAverage(torch.nn.Linear(2, 2), 0.5)
    with pytest.raises(CheckpointError, match="bias"):
        average.load({"weight": torch.zeros(2, 2)})
