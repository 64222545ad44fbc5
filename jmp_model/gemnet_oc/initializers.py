"""Weight initialisation: orthogonal, then rows standardised, so that a layer keeps the variance of its input."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def standardize(kernel: Tensor, *, eps: float = 1e-6) -> Tensor:
    """Give a kernel zero mean and unit (unbiased) variance along its input axes.

    Args:
        kernel: (out, in), standardised per row; or (R, S, I), standardised per last index.
        eps: added to the variance.
    """
    axis = [0, 1] if kernel.dim() == 3 else [1]
    variance, mean = torch.var_mean(kernel, dim=axis, unbiased=True, keepdim=True)
    return (kernel - mean) / torch.sqrt(variance + eps)


@torch.no_grad()
def he_orthogonal_(weight: Tensor) -> Tensor:
    """Fill a weight in place: semi-orthogonal, standardised, divided by √fan_in.

    Args:
        weight: (out, in) with fan_in = in; or (R, S, I) with fan_in = R·S, made orthogonal as (R, S·I).
    """
    torch.nn.init.orthogonal_(weight)
    fan_in = weight.shape[0] * weight.shape[1] if weight.dim() == 3 else weight.shape[1]
    # One input gives rows of a single entry, whose variance is undefined: leave those orthogonal.
    if weight.numel() // weight.shape[-1 if weight.dim() == 3 else 0] > 1:
        weight.copy_(standardize(weight))
    return weight.mul_(1 / math.sqrt(fan_in))
