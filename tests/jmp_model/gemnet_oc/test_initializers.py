"""Initial weights: statistics that the specification asks for."""

from __future__ import annotations

import math

import pytest
import torch

from jmp_model.gemnet_oc.bases import BasisProjection
from jmp_model.gemnet_oc.initializers import he_orthogonal_
from jmp_model.model import PretrainingModel, shared_basis_divisors
from jmp_model.presets import preset


def test_linear_weights_have_standardised_rows() -> None:
    weight = he_orthogonal_(torch.empty(64, 128))
    assert weight.mean(1).abs().max() < 1e-6
    assert torch.allclose(weight.std(1), torch.full((64,), 1 / math.sqrt(128)), rtol=1e-3)


def test_basis_weights_are_standardised_per_output() -> None:
    weight = he_orthogonal_(torch.empty(128, 7, 16))
    assert weight.mean((0, 1)).abs().max() < 1e-6
    assert torch.allclose(weight.std((0, 1)), torch.full((16,), 1 / math.sqrt(128 * 7)), rtol=1e-3)


def test_single_input_stays_finite() -> None:
    assert he_orthogonal_(torch.empty(4, 1)).isfinite().all()


def test_basis_weight_is_reinterpreted_not_transposed() -> None:
    projection = BasisProjection(6, 3, 5)
    radial = torch.randn(4, 6)
    flat = (radial @ projection.weight.detach().flatten(1)).view(4, 5, 3)
    assert torch.allclose(projection(radial), flat)
    transposed = torch.einsum("er,rsi->eis", radial, projection.weight)
    assert not torch.allclose(flat, transposed)


@pytest.mark.parametrize("outer", [1, 3])
def test_splitting_the_outer_index_keeps_the_numbers(outer: int) -> None:
    projection = BasisProjection(6, 9, 5)
    radial = torch.randn(4, 6)
    whole = projection(radial).view(4, 5, outer, 9 // outer).transpose(1, 2)
    assert torch.allclose(projection.split_outer(radial, outer).view(whole.shape), whole, atol=1e-6)


def test_divisors_of_shared_projections() -> None:
    model = PretrainingModel(preset("tiny"))
    divisors = shared_basis_divisors(model)
    assert len(divisors) == 12
    assert divisors["backbone.bases.mlp_rbf_out.linear.weight"] == 3
    assert divisors["backbone.bases.mlp_sbf_qint.weight"] == 2
    assert "backbone.bases.edge_emb.dense.linear.weight" not in divisors
    assert divisors.keys() <= dict(model.named_parameters()).keys()
    wrapped = torch.nn.Sequential(model)
    assert {f"0.{name}" for name in divisors} == shared_basis_divisors(wrapped).keys()
