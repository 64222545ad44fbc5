"""Atoms with about as many edges share a block: how runs are cut, and that the numbers do not depend on it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from ase import Atoms
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from jmp_model.gemnet_oc import topology as topology_module
from jmp_model.gemnet_oc.graphs import ModelInputs
from jmp_model.gemnet_oc.ragged import BlockedLayout, GroupCounts, runs_of_like_size
from jmp_model.gemnet_oc.scaling import fit_scale_factors
from jmp_model.gemnet_oc.topology import build_topology
from jmp_model.heads.finetuning import EnergyHead
from jmp_model.model import FineTuningModel, PretrainingModel
from tests.jmp_model.gemnet_oc.structures import make_inputs, some_crystal, some_molecule, some_slab, tiny_model


def cost_of(counts: list[int], sizes: list[int], run_cost: float) -> float:
    total, start = 0.0, 0
    for size in sizes:
        total += size * counts[start] ** 2 + run_cost
        start += size
    return total


def all_cuts(length: int) -> list[list[int]]:
    cuts = [c for n in range(length) for c in itertools.combinations(range(1, length), n)]
    return [np.diff([0, *cut, length]).tolist() for cut in cuts]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=7), st.sampled_from([0.0, 3.0, 40.0, 1e6]))
def test_runs_are_cut_where_it_costs_least(counts: list[int], run_cost: float) -> None:
    counts = sorted(counts, reverse=True)
    sizes = runs_of_like_size(np.array(counts), run_cost)
    assert sum(sizes) == len(counts)
    least = min(cost_of(counts, cut, run_cost) for cut in all_cuts(len(counts)))
    assert cost_of(counts, sizes, run_cost) == pytest.approx(least)


def test_no_groups_have_no_runs() -> None:
    assert runs_of_like_size(np.zeros(0, dtype=int), 1.0) == []


def test_blocks_are_as_wide_as_their_largest_group() -> None:
    groups = torch.tensor([0, 0, 0, 1, 1, 2, 4])
    layout = BlockedLayout.of(groups, GroupCounts.of(groups, 5), [2, 1, 2])
    assert layout.shapes == ((2, 3), (1, 1), (2, 1))
    rows = torch.arange(1.0, 8.0)
    slots = layout.pad(rows)
    assert [block.tolist() for block in layout.blocks(slots)] == [
        [[1.0, 2.0, 3.0], [4.0, 5.0, 0.0]],
        [[6.0]],
        [[0.0], [7.0]],
    ]
    assert torch.equal(layout.unpad(slots), rows)
    assert torch.equal(layout.mask(), slots > 0)


def uneven_structures() -> ModelInputs:
    lone = Atoms("He", [[0, 0, 0]])
    return make_inputs([some_slab(1), some_molecule(2), lone, some_crystal(3), some_molecule(4, "CO2")])


@pytest.fixture(params=[0, 100])
def cheap_blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(topology_module._RUN_COST, "cpu", request.param)


def with_and_without_blocks(model: PretrainingModel | FineTuningModel, loss_of: object) -> list[list[Tensor]]:
    found = []
    for one_block in (False, True):
        model.backbone.one_block = one_block
        model.zero_grad()
        values = loss_of(model)  # type: ignore[operator]
        values[0].backward()
        found.append([*values, *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    return found


def assert_same(first: list[Tensor], second: list[Tensor]) -> None:
    assert len(first) == len(second) > 10
    for ours, other in zip(first, second, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("cheap_blocks")
def test_blocks_do_not_change_outputs_and_gradients() -> None:
    inputs = uneven_structures()
    assert len(build_topology(inputs.graphs, len(inputs.positions)).main_blocks.shapes) > 2

    def loss_of(model: PretrainingModel) -> list[Tensor]:
        energy, forces = model(inputs)
        return [energy.sum() + forces.square().sum(), energy, forces]

    assert_same(*with_and_without_blocks(tiny_model(edge_dropout=0.0).train(), loss_of))


@pytest.mark.usefixtures("cheap_blocks")
def test_blocks_do_not_change_second_derivatives() -> None:
    pretrained = tiny_model(direct_forces=False, edge_dropout=0.0)
    torch.manual_seed(1)
    model = FineTuningModel(
        pretrained.config, {"energy": EnergyHead(pretrained.config)}, forces_from_gradient=True
    ).double()
    model.load_state_dict(pretrained.state_dict(), strict=False)
    inputs = uneven_structures()

    def loss_of(model: FineTuningModel) -> list[Tensor]:
        out = model(inputs)
        return [out["energy"].sum() + out["forces"].square().sum(), out["energy"], out["forces"]]

    assert_same(*with_and_without_blocks(model.train(), loss_of))


@pytest.mark.usefixtures("cheap_blocks")
def test_blocks_do_not_change_fitted_scales() -> None:
    inputs, model = uneven_structures(), tiny_model(edge_dropout=0.0)
    found = []
    for one_block in (False, True):
        model.backbone.one_block = one_block
        found.append(fit_scale_factors(model, [inputs]))
    assert found[0] == pytest.approx(found[1], rel=1e-10)


def test_single_precision_runs_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, model = uneven_structures().with_dtype(torch.float32), tiny_model(edge_dropout=0.0).float().eval()
    whole = model(inputs)
    monkeypatch.setitem(topology_module._RUN_COST, "cpu", 0)
    for ours, other in zip(model(inputs), whole, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-5)
