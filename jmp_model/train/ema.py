"""Exponential moving average of the weights: a copy of them before the first step, no warm-up, no bias correction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from jmp_data.errors import CheckpointError
from jmp_model.train.sharding import assign


class WeightAverage:
    """Averages of all parameters of a model, e ← decay·e + (1 − decay)·p after every step.

    Attributes:
        decay: between 0 and 1.
        average: parameter name → averaged tensor.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.average: dict[str, Tensor] = {name: p.detach().clone() for name, p in model.named_parameters()}
        self._update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after an optimiser step."""
        parameters = [p.detach() for p in model.parameters()]
        self._update(list(self.average.values()), parameters, 0)

    @torch.no_grad()
    def load(self, average: Mapping[str, Tensor]) -> None:
        """Continue from stored averages.

        Raises:
            CheckpointError: other names than those of the model.
        """
        if average.keys() != self.average.keys():
            differ = sorted(average.keys() ^ self.average.keys())
            raise CheckpointError(
                f"averaged weights belong to another model: {len(differ)} names differ, first {differ[0]}"
            )
        for name, value in average.items():
            assign(self.average[name], value)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Let the model have the averaged weights inside the block, and its own again after it."""
        live = {name: p.detach().clone() for name, p in model.named_parameters()}
        _copy_into(model, self.average)
        try:
            yield
        finally:
            _copy_into(model, live)


@torch.no_grad()
def _copy_into(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        parameter.copy_(values[name])
