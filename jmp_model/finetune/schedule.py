"""Learning rates of fine-tuning: warm-up, cosine, then a plateau rule, for each group of layers.

All groups end the cosine at the same absolute rate, `end_factor` × base: a group with factor f ends at
clamp(end_factor / f, 0.01, 0.99) of its own peak.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from jmp_model.finetune.config import ScheduleSettings


@dataclass(frozen=True)
class GroupSchedule:
    """Rate of one group as a pure function of the step, before the plateau rule.

    Attributes:
        peak: base rate times the group's factor.
        factor: of the group.
        warmup_steps, cosine_steps: W and M.
        start_factor, end_factor: of the recipe.
    """

    peak: float
    factor: float
    warmup_steps: int
    cosine_steps: int
    start_factor: float
    end_factor: float

    def __call__(self, step: int) -> float:
        """Rate of step number `step`, counted from 0; constant from `cosine_steps` on."""
        if step < self.warmup_steps:
            done = step / max(1, self.warmup_steps - 1)
            return self.peak * (self.start_factor + (1.0 - self.start_factor) * done)
        floor = self.peak * min(0.99, max(0.01, self.end_factor / self.factor))
        length = max(1, self.cosine_steps - self.warmup_steps)
        progress = min(1.0, (step - self.warmup_steps) / length)
        return floor + 0.5 * (self.peak - floor) * (1.0 + math.cos(math.pi * progress))


def group_schedule(settings: ScheduleSettings, *, base_lr: float, factor: float, steps_per_epoch: int) -> GroupSchedule:
    """Turn epochs into steps; a run that ends before the cosine does has its cosine end with it."""
    cosine = max(1, round(settings.cosine_epochs * steps_per_epoch))
    warmup = round(settings.warmup_epochs * steps_per_epoch)
    last = total_steps(settings, steps_per_epoch)
    if last < cosine:
        warmup, cosine = round(warmup * last / cosine), last
    return GroupSchedule(
        peak=base_lr * factor,
        factor=factor,
        warmup_steps=min(warmup, cosine),
        cosine_steps=cosine,
        start_factor=settings.start_factor,
        end_factor=settings.end_factor,
    )


def total_steps(settings: ScheduleSettings, steps_per_epoch: int) -> int:
    """Steps at which the run ends at the latest."""
    steps = settings.max_epochs * steps_per_epoch
    return steps if settings.max_steps is None else min(steps, settings.max_steps)


class Plateau:
    """Multiplies all rates by `factor` after more than `patience` validations without improvement.

    Args:
        factor: between 0 and 1.
        patience: validations that may pass.
        threshold: relative improvement that counts.
        higher_is_better: of the metric.
    """

    def __init__(self, factor: float, patience: int, threshold: float, *, higher_is_better: bool = False) -> None:
        self.scale = 1.0
        self._factor, self._patience, self._threshold = factor, patience, threshold
        self._sign = -1.0 if higher_is_better else 1.0
        self._best = math.inf
        self._bad = 0

    def update(self, metric: float) -> None:
        """Take in the metric of one validation."""
        value = self._sign * metric
        margin = 0.0 if math.isinf(self._best) else self._threshold * abs(self._best)
        if value < self._best - margin:
            self._best, self._bad = value, 0
            return
        self._bad += 1
        if self._bad > self._patience:
            self.scale *= self._factor
            self._bad = 0

    def state_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        best = None if math.isinf(self._best) else self._best
        return {"scale": self.scale, "best": best, "bad": self._bad}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.scale, self._bad = float(state["scale"]), int(state["bad"])
        self._best = math.inf if state["best"] is None else float(state["best"])


class EarlyStop:
    """Keeps the best value of the primary metric, and says when to give up.

    Args:
        patience: validations without improvement.
        min_delta: absolute improvement that counts.
        higher_is_better: of the metric.

    Attributes:
        best: best value so far, as measured; None before the first.
    """

    def __init__(self, patience: int, min_delta: float, *, higher_is_better: bool = False) -> None:
        self.best: float | None = None
        self._patience, self._min_delta = patience, min_delta
        self._sign = -1.0 if higher_is_better else 1.0
        self._bad = 0

    def update(self, metric: float) -> bool:
        """Take in a value; whether it is the best so far."""
        if self.best is None or self._sign * metric < self._sign * self.best - self._min_delta:
            self.best, self._bad = metric, 0
            return True
        self._bad += 1
        return False

    @property
    def exhausted(self) -> bool:
        """Whether the last `patience` validations brought no improvement; none at all counts as one."""
        return self._bad >= max(1, self._patience)

    def state_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"best": self.best, "bad": self._bad}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.best, self._bad = state["best"], int(state["bad"])
