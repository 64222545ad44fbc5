"""A checkpoint of any form: one folder, a run with several, or a released file."""

from __future__ import annotations

from pathlib import Path

from jmp_data.errors import MissingFileError
from jmp_model.train.checkpoint import STATE_FILE, Checkpoint, read_checkpoint
from jmp_model.weights.convert import Weights, import_released

BEST = "best"
"""Folder in a fine-tuning run that holds its best weights."""


def read_any_checkpoint(path: Path, *, weights: Weights = "ema") -> Checkpoint:
    """A checkpoint folder, the best or latest one of a run, or a released file; without the state of the optimiser.

    Args:
        path: folder or file.
        weights: of a released file, see `import_released`.

    Raises:
        MissingFileError: there is nothing at that path.
        CheckpointError: it is no checkpoint, or a damaged one.
    """
    if path.is_file():
        return import_released(path, weights=weights).checkpoint
    if not path.exists():
        raise MissingFileError(f"{path}: there is no checkpoint, run folder or released file of that name")
    best = path / BEST
    return read_checkpoint(best if (best / STATE_FILE).exists() else path, with_optimizer=False)
