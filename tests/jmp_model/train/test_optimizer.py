from __future__ import annotations

import pytest
import torch

from jmp_model.train.optimizer import (
    build_adamw,
    divide_shared_gradients,
    fill_missing_gradients,
    gradient_norm,
    set_learning_rate,
)


def test_parameters_without_gradient_are_decayed_and_moved_by_momentum() -> None:
    model = torch.nn.ModuleList([torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)]).double()
    torch.nn.init.constant_(model[1].weight, 1.0)
    optimizer = build_adamw(model, lr=0.1)
    assert len(optimizer.param_groups) == 1
    model[0](torch.ones(1, 1, dtype=torch.float64)).sum().backward()
    fill_missing_gradients(model)
    optimizer.step()
    assert model[1].weight.item() == pytest.approx(1.0 - 0.1 * 0.1, rel=1e-15)


def test_shared_gradients_are_divided_and_others_left() -> None:
    model = torch.nn.Linear(1, 1)
    model.weight.grad, model.bias.grad = torch.full((1, 1), 6.0), torch.full((1,), 8.0)
    divide_shared_gradients(model, {"weight": 3})
    assert (model.weight.grad.item(), model.bias.grad.item()) == (2.0, 8.0)
    assert gradient_norm(model).item() == pytest.approx(68**0.5)


def test_groups_keep_their_own_factor() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.AdamW([{"params": parameters[:1], "lr_factor": 0.25}, {"params": parameters[1:]}])
    set_learning_rate(optimizer, 0.8)
    assert [group["lr"] for group in optimizer.param_groups] == [0.2, 0.8]
