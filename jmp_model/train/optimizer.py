"""The optimiser, and the two things done to gradients before it sees them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def build_adamw(
    model: nn.Module,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    weight_decay: float = 0.1,
) -> torch.optim.AdamW:
    """AdamW with one group: decay acts on everything, biases and embeddings included."""
    return torch.optim.AdamW(model.parameters(), lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the rate of all groups, each times its own `lr_factor` if it has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_factor", 1.0)


def fill_missing_gradients(model: nn.Module) -> None:
    """Give exact zeros to parameters that the batch did not touch, such as quadruplet layers without quadruplets.

    Without a gradient AdamW would skip them: no decay, no momentum, another trajectory.
    """
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)


@torch.no_grad()
def divide_shared_gradients(model: nn.Module, divisors: Mapping[str, int]) -> None:
    """Divide the gradients of parameters that several blocks share by the number of uses.

    Args:
        model: names its parameters as `divisors` does.
        divisors: parameter name → number of uses per forward pass.
    """
    for name, parameter in model.named_parameters():
        if name in divisors and parameter.grad is not None:
            parameter.grad.div_(divisors[name])


def gradient_norm(model: nn.Module) -> Tensor:
    """Global L2 norm of all gradients, a scalar."""
    return torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
