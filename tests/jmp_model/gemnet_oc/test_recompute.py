"""Blocks that run again in the backward pass: the same numbers from less memory."""

from __future__ import annotations

import torch
from torch import Tensor

from jmp_model.heads.finetuning import EnergyHead
from jmp_model.model import FineTuningModel, recompute_blocks
from tests.jmp_model.gemnet_oc.structures import make_inputs, some_crystal, some_molecule, tiny_model


def gradients(model: torch.nn.Module, loss: Tensor) -> list[Tensor]:
    model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def assert_same(first: list[Tensor], second: list[Tensor]) -> None:
    assert len(first) == len(second) > 0
    for ours, other in zip(first, second, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-12, atol=1e-13)


def test_gradients_of_a_training_step_are_the_same() -> None:
    model = tiny_model(edge_dropout=0.1).train()
    inputs = make_inputs([some_molecule(1), some_crystal(2)])
    found = []
    for enabled in (False, True):
        recompute_blocks(model, enabled)
        energy, forces = model(inputs)
        found.append(gradients(model, energy.sum() + forces.square().sum()))
    assert_same(*found)


def test_second_derivatives_are_the_same() -> None:
    pretrained = tiny_model(direct_forces=False, edge_dropout=0.0)
    torch.manual_seed(1)
    heads = {"energy": EnergyHead(pretrained.config)}
    model = FineTuningModel(pretrained.config, heads, forces_from_gradient=True).double()
    model.load_state_dict(pretrained.state_dict(), strict=False)
    inputs = make_inputs([some_molecule(1, "CH3OH")])
    found = []
    for enabled in (False, True):
        recompute_blocks(model.train(), enabled)
        out = model(inputs)
        found.append(gradients(model, out["energy"].sum() + out["forces"].square().sum()))
    assert_same(*found)


def kept_bytes(model: torch.nn.Module, inputs: object) -> int:
    """Bytes that the forward pass leaves for the backward pass."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(inputs)
    return sum(kept.values())


def test_less_is_kept() -> None:
    model = tiny_model(num_blocks=4).train()
    inputs = make_inputs([some_molecule(1), some_crystal(2)])
    plain = kept_bytes(model, inputs)
    recompute_blocks(model)
    assert kept_bytes(model, inputs) < 0.8 * plain
