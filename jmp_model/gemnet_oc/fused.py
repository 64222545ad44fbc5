"""Runs of dense layers as single autograd nodes that keep little and touch memory seldom.

A node keeps what is expensive to get back (matrix products of full width) and recomputes what is cheap (activations,
products with the few radial features).
Each node has a plain twin of ordinary operations. Second derivatives are taken of the twin, and it is what runs inside
`plain_layers()`: under `torch.compile`, or where forces are gradients and are trained on.

All rows are independent; "silu" below is the unscaled one, its gain of 1/0.6 being left to the next product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from jmp_model import amx

SILU_GAIN = 1 / 0.6
INV_SQRT_2 = 0.5**0.5

_plain = False


@contextmanager
def plain_layers(enabled: bool = True) -> Iterator[None]:
    """Use the plain twins inside this context."""
    global _plain
    before, _plain = _plain, enabled or _plain
    try:
        yield
    finally:
        _plain = before


def layers_are_plain() -> bool:
    """Whether the caller is inside `plain_layers()`."""
    return _plain


def product(a: Tensor, b: Tensor, gain: float = 1.0, bias: Tensor | None = None) -> Tensor:
    """gain·a·b, plus a bias, for use inside nodes: the matrix library multiplies by gain and adds in passing."""
    if amx.fits(a, b, bias):
        return amx.multiply(a, b, gain=gain, addend=bias)
    if bias is not None:
        return torch.addmm(bias, a, b, alpha=gain)
    if gain == 1.0:
        return torch.mm(a, b)
    return torch.addmm(a.new_empty(1, 1), a, b, beta=0, alpha=gain)


def add_product(base: Tensor, a: Tensor, b: Tensor, *, beta: float, gain: float, out: Tensor | None) -> Tensor:
    """beta·base + gain·a·b, for use inside nodes: (rows, columns), written to out, which may be base, if given."""
    if amx.fits(a, b, base):
        return amx.multiply(a, b, gain=gain, addend=base, beta=beta, out=out)
    return torch.addmm(base, a, b, beta=beta, alpha=gain, out=out)


def times(x: Tensor, weight: Tensor, gain: float = 1.0, bias: Tensor | None = None) -> Tensor:
    """gain·x·weightᵀ, plus a bias, for use inside nodes."""
    return product(x, weight.t(), gain, bias)


def weight_gradient(dz: Tensor, x: Tensor, gain: float = 1.0) -> Tensor:
    """gain·dzᵀ·x, for use inside nodes: what z = gain·x·weightᵀ gives its weight."""
    # With the long side of the result first, narrow gradients took a third of the time (docs/model-speed.md).
    return product(dz.t(), x, gain) if x.shape[1] >= dz.shape[1] else product(x.t(), dz, gain).t()


def silu_backward(grad: Tensor, z: Tensor) -> Tensor:
    """Gradient of silu(z), for use inside nodes."""
    out: Tensor = torch.ops.aten.silu_backward(grad, z)
    return out


def silu_backward_(grad: Tensor, z: Tensor) -> Tensor:
    """The same in place of grad, which must be the caller's own."""
    out: Tensor = torch.ops.aten.silu_backward.grad_input(grad, z, grad_input=grad)
    return out


def run(node: type[torch.autograd.Function], twin: Callable[..., Tensor], *args: Any) -> Tensor:
    """Run a node, or its twin where that is wanted; a node's tensors come in the autocast type, as for any product."""
    if _plain or torch.compiler.is_compiling():
        return twin(*args)
    for arg in args:
        if isinstance(arg, Tensor) and torch.is_autocast_enabled(arg.device.type):
            dtype = torch.get_autocast_dtype(arg.device.type)
            args = tuple(a.to(dtype) if isinstance(a, Tensor) and a.is_floating_point() else a for a in args)
            break
    out: Tensor = node.apply(*args)  # type: ignore[no-untyped-call]
    return out


def twin_gradients(ctx: Any, twin: Callable[..., Tensor], args: Sequence[Any], grad: Tensor) -> tuple[Any, ...]:
    """Differentiable gradients, for second derivatives."""
    with torch.enable_grad():
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad) if needed]
        found = torch.autograd.grad(twin(*args), [args[i] for i in wanted], grad, create_graph=True)
    gradients: list[Any] = [None] * len(args)
    for i, gradient in zip(wanted, found, strict=True):
        gradients[i] = gradient
    return tuple(gradients)


# ---------------------------------------------------------------------------------------------------------------------


def dense_silu(x: Tensor, weight: Tensor, *, gain: float = 1.0) -> Tensor:
    """Scaled SiLU of x·weightᵀ, times gain: (rows, in) to (rows, out)."""
    return run(_DenseSiLU, _dense_silu, x, weight, gain * SILU_GAIN)


def _dense_silu(x: Tensor, weight: Tensor, gain: float) -> Tensor:
    return functional.silu(functional.linear(x, weight)) * gain


class _DenseSiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, gain: float) -> Tensor:
        z = times(x, weight)
        ctx.save_for_backward(x, weight, z)
        ctx.gain = gain
        return functional.silu(z).mul_(gain)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, weight, z = ctx.saved_tensors
        if torch.is_grad_enabled():
            return twin_gradients(ctx, _dense_silu, (x, weight, ctx.gain), grads[0])
        dz = silu_backward(grads[0], z)
        dx = product(dz, weight, ctx.gain) if ctx.needs_input_grad[0] else None
        dw = weight_gradient(dz, x, ctx.gain) if ctx.needs_input_grad[1] else None
        return dx, dw, None


# ---------------------------------------------------------------------------------------------------------------------


def residuals(x: Tensor, layers: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Residual layers x ↦ (x + act(second·act(first·x)))/√2 in a row: (rows, units) to the same.

    The divisions by √2 are left to the end: layer i runs on √2ⁱ times its input, its first product makes up for that.
    """
    if not layers:
        return x
    return run(_Residuals, _residuals, x, *(weight for layer in layers for weight in layer))


def _residuals(x: Tensor, *weights: Tensor) -> Tensor:
    for first, second in zip(weights[::2], weights[1::2], strict=True):
        a = functional.silu(functional.linear(x, first)) * SILU_GAIN
        x = (x + functional.silu(functional.linear(a, second)) * SILU_GAIN) * INV_SQRT_2
    return x


class _Residuals(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> Tensor:
        kept = []
        for index, (first, second) in enumerate(zip(weights[::2], weights[1::2], strict=True)):
            divisor = INV_SQRT_2**index
            z1 = times(x, first, divisor)
            z2 = times(functional.silu(z1), second, SILU_GAIN)
            kept += [x, z1, z2]
            message = functional.silu(z2)
            x = torch.add(x, message, alpha=SILU_GAIN / divisor, out=message)
        ctx.save_for_backward(*weights, *kept)
        return x.mul_(INV_SQRT_2 ** (len(weights) // 2))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        depth = len(saved) // 5
        weights, kept = saved[: 2 * depth], saved[2 * depth :]
        if torch.is_grad_enabled():
            return twin_gradients(ctx, _residuals, (kept[0], *weights), grads[0])
        # The gradient of the undivided sum is that of the result, divided at the end as the sum is.
        end, d = INV_SQRT_2**depth, grads[0].contiguous()
        gradients: list[Tensor] = []
        for index in reversed(range(depth)):
            first, second = weights[2 * index : 2 * index + 2]
            x, z1, z2 = kept[3 * index : 3 * index + 3]
            divisor = INV_SQRT_2**index
            gain = SILU_GAIN * SILU_GAIN / divisor
            d2 = silu_backward(d, z2)
            dsecond = weight_gradient(d2, functional.silu(z1), gain * end)
            d1 = silu_backward_(product(d2, second, gain), z1)
            gradients = [weight_gradient(d1, x, divisor * end), dsecond, *gradients]
            # The gradient that came from outside is not ours to overwrite.
            out, scale = None if d is grads[0] else d, 1.0 if index else end
            d = add_product(d, d1, first, beta=scale, gain=divisor * scale, out=out)
        return d, *gradients


# ---------------------------------------------------------------------------------------------------------------------


def modulated_projection(x: Tensor, radial: Tensor, radial_weight: Tensor, out_weight: Tensor) -> Tensor:
    """(x ∘ radial·radial_weightᵀ)·out_weightᵀ.

    Args:
        x: (rows, wide); radial: (rows, r); radial_weight: (wide, r); out_weight: (out, wide).
    """
    return run(_ModulatedProjection, _modulated_projection, x, radial, radial_weight, out_weight)


def _modulated_projection(x: Tensor, radial: Tensor, radial_weight: Tensor, out_weight: Tensor) -> Tensor:
    return functional.linear(x * functional.linear(radial, radial_weight), out_weight)


class _ModulatedProjection(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, radial: Tensor, radial_weight: Tensor, out_weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, radial, radial_weight, out_weight)
        return times(times(radial, radial_weight).mul_(x), out_weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, radial, radial_weight, out_weight = ctx.saved_tensors
        if torch.is_grad_enabled():
            return twin_gradients(ctx, _modulated_projection, ctx.saved_tensors, grads[0])
        w = times(radial, radial_weight)
        dproduct = product(grads[0], out_weight)
        dout = weight_gradient(grads[0], x * w)
        dx = w.mul_(dproduct)
        dw = dproduct.mul_(x)
        return dx, dw @ radial_weight, weight_gradient(dw, radial), dout


def dense_modulated_projection(
    x: Tensor, weight: Tensor, radial: Tensor, radial_weight: Tensor, out_weight: Tensor
) -> Tensor:
    """`modulated_projection` of the scaled SiLU of x·weightᵀ: (rows, in) to (rows, out)."""
    radial_weight = radial_weight * SILU_GAIN
    return run(_DenseModulated, _dense_modulated, x, weight, radial, radial_weight, out_weight)


def _dense_modulated(x: Tensor, weight: Tensor, radial: Tensor, radial_weight: Tensor, out_weight: Tensor) -> Tensor:
    return _modulated_projection(functional.silu(functional.linear(x, weight)), radial, radial_weight, out_weight)


class _DenseModulated(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, radial: Tensor, radial_weight: Tensor, out_weight: Tensor
    ) -> Tensor:
        z = times(x, weight)
        ctx.save_for_backward(x, weight, radial, radial_weight, out_weight, z)
        return times(times(radial, radial_weight).mul_(functional.silu(z)), out_weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, weight, radial, radial_weight, out_weight, z = ctx.saved_tensors
        if torch.is_grad_enabled():
            return twin_gradients(ctx, _dense_modulated, ctx.saved_tensors[:5], grads[0])
        a, w = functional.silu(z), times(radial, radial_weight)
        dout = weight_gradient(grads[0], a * w)
        dproduct = product(grads[0], out_weight)
        dz = silu_backward_(w.mul_(dproduct), z)
        dw = dproduct.mul_(a)
        dx = product(dz, weight) if ctx.needs_input_grad[0] else None
        return dx, weight_gradient(dz, x), dw @ radial_weight, weight_gradient(dw, radial), dout


# ---------------------------------------------------------------------------------------------------------------------


def add_messages(base: Tensor, messages: Sequence[tuple[Tensor, Tensor, Tensor | None]], *, gain: float) -> Tensor:
    """base + gain·Σ act(y·weightᵀ), each added at its rows of base. Overwrites base, which nobody else may need.

    Args:
        base: (rows, wide).
        messages: y (rows or fewer, narrow), weight (wide, narrow), and the distinct rows that y belongs to (None: all).
        gain: factor of all messages.
    """
    for y, weight, rows in messages:
        base = run(_AddMessage, _add_message, base, y, weight, rows, gain * SILU_GAIN)
    return base


def _add_message(base: Tensor, y: Tensor, weight: Tensor, rows: Tensor | None, gain: float) -> Tensor:
    message = functional.silu(functional.linear(y, weight))
    return base + message * gain if rows is None else base.index_add(0, rows, message, alpha=gain)


class _AddMessage(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, base: Tensor, y: Tensor, weight: Tensor, rows: Tensor | None, gain: float) -> Tensor:
        ctx.save_for_backward(y, weight, rows)
        ctx.gain = gain
        ctx.mark_dirty(base)
        message = functional.silu(times(y, weight), inplace=True)
        return base.add_(message, alpha=gain) if rows is None else base.index_add_(0, rows, message, alpha=gain)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        y, weight, rows = ctx.saved_tensors
        grad, gain = grads[0], ctx.gain
        at_rows = grad if rows is None else grad.index_select(0, rows)
        if torch.is_grad_enabled():
            message = functional.silu(functional.linear(y, weight)) * gain
            dy, dweight = torch.autograd.grad(message, (y, weight), at_rows, create_graph=True)
            return grad, dy, dweight, None, None
        dz = silu_backward(at_rows, times(y, weight))
        return grad, product(dz, weight, gain), weight_gradient(dz, y, gain), None, None


# ---------------------------------------------------------------------------------------------------------------------


def perceptron(x: Tensor, layers: Sequence[tuple[Tensor, Tensor | None]]) -> Tensor:
    """Linear layers (weight, bias) with the scaled SiLU between them: (rows, in) to (rows, out)."""
    return run(_Perceptron, _perceptron, x, *(parameter for layer in layers for parameter in layer))


def _perceptron(x: Tensor, *layers: Any) -> Tensor:
    z = functional.linear(x, layers[0], layers[1])
    for weight, bias in zip(layers[2::2], layers[3::2], strict=True):
        z = functional.linear(functional.silu(z) * SILU_GAIN, weight, bias)
    return z


class _Perceptron(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *layers: Any) -> Tensor:
        kept = []
        z = x
        for index, (weight, bias) in enumerate(zip(layers[::2], layers[1::2], strict=True)):
            z = times(functional.silu(z), weight, SILU_GAIN, bias) if index else times(x, weight, bias=bias)
            kept.append(z)
        ctx.num_layers = len(kept)
        ctx.save_for_backward(x, *layers, *kept[:-1])
        return z

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, *saved = ctx.saved_tensors
        layers, kept = saved[: 2 * ctx.num_layers], saved[2 * ctx.num_layers :]
        if torch.is_grad_enabled():
            return twin_gradients(ctx, _perceptron, (x, *layers), grads[0])
        dz = grads[0]
        gradients: list[Any] = []
        for index in reversed(range(ctx.num_layers)):
            weight, bias = layers[2 * index], layers[2 * index + 1]
            source, gain = (functional.silu(kept[index - 1]), SILU_GAIN) if index else (x, 1.0)
            gradients = [weight_gradient(dz, source, gain), None if bias is None else dz.sum(0), *gradients]
            if index:
                dz = silu_backward_(product(dz, weight, gain), kept[index - 1])
        dx = product(dz, layers[0]) if ctx.needs_input_grad[0] else None
        return dx, *gradients
