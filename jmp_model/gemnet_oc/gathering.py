"""Nodes that move between atoms and edges, made on the same terms as those in `fused`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from jmp_model.gemnet_oc.fused import SILU_GAIN, run, silu_backward, times, twin_gradients, weight_gradient
from jmp_model.gemnet_oc.ragged import sum_by_group


def collect_edges(m: Tensor, radial: Tensor, weight: Tensor, target: Tensor, num_atoms: int) -> Tensor:
    """Σ m ∘ (radial·weightᵀ) over the edges of each target: (N, wide).

    Args:
        m: (E, wide); radial: (E, r); weight: (wide, r); target: (E,).
        num_atoms: N.
    """
    return run(_CollectEdges, _collect_edges, m, radial, weight, target, num_atoms)


def _collect_edges(m: Tensor, radial: Tensor, weight: Tensor, target: Tensor, num_atoms: int) -> Tensor:
    return sum_by_group(m * functional.linear(radial, weight), target, num_atoms)


class _CollectEdges(torch.autograd.Function):
    """Keeps nothing of the width of m but m itself."""

    @staticmethod
    def forward(ctx: Any, m: Tensor, radial: Tensor, weight: Tensor, target: Tensor, num_atoms: int) -> Tensor:
        ctx.save_for_backward(m, radial, weight, target)
        ctx.num_atoms = num_atoms
        return sum_by_group(times(radial, weight).mul_(m), target, num_atoms)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        m, radial, weight, target = ctx.saved_tensors
        if torch.is_grad_enabled():
            return twin_gradients(ctx, _collect_edges, (m, radial, weight, target, ctx.num_atoms), grads[0])
        grad = grads[0].index_select(0, target)
        dm = times(radial, weight).mul_(grad)
        dw = grad.mul_(m)
        return dm, dw @ weight, weight_gradient(dw, radial), None, None


# ---------------------------------------------------------------------------------------------------------------------


def edge_update(m: Tensor, h: Tensor, weight: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Scaled SiLU of [h_source ‖ h_target ‖ m]·weightᵀ, with the parts that see an atom applied once per atom.

    Args:
        m: (E, ·); h: (N, A); weight: (out, 2A + ·); source, target: (E,).
    """
    return run(_EdgeUpdate, _edge_update, m, h, weight, source, target)


def _edge_update(m: Tensor, h: Tensor, weight: Tensor, source: Tensor, target: Tensor) -> Tensor:
    atom = h.shape[1]
    z = functional.linear(m, weight[:, 2 * atom :])
    z = z + functional.linear(h, weight[:, :atom])[source] + functional.linear(h, weight[:, atom : 2 * atom])[target]
    return functional.silu(z) * SILU_GAIN


class _EdgeUpdate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, m: Tensor, h: Tensor, weight: Tensor, source: Tensor, target: Tensor) -> Tensor:
        atom = h.shape[1]
        z = times(m, weight[:, 2 * atom :])
        z += times(h, weight[:, :atom]).index_select(0, source)
        z += times(h, weight[:, atom : 2 * atom]).index_select(0, target)
        ctx.save_for_backward(m, h, weight, source, target, z)
        return functional.silu(z).mul_(SILU_GAIN)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        m, h, weight, source, target, z = ctx.saved_tensors
        if torch.is_grad_enabled():
            return twin_gradients(ctx, _edge_update, (m, h, weight, source, target), grads[0])
        atom = h.shape[1]
        dz = silu_backward(grads[0], z)
        at_source, at_target = sum_by_group(dz, source, len(h)), sum_by_group(dz, target, len(h))
        dh = at_source @ weight[:, :atom] + at_target @ weight[:, atom : 2 * atom]
        dweight = torch.cat([at_source.t() @ h, at_target.t() @ h, weight_gradient(dz, m)], dim=1)
        dm = times(dz, (weight[:, 2 * atom :] * SILU_GAIN).t()) if ctx.needs_input_grad[0] else None
        return dm, dh * SILU_GAIN, dweight.mul_(SILU_GAIN), None, None


# ---------------------------------------------------------------------------------------------------------------------


def aggregate(kernel: Tensor, x: Tensor, weight: Tensor, extra: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Bilinear aggregation: weight applied to vec(kernel·x) of each output place.

    Args:
        kernel: (groups, places·basis, inner), coefficients from the inner to the output places of each group.
        x: (groups, inner, K), features of the inner places.
        weight: (out, basis·K), basis index slow.
        extra: (groups·places, basis, s) and (groups·places, s, K), whose product is subtracted from kernel·x.

    Returns:
        (groups, places, out).
    """
    return run(_Aggregate, _aggregate, kernel, x, weight, *(extra or (None, None)))


def _aggregate(
    kernel: Tensor, x: Tensor, weight: Tensor, extra_kernel: Tensor | None, extra_x: Tensor | None
) -> Tensor:
    basis = weight.shape[1] // x.shape[2]
    z = kernel @ x
    if extra_kernel is not None and extra_x is not None:
        z = z - torch.bmm(extra_kernel, extra_x).view(z.shape)
    return functional.linear(z.view(kernel.shape[0], kernel.shape[1] // basis, -1), weight)


_CHUNK = {"cpu": 1 << 21, "cuda": 1 << 28}
"""Numbers of kernel·x held at once: on a CPU what stays in the cache, on a GPU what is a small part of its memory."""


class _Aggregate(torch.autograd.Function):
    """Never holds kernel·x as a whole: it is many times larger than its factors and its result."""

    @staticmethod
    def forward(
        ctx: Any, kernel: Tensor, x: Tensor, weight: Tensor, extra_kernel: Tensor | None, extra_x: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(kernel, x, weight, extra_kernel, extra_x)
        basis = weight.shape[1] // x.shape[2]
        out = x.new_empty(kernel.shape[0], kernel.shape[1] // basis, weight.shape[0])
        for part in _chunks(kernel, x):
            z = _products(kernel, x, extra_kernel, extra_x, part, basis)
            torch.mm(z, weight.t(), out=out[part].view(-1, weight.shape[0]))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        kernel, x, weight, extra_kernel, extra_x = ctx.saved_tensors
        if torch.is_grad_enabled():
            return twin_gradients(ctx, _aggregate, ctx.saved_tensors, grads[0])
        basis, features = weight.shape[1] // x.shape[2], x.shape[2]
        dkernel, dx, dweight = torch.empty_like(kernel), torch.empty_like(x), torch.zeros_like(weight)
        dextra_kernel = None if extra_kernel is None else torch.empty_like(extra_kernel)
        dextra_x = None if extra_x is None else torch.empty_like(extra_x)
        grad = grads[0].contiguous()
        for part in _chunks(kernel, x):
            g = grad[part].view(-1, weight.shape[0])
            dweight.addmm_(g.t(), _products(kernel, x, extra_kernel, extra_x, part, basis))
            dz = (g @ weight).view(-1, kernel.shape[1], features)
            torch.bmm(dz, x[part].transpose(1, 2), out=dkernel[part])
            torch.bmm(kernel[part].transpose(1, 2), dz, out=dx[part])
            if dextra_kernel is not None and dextra_x is not None:
                places = _places(kernel, part, basis)
                dz = dz.view(-1, basis, features).neg_()
                torch.bmm(dz, extra_x[places].transpose(1, 2), out=dextra_kernel[places])
                torch.bmm(extra_kernel[places].transpose(1, 2), dz, out=dextra_x[places])
        return dkernel, dx, dweight, dextra_kernel, dextra_x


def _chunks(kernel: Tensor, x: Tensor) -> Iterator[slice]:
    """Slices of groups of which kernel·x is small enough."""
    per_group = max(1, kernel.shape[1] * x.shape[2])
    step = max(1, _CHUNK.get(kernel.device.type, _CHUNK["cuda"]) // per_group)
    return (slice(start, min(start + step, len(kernel))) for start in range(0, len(kernel), step))


def _places(kernel: Tensor, part: slice, basis: int) -> slice:
    width = kernel.shape[1] // basis
    return slice(part.start * width, part.stop * width)


def _products(
    kernel: Tensor, x: Tensor, extra_kernel: Tensor | None, extra_x: Tensor | None, part: slice, basis: int
) -> Tensor:
    """kernel·x of some groups: (places, basis·K)."""
    z = torch.bmm(kernel[part], x[part])
    if extra_kernel is not None and extra_x is not None:
        places = _places(kernel, part, basis)
        z.view(-1, basis, x.shape[2]).baddbmm_(extra_kernel[places], extra_x[places], alpha=-1)
    return z.view(-1, basis * x.shape[2])
