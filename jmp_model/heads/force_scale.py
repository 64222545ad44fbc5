"""Gradient forces in half precision.

The energy is scaled up before it is differentiated, so that small gradients do not vanish, and down again where large
ones overflow.
"""

from __future__ import annotations

import torch
from torch import Tensor


class ForceScale:
    """A power of two that finds its own size; forces come out as if it were not there.

    Independent of the loss scaler, which acts on the second differentiation. Numbers are the published ones.

    Args:
        start: first scale.
        growth_interval: evaluations without overflow after which it doubles.
        retries: how often it halves within one evaluation.

    Attributes:
        value: the scale.
    """

    def __init__(self, start: float = 256.0, *, growth_interval: int = 2000, retries: int = 50) -> None:
        self.value = start
        self._growth_interval = growth_interval
        self._retries = retries
        self._finite = 0

    def forces(self, energy: Tensor, positions: Tensor, *, create_graph: bool) -> Tensor:
        """Forces −∂E/∂positions, (N, 3), as `gradient_forces` gives them.

        They are not finite only if no scale made them so.
        """
        if not energy.requires_grad:
            return torch.zeros_like(positions)
        for _ in range(self._retries + 1):
            (gradient,) = torch.autograd.grad(
                energy.sum() * self.value, positions, create_graph=create_graph, retain_graph=True, allow_unused=True
            )
            forces: Tensor = torch.zeros_like(positions) if gradient is None else -gradient / self.value
            if bool(torch.isfinite(forces).all()):
                self._count()
                return forces
            self.value *= 0.5
            self._finite = 0
        return forces

    def _count(self) -> None:
        self._finite += 1
        if self._finite >= self._growth_interval:
            self.value *= 2.0
            self._finite = 0

    def state_dict(self) -> dict[str, float]:
        """JSON-ready."""
        return {"value": self.value, "finite": self._finite}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Inverse of `state_dict`."""
        self.value, self._finite = float(state["value"]), int(state["finite"])
