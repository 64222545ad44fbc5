"""Whole tensors from sharded ones and back, so that checkpoints look the same whatever strategy wrote them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: Tensor) -> Tensor:
    """The full tensor, on the CPU; a collective operation if it is sharded."""
    detached = tensor.detach()
    if isinstance(detached, DTensor):
        detached = detached.full_tensor()
    return detached.cpu()


def reshard(module: nn.Module) -> None:
    """Let go of gathered parameters: after a forward pass without a backward pass, the outermost ones stay whole."""
    if isinstance(module, FSDPModule):
        module.reshard()


@torch.no_grad()
def assign(target: Tensor, value: Tensor) -> None:
    """Copy a full tensor into one that may be sharded."""
    value = value.to(device=target.device, dtype=target.dtype)
    if isinstance(target, DTensor):
        value = distribute_tensor(value, target.device_mesh, target.placements)
    target.copy_(value)


@torch.no_grad()
def like(parameter: Tensor, value: Tensor) -> Tensor:
    """A full tensor, sharded as `parameter` is if shapes agree (scalars stay whole, where they are)."""
    if value.shape != parameter.shape:
        return value.clone()
    out = torch.empty_like(parameter)
    assign(out, value)
    return out
