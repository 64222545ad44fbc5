"""Several runs of one task: seeds, folds, or both, in folders of their own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from jmp_data.errors import ManifestError
from jmp_model.finetune.checks import check_data
from jmp_model.finetune.config import FinetuneConfig
from jmp_model.finetune.result import FinetuneResult
from jmp_model.finetune.trainer import SUMMARY_FILE, finetune, refuse_other_settings
from jmp_model.finetune.watcher import FinetuneWatcher
from jmp_model.train.checkpoint import list_checkpoints
from jmp_model.train.config import CONFIG_FILE, read_recipe


def plan_series(
    config: FinetuneConfig, *, seeds: Sequence[int], folds: Sequence[int] | None = None
) -> list[FinetuneConfig]:
    """The runs of a series, a folder each.

    Args:
        config: `out` is the folder of the series; its `seed` and `fold` are replaced.
        seeds: seeds of heads and order.
        folds: folds; by default all of a task that has folds.

    Raises:
        ManifestError: a fold that the task does not have, or no seed.
    """
    if not seeds:
        raise ManifestError("a series needs at least one seed")
    if folds is None:
        folds = range(config.task.folds or 0)
    for wanted in folds:
        config.task.check_fold(wanted)
    chosen: list[int | None] = [*folds] or [None]
    return [
        config.model_copy(update={"seed": seed, "fold": fold, "out": config.out / _folder(seed, fold)})
        for fold in chosen
        for seed in seeds
    ]


def _folder(seed: int, fold: int | None) -> Path:
    return Path(f"seed{seed}" if fold is None else f"fold{fold}-seed{seed}")


def finetune_series(
    config: FinetuneConfig,
    *,
    seeds: Sequence[int] = (0,),
    folds: Sequence[int] | None = None,
    watcher: FinetuneWatcher | None = None,
) -> list[FinetuneResult]:
    """Run a task for each seed and fold; what is finished is not run again, what was stopped goes on.

    The data of all runs are checked before the first begins. `hardware.max_hours` counts for the whole series.

    Args:
        config: see `plan_series`.
        seeds: see `plan_series`.
        folds: see `plan_series`.
        watcher: told about all runs.

    Returns:
        Results of the runs done now; the last one may have been interrupted.

    Raises:
        ManifestError: see `plan_series`; data that do not fit, or a finished run with other settings.
    """
    begin = time.monotonic()
    runs = plan_series(config, seeds=seeds, folds=folds)
    waiting = [run for run in runs if not _finished(run)]
    for run in waiting:
        check_data(run)
    results: list[FinetuneResult] = []
    for number, run in enumerate(waiting, start=len(runs) - len(waiting) + 1):
        if watcher is not None:
            watcher.message(f"run {number} of {len(runs)}: {run.out}")
        result = finetune(_shortened(run, begin), resume=bool(list_checkpoints(run.out)), watcher=watcher)
        results.append(result)
        if not result.finished:
            break
    return results


def _finished(run: FinetuneConfig) -> bool:
    if not (run.out / SUMMARY_FILE).exists():
        return False
    refuse_other_settings(run, read_recipe(run.out / CONFIG_FILE))
    return True


def _shortened(run: FinetuneConfig, begin: float) -> FinetuneConfig:
    """The run with what is left of the time of the series."""
    hours = run.hardware.max_hours
    if hours is None:
        return run
    left = max(1.0e-9, hours - (time.monotonic() - begin) / 3600.0)
    return run.model_copy(update={"hardware": run.hardware.model_copy(update={"max_hours": left})})
