"""Gradient forces in half precision."""

from __future__ import annotations

import pytest
import torch

from jmp_model.heads.force_scale import ForceScale


def steep_energy(positions: torch.Tensor, slope: float) -> torch.Tensor:
    """Σ slope·x, computed in half precision: its gradient overflows where slope × scale exceeds 65504."""
    return ((positions.half() * slope).sum(dim=1)).float()


def test_an_overflow_halves_the_scale_until_it_fits() -> None:
    scale = ForceScale()
    positions = torch.rand(4, 3, requires_grad=True)
    forces = scale.forces(steep_energy(positions, 1000.0), positions, create_graph=False)
    assert forces.tolist() == [[-1000.0] * 3] * 4
    assert scale.value == 64.0


def test_small_gradients_do_not_vanish() -> None:
    slope = 2.0**-26  # below the smallest half-precision number
    positions = torch.rand(4, 3, requires_grad=True)
    energy = (positions.half() * 1.0).float().sum(dim=1)
    forces = ForceScale().forces(energy * slope, positions, create_graph=False)
    plain = torch.autograd.grad((positions.half() * 1.0).float().sum() * slope, positions)[0]
    assert forces.unique().item() == pytest.approx(-slope)
    assert plain.unique().item() == 0.0


def test_scale_grows_after_enough_finite_evaluations_and_is_kept() -> None:
    scale = ForceScale(4.0, growth_interval=3)
    positions = torch.rand(2, 3, requires_grad=True)
    for _ in range(2):
        scale.forces((positions**2).sum(dim=1), positions, create_graph=False)
    again = ForceScale(growth_interval=3)
    again.load_state_dict(scale.state_dict())
    found = again.forces((positions**2).sum(dim=1), positions, create_graph=True)
    assert again.value == 8.0
    assert torch.equal(found, -2.0 * positions)
    assert found.requires_grad


def test_what_no_scale_mends_comes_back_as_it_is() -> None:
    positions = torch.zeros(1, 3, requires_grad=True)
    forces = ForceScale(retries=3).forces(positions.sum(dim=1).log(), positions, create_graph=False)
    assert not torch.isfinite(forces).all()
    constant = torch.ones(1)
    assert not ForceScale().forces(constant, positions, create_graph=False).any()
