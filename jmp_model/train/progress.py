"""What a run tells whoever watches it; the command line draws bars from it, tests listen."""

from __future__ import annotations

from typing import Protocol

from jmp_model.train.step import StepReport

TaskErrors = dict[str, dict[str, float]]
"""Task → energy_mae (eV per structure), force_mae (eV/Å), structures."""


class Watcher(Protocol):
    """Receives events on rank 0."""

    def message(self, text: str) -> None:
        """One line for people."""

    def step_done(self, report: StepReport, total_steps: int) -> None:
        """An optimiser step is done."""

    def validated(self, step: int, errors: TaskErrors) -> None:
        """Validation after `step` steps is done."""


class SilentWatcher:
    """Watches nothing."""

    def message(self, text: str) -> None:
        """Ignore."""

    def step_done(self, report: StepReport, total_steps: int) -> None:
        """Ignore."""

    def validated(self, step: int, errors: TaskErrors) -> None:
        """Ignore."""
