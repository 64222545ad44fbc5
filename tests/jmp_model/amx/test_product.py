"""Products in tile registers, against float64 and against the matrix library."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from jmp_model import amx
from jmp_model.amx import product
from jmp_model.gemnet_oc import fused

pytestmark = pytest.mark.skipif(not amx.tiles_are_available(), reason="no AMX here")


@pytest.fixture(autouse=True, scope="module")
def several_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


ROOT = Path(__file__).parents[3]
EXACT = 2.0**-20
"""Of |a|·|b|: rounding of sums of a few hundred numbers. A part that is forgotten makes ten times more."""


def matrix(rows: int, columns: int, *, by_columns: bool = False, seed: int = 0, spread: float = 1.0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=random) * torch.exp(spread * torch.randn(rows, columns, generator=random))
    return x.t().contiguous().t() if by_columns else x


def assert_exact(found: Tensor, a: Tensor, b: Tensor, gain: float = 1.0, rest: Tensor | None = None) -> None:
    expected, size = gain * (a.double() @ b.double()), abs(gain) * (a.double().abs() @ b.double().abs())
    if rest is not None:
        expected, size = expected + rest, size + rest.abs()
    assert ((found.double() - expected).abs() <= EXACT * size).all()


sizes = st.integers(1, 150)


class Subclass(Tensor):
    """May keep its numbers anywhere."""


@settings(max_examples=60)
@given(
    rows=sizes,
    columns=sizes,
    depth=sizes,
    layout=st.tuples(st.booleans(), st.booleans()),
    gain=st.sampled_from([1.0, -0.3]),
    addend=st.sampled_from(["none", "bias", "matrix", "out"]),
)
def test_every_shape_and_layout_is_exact(
    rows: int, columns: int, depth: int, layout: tuple[bool, bool], gain: float, addend: str
) -> None:
    a, b = (
        matrix(m, n, by_columns=by_columns, seed=m)
        for (m, n), by_columns in zip([(rows, depth), (depth, columns)], layout, strict=True)
    )
    out = torch.full((rows, columns), torch.nan)
    added = {"none": None, "bias": torch.randn(columns), "matrix": torch.randn(rows, columns), "out": out}[addend]
    if addend == "out":
        out.normal_()
    rest = None if added is None else 0.5 * added.double()
    found = amx.multiply(a, b, gain=gain, addend=added, beta=0.5, out=out)
    assert found is out
    assert_exact(found, a, b, gain, rest)


@pytest.mark.parametrize(("rows", "depth", "columns"), [(1100, 512, 544), (600, 3000, 700), (1030, 1040, 1025)])
def test_large_products_are_more_exact_than_those_of_the_library(rows: int, depth: int, columns: int) -> None:
    a, b = matrix(rows, depth), matrix(depth, columns, by_columns=True)
    exact = a.double() @ b.double()
    ours, library = ((x.double() - exact).norm() for x in (amx.multiply(a, b), a @ b))
    assert ours < library


def test_parts_of_wider_matrices_are_read_and_written_where_they_are() -> None:
    wide_a, wide_b, wide_out = matrix(90, 200), matrix(70, 300), torch.zeros(90, 400)
    a, b = wide_a[:, 50:120], wide_b[:, 17:80]
    amx.multiply(a, b, out=wide_out[:, 31:94])
    assert_exact(wide_out[:, 31:94], a, b)
    assert not wide_out[:, :31].any()
    assert not wide_out[:, 94:].any()


@pytest.mark.parametrize("depth", [32, 65, 96, 150, 400])
def test_every_number_in_place_is_written_once(depth: int) -> None:
    a, b, out = matrix(450, depth), matrix(depth, 70), torch.randn(450, 70)
    before = out.double()
    amx.multiply(a, b, addend=out, beta=0.5, out=out)
    assert_exact(out, a, b, rest=0.5 * before)


@pytest.mark.parametrize(("rows", "depth"), [(700, 90), (90, 700)])
def test_same_numbers_every_time(rows: int, depth: int) -> None:
    a, b = matrix(rows, depth), matrix(depth, 80)
    first = amx.multiply(a, b)
    assert all(torch.equal(amx.multiply(a, b), first) for _ in range(20))


def test_the_number_of_threads_does_not_change_tall_products() -> None:
    a, b = matrix(700, 90), matrix(90, 80)
    several = amx.multiply(a, b)
    torch.set_num_threads(1)
    try:
        assert torch.equal(amx.multiply(a, b), several)
        assert_exact(amx.multiply(b.t(), a.t()), b.t(), a.t())
    finally:
        torch.set_num_threads(3)


def test_threads_of_python_do_not_meet() -> None:
    factors = [(matrix(n, 300, seed=n), matrix(300, 200, seed=n + 1)) for n in (150, 400, 500)]
    found: list[list[Tensor]] = [[] for _ in factors]

    def multiply(a: Tensor, b: Tensor, results: list[Tensor]) -> None:
        results.extend(amx.multiply(a, b) for _ in range(30))

    threads = [threading.Thread(target=multiply, args=(*pair, to)) for pair, to in zip(factors, found, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for (a, b), results in zip(factors, found, strict=True):
        assert len(results) == 30
        assert_exact(results[0], a, b)
        assert all(torch.equal(result, results[0]) for result in results)


def test_numbers_that_are_none_stay_visible() -> None:
    a, b = matrix(64, 64), matrix(64, 64)
    a[3, 5], a[10, 2] = torch.nan, torch.inf
    found = amx.multiply(a, b)
    assert not found[[3, 10]].isfinite().any()
    rest = [i for i in range(64) if i not in (3, 10)]
    assert_exact(found[rest], a[rest], b)


def test_largest_numbers_do_not_overflow() -> None:
    largest = torch.finfo(torch.float32).max
    a, b = torch.full((32, 32), largest), torch.eye(32)
    assert torch.equal(amx.multiply(a, b), a)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (matrix(40, 40), matrix(40, 40)),  # too small
        (matrix(4096, 64), matrix(64, 4096)),  # too narrow
        (matrix(1024, 512).double(), matrix(512, 1024).double()),
        (matrix(1024, 512).bfloat16(), matrix(512, 1024).bfloat16()),
        (matrix(1024, 1024)[:, ::2], matrix(512, 1024)),
        (matrix(1024, 512).to("meta"), matrix(512, 1024).to("meta")),
        (matrix(1024, 512), matrix(500, 1024)),  # torch refuses
        (matrix(1024, 512), torch._neg_view(matrix(512, 1024))),
        (matrix(1024, 512), torch._efficientzerotensor(512, 1024)),
        (matrix(1024, 512).as_subclass(Subclass), matrix(512, 1024)),
    ],
)
def test_what_does_not_fit(a: Tensor, b: Tensor) -> None:
    assert not amx.fits(a, b)


BIAS = torch.linspace(-1, 1, 1024)


@pytest.mark.parametrize(
    "bias", [BIAS.double(), BIAS[:-1], BIAS[None], BIAS[:1], BIAS.repeat_interleave(2)[::2]], ids=lambda b: str(b.shape)
)
def test_a_bias_of_another_kind_is_left_to_torch(bias: Tensor) -> None:
    a, b = matrix(1024, 512), matrix(512, 1024)
    assert amx.fits(a, b, BIAS)
    assert not amx.fits(a, b, bias)


@pytest.mark.parametrize(
    ("a", "b", "addend"),
    [((40, 50), (49, 40), None), ((40, 0), (0, 40), None), ((40, 50), (50, 60), (40,)), ((40, 50), (50, 60), (1, 60))],
)
def test_shapes_that_do_not_go_together(a: tuple[int, int], b: tuple[int, int], addend: tuple[int, ...] | None) -> None:
    with pytest.raises(ValueError, match="cannot multiply"):
        amx.multiply(torch.zeros(a), torch.zeros(b), addend=None if addend is None else torch.zeros(addend))


def test_workspace_is_on_the_cpu_whatever_the_default_device() -> None:
    a, b = matrix(100, 90), matrix(90, 80)

    def multiply(found: list[Tensor]) -> None:
        with torch.device("meta"):
            found.append(amx.multiply(a, b))

    found: list[Tensor] = []
    thread = threading.Thread(target=multiply, args=(found,))  # whose workspace is still empty
    thread.start()
    thread.join()
    assert_exact(found[0], a, b)


def test_where_numba_compiles_for_other_processors_there_are_no_tiles() -> None:
    command = [sys.executable, "-c", "from jmp_model import amx; print(amx.tiles_are_available())"]
    environment = os.environ | {"NUMBA_CPU_NAME": "generic"}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "False"


def test_whoever_watches_operations_sees_all() -> None:
    a, b = matrix(1024, 512), matrix(512, 1024)
    assert amx.fits(a, b)
    with FlopCounterMode(display=False) as counter:
        fused.product(a, b)
    assert counter.get_total_flops() == 2 * 1024 * 512 * 1024


@pytest.fixture
def tiles_for_all(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Every product of a node in tiles, and the shapes of those."""
    shapes: list[tuple[int, ...]] = []

    def multiply(a: Tensor, b: Tensor, **options: Tensor) -> Tensor:
        shapes.append((*a.shape, b.shape[1]))
        return product.multiply(a, b, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(product, "_SHORTEST", 1)
    monkeypatch.setattr(product, "_WORTHWHILE", 1)
    monkeypatch.setattr(amx, "multiply", multiply)
    return shapes


NODES: list[Callable[[Tensor, list[Tensor]], Tensor]] = [
    lambda x, w: fused.dense_silu(x, w[0], gain=0.7),
    lambda x, w: fused.residuals(x, [(w[0], w[1]), (w[2], w[3])]),
    lambda x, w: fused.perceptron(x, [(w[0], w[1][0]), (w[2], None)]),
    lambda x, w: fused.modulated_projection(x, x[:, :16].detach(), w[0][:, :16], w[1]),
]


@pytest.mark.parametrize("node", NODES)
def test_nodes_give_the_numbers_of_their_twins(
    node: Callable[[Tensor, list[Tensor]], Tensor], tiles_for_all: list[tuple[int, ...]]
) -> None:
    def run(dtype: torch.dtype, *, plain: bool) -> list[Tensor]:
        x, *weights = (matrix(n, 64, seed=n, spread=0).to(dtype).requires_grad_() for n in (300, 64, 65, 66, 67))
        weights = [weight[:64] / 8 for weight in weights]
        with fused.plain_layers(plain):
            out = node(x, weights)
        return [out, *torch.autograd.grad(out.square().sum(), [x, *weights], allow_unused=True)]

    expected = run(torch.float64, plain=True)
    assert not tiles_for_all
    found = run(torch.float32, plain=False)
    assert len(tiles_for_all) >= 3
    for one, other in zip(found, expected, strict=True):
        if other is not None:
            assert (one - other).abs().max() < 1e-5 * other.abs().max()
