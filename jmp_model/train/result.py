"""What a pre-training run returns, and its summary on disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jmp_model.train.progress import TaskErrors
from jmp_model.train.setup import Run


@dataclass(frozen=True)
class PretrainResult:
    """What a run leaves.

    Attributes:
        out: run folder.
        checkpoint: the last checkpoint.
        steps: optimiser steps done, those before a resumption included.
        total_steps: of the whole run.
        stopped: why it ended before that; empty if it did not.
        before: validation errors per task before the first step.
        after: validation errors per task after the last step, with the averaged weights.
        losses: training loss of each logged step of the whole run.
        seconds: of this call.
    """

    out: Path
    checkpoint: Path
    steps: int
    total_steps: int
    stopped: str
    before: TaskErrors
    after: TaskErrors
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0


def errors_of_row(row: dict[str, Any], tasks: tuple[str, ...]) -> TaskErrors:
    """Validation errors of one logged row, by task."""
    return {
        task: {name: row[f"{task}/{name}"] for name in ("energy_mae", "force_mae", "structures")}
        for task in tasks
        if row.get(f"{task}/structures")
    }


def summarize(result: PretrainResult, run: Run) -> dict[str, Any]:
    """What `summary.json` holds."""
    return {
        "steps": result.steps,
        "total_steps": result.total_steps,
        "stopped": result.stopped,
        "seconds": round(result.seconds, 3),
        "parameters": sum(parameter.numel() for parameter in run.module.parameters()),
        "model": run.config.model,
        "ranks": run.fabric.world_size,
        "precision": run.config.hardware.precision,
        "mixture": {member.name: member.size for member in run.mixture},
        "validation_before": result.before,
        "validation_after": result.after,
        "first_loss": result.losses[0] if result.losses else None,
        "last_loss": result.losses[-1] if result.losses else None,
        "checkpoint": str(result.checkpoint.relative_to(result.out)),
    }
