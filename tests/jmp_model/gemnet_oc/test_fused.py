"""Every fused node against its plain twin: values, gradients, second derivatives, and reduced precision."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from jmp_model.gemnet_oc import fused, gathering
from jmp_model.gemnet_oc.ragged import GroupCounts, PaddedLayout

GROUPS = torch.tensor([0, 0, 0, 1, 3, 3])
LAYOUT = PaddedLayout.of(GROUPS, GroupCounts.of(GROUPS, 5))
SOURCES = torch.tensor([3, 1, 4, 0, 0, 1])
ROWS = torch.tensor([4, 0, 3])

Case = tuple[Callable[..., torch.Tensor], list[tuple[int, ...]]]
CASES: dict[str, Case] = {
    "dense_silu": (lambda x, w: fused.dense_silu(x, w, gain=0.7), [(6, 4), (3, 4)]),
    "residuals": (
        lambda x, *w: fused.residuals(x, list(zip(w[::2], w[1::2], strict=True))),
        [(6, 4), *[(4, 4)] * 6],
    ),
    "modulated_projection": (fused.modulated_projection, [(6, 4), (6, 2), (4, 2), (3, 4)]),
    "dense_modulated_projection": (
        fused.dense_modulated_projection,
        [(6, 4), (5, 4), (6, 2), (5, 2), (3, 5)],
    ),
    "add_messages": (
        lambda base, y1, w1, y2, w2: fused.add_messages(base * 1, [(y1, w1, None), (y2, w2, ROWS)], gain=0.3),
        [(6, 4), (6, 2), (4, 2), (3, 2), (4, 2)],
    ),
    "collect_edges": (
        lambda m, r, w: gathering.collect_edges(m, r, w, GROUPS, LAYOUT.num_groups),
        [(6, 4), (6, 2), (4, 2)],
    ),
    "edge_update": (
        lambda m, h, w: gathering.edge_update(m, h, w, SOURCES, GROUPS),
        [(6, 4), (5, 3), (4, 10)],
    ),
    "aggregate": (
        lambda k1, k2, x, w: gathering.aggregate((k1, k2), x, w),
        [(3, 6, 4), (2, 2, 1), (14, 5), (2, 10)],
    ),
    "aggregate with extra": (
        lambda k1, k2, x, w, e, f: gathering.aggregate((k1, k2), x, w, (e, f)),
        [(3, 6, 4), (2, 2, 1), (14, 5), (2, 10), (11, 2, 3), (11, 3, 5)],
    ),
    "perceptron": (
        lambda x, w1, b1, w2, w3: fused.perceptron(x, [(w1, b1), (w2, None), (w3, None)]),
        [(6, 4), (4, 4), (4,), (4, 4), (1, 4)],
    ),
}


def arguments(shapes: list[tuple[int, ...]], dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that aggregation needs several."""
    monkeypatch.setattr(gathering, "_CHUNK", {"cpu": 40, "cuda": 40})


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_equal_those_of_the_twin(name: str) -> None:
    function, shapes = CASES[name]
    args = arguments(shapes)
    ours = function(*args)
    with fused.plain_layers():
        twin = function(*args)
    torch.testing.assert_close(ours, twin, rtol=1e-12, atol=1e-12)
    grad = torch.randn_like(ours)
    found = torch.autograd.grad(ours, args, grad)
    expected = torch.autograd.grad(twin, args, grad)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_first_and_second_derivatives_are_right(name: str) -> None:
    function, shapes = CASES[name]
    args = arguments(shapes)
    assert torch.autograd.gradcheck(function, args)
    assert torch.autograd.gradgradcheck(function, args)


@pytest.mark.parametrize("name", CASES)
def test_single_precision_is_close(name: str) -> None:
    """Takes the other matrix product on the CPU."""
    function, shapes = CASES[name]
    single, double = arguments(shapes, torch.float32), arguments(shapes)
    ours, exact = function(*single), function(*double)
    torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(
        torch.autograd.grad(ours.sum(), single), torch.autograd.grad(exact.sum(), double), strict=True
    ):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_autocast_gives_reduced_precision_and_gradients_in_the_weights_own(name: str) -> None:
    function, shapes = CASES[name]
    args = arguments(shapes, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours = function(*args)
    exact = function(*args)
    torch.testing.assert_close(ours.float(), exact, rtol=0.05, atol=0.05 * float(exact.detach().abs().max()))
    for gradient in torch.autograd.grad(ours.float().sum(), args):
        assert gradient.dtype == torch.float32
        assert gradient.isfinite().all()


def test_rows_may_be_none() -> None:
    x = torch.zeros(0, 4)
    weight = torch.randn(3, 4)
    assert fused.dense_silu(x, weight).shape == (0, 3)
    assert fused.residuals(x, [(torch.randn(4, 4), torch.randn(4, 4))]).shape == (0, 4)


def test_residual_layers_divide_each_sum_by_the_root_of_two() -> None:
    x, *weights = arguments([(6, 4), *[(4, 4)] * 6])
    layers = list(zip(weights[::2], weights[1::2], strict=True))
    expected = x
    for first, second in layers:
        y = torch.nn.functional.silu(expected @ first.t()) / 0.6
        expected = (expected + torch.nn.functional.silu(y @ second.t()) / 0.6) / 2**0.5
    torch.testing.assert_close(fused.residuals(x, layers), expected, rtol=1e-13, atol=1e-13)
