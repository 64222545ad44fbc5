"""What a fine-tuning run tells whoever watches it."""

from __future__ import annotations

from typing import Protocol

from jmp_model.finetune.step import StepReport


class FinetuneWatcher(Protocol):
    """Receives events on rank 0."""

    def message(self, text: str) -> None:
        """One line for people."""

    def step_done(self, report: StepReport, total_steps: int) -> None:
        """An optimiser step is done."""

    def validated(self, step: int, metrics: dict[str, float], *, is_best: bool) -> None:
        """Validation after `step` steps is done; target → metric in report units."""


class SilentFinetuneWatcher:
    """Watches nothing."""

    def message(self, text: str) -> None:
        """Ignore."""

    def step_done(self, report: StepReport, total_steps: int) -> None:
        """Ignore."""

    def validated(self, step: int, metrics: dict[str, float], *, is_best: bool) -> None:
        """Ignore."""
