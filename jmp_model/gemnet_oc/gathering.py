"""Nodes that move between atoms and edges, made on the same terms as those in `fused`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from jmp_model.gemnet_oc.fused import SILU_GAIN, product, run, silu_backward, times, twin_gradients, weight_gradient
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
        dm = product(dz, weight[:, 2 * atom :], SILU_GAIN) if ctx.needs_input_grad[0] else None
        return dm, dh * SILU_GAIN, dweight.mul_(SILU_GAIN), None, None


# ---------------------------------------------------------------------------------------------------------------------


def aggregate(
    kernels: Sequence[Tensor], x: Tensor, weight: Tensor, extra: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Bilinear aggregation: weight applied to vec(kernel·x) of each output place.

    Args:
        kernels: for each block (groups, places·basis, inner), coefficients from inner to output places of each group.
        x: (inner places of all groups, K), features.
        weight: (out, basis·K), basis index slow.
        extra: (output places of all groups, basis, s) and (the same, s, K), whose product is subtracted from kernel·x.

    Returns:
        (output places of all groups, out).
    """
    return run(_Aggregate, _aggregate, x, weight, *(extra or (None, None)), *kernels)


def _aggregate(
    x: Tensor, weight: Tensor, extra_kernel: Tensor | None, extra_x: Tensor | None, *kernels: Tensor
) -> Tensor:
    features = x.shape[1]
    parts = torch.split(x, [kernel.shape[0] * kernel.shape[2] for kernel in kernels])
    z = torch.cat(
        [
            (kernel @ part.view(kernel.shape[0], kernel.shape[2], features)).view(-1, weight.shape[1])
            for kernel, part in zip(kernels, parts, strict=True)
        ]
    )
    if extra_kernel is not None and extra_x is not None:
        z = z - torch.bmm(extra_kernel, extra_x).view(z.shape)
    return functional.linear(z, weight)


_CHUNK = {"cpu": 1 << 21, "cuda": 1 << 28}
"""Numbers of kernel·x held at once: on a CPU what stays in the cache, on a GPU what is a small part of its memory."""


class _Aggregate(torch.autograd.Function):
    """Never holds kernel·x as a whole: it is many times larger than its factors and its result."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, extra_kernel: Tensor | None, extra_x: Tensor | None, *kernels: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, weight, extra_kernel, extra_x, *kernels)
        features = x.shape[1]
        basis = weight.shape[1] // features
        places = sum(kernel.shape[0] * kernel.shape[1] for kernel in kernels) // basis
        out = x.new_empty(places, weight.shape[0])
        for part in _chunks(kernels, features, basis):
            z = _products(part, kernels, x, extra_kernel, extra_x)
            torch.mm(z, weight.t(), out=out[part.places])
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, weight, extra_kernel, extra_x, *kernels = ctx.saved_tensors
        if torch.is_grad_enabled():
            return twin_gradients(ctx, _aggregate, ctx.saved_tensors, grads[0])
        features = x.shape[1]
        basis = weight.shape[1] // features
        dkernels = [torch.empty_like(kernel) for kernel in kernels]
        dx, dweight = torch.empty_like(x), torch.zeros_like(weight)
        dextra_kernel = None if extra_kernel is None else torch.empty_like(extra_kernel)
        dextra_x = None if extra_x is None else torch.empty_like(extra_x)
        grad = grads[0].contiguous()
        for part in _chunks(kernels, features, basis):
            kernel, g = kernels[part.block][part.groups], grad[part.places]
            dweight.addmm_(g.t(), _products(part, kernels, x, extra_kernel, extra_x))
            dz = (g @ weight).view(kernel.shape[0], -1, features)
            torch.bmm(dz, part.inner_of(x).transpose(1, 2), out=dkernels[part.block][part.groups])
            torch.bmm(kernel.transpose(1, 2), dz, out=part.inner_of(dx))
            if dextra_kernel is not None and dextra_x is not None:
                dz = dz.view(-1, basis, features).neg_()
                torch.bmm(dz, extra_x[part.places].transpose(1, 2), out=dextra_kernel[part.places])
                torch.bmm(extra_kernel[part.places].transpose(1, 2), dz, out=dextra_x[part.places])
        return dx, dweight, dextra_kernel, dextra_x, *dkernels


@dataclass(frozen=True)
class _Chunk:
    """Some groups of one block: where they are in its kernel, and which inner and output places are theirs."""

    block: int
    groups: slice
    inner: slice
    places: slice

    def inner_of(self, x: Tensor) -> Tensor:
        """View (groups, inner, K) of (inner places of all groups, K)."""
        return x[self.inner].view(self.groups.stop - self.groups.start, -1, x.shape[1])


def _chunks(kernels: Sequence[Tensor], features: int, basis: int) -> Iterator[_Chunk]:
    """Groups of which kernel·x is small enough to be held."""
    inner = places = 0
    for block, kernel in enumerate(kernels):
        groups, rows, width = kernel.shape
        limit = _CHUNK.get(kernel.device.type, _CHUNK["cuda"])
        step = max(1, limit // max(1, rows * features))
        for start in range(0, groups, step):
            stop = min(start + step, groups)
            yield _Chunk(
                block,
                slice(start, stop),
                slice(inner + start * width, inner + stop * width),
                slice(places + start * rows // basis, places + stop * rows // basis),
            )
        inner, places = inner + groups * width, places + groups * rows // basis


def _products(
    part: _Chunk, kernels: Sequence[Tensor], x: Tensor, extra_kernel: Tensor | None, extra_x: Tensor | None
) -> Tensor:
    """kernel·x of some groups: (places, basis·K)."""
    z = torch.bmm(kernels[part.block][part.groups], part.inner_of(x))
    z = z.view(part.places.stop - part.places.start, -1)
    if extra_kernel is not None and extra_x is not None:
        extra = extra_kernel[part.places]
        z.view(*extra.shape[:2], -1).baddbmm_(extra, extra_x[part.places], alpha=-1)
    return z
