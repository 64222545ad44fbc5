"""The learning rate as a pure function of the step: linear warm-up, then half a cosine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

PastEnd = Literal["hold", "swing"]


@dataclass(frozen=True)
class WarmupCosine:
    """Linear from `start_factor`·peak to peak, then a cosine down to `end_factor`·peak at `total_steps`.

    The published recipe divides by `warmup_steps` − 1, so the peak is reached one step before the warm-up ends and
    used twice. Past the end the original climbs back to the peak along the mirrored cosine and swings on; here the rate
    holds at its floor unless `past_end` is "swing".

    Attributes:
        peak: highest learning rate.
        warmup_steps: steps of the linear part.
        total_steps: step at which the floor is reached.
        start_factor: first rate, as a fraction of the peak.
        end_factor: floor, as a fraction of the peak.
        past_end: "hold" the floor, or "swing" as the original does.
    """

    peak: float
    warmup_steps: int
    total_steps: int
    start_factor: float = 0.2
    end_factor: float = 0.1
    past_end: PastEnd = "hold"

    def __call__(self, step: int) -> float:
        """Learning rate of the optimiser step number `step`, counted from 0."""
        if step < self.warmup_steps:
            done = step / max(1, self.warmup_steps - 1)
            return self.peak * (self.start_factor + (1.0 - self.start_factor) * done)
        length = max(1, self.total_steps - self.warmup_steps)
        progress = (step - self.warmup_steps) / length
        if self.past_end == "hold":
            progress = min(1.0, progress)
        cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
        return self.peak * (self.end_factor + (1.0 - self.end_factor) * cosine)
