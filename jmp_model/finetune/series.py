"""Several runs of one task: seeds, folds, or both, in folders of their own."""

from __future__ import annotations

from collections.abc import Sequence

from jmp_data.errors import ManifestError
from jmp_model.finetune.config import FinetuneConfig
from jmp_model.finetune.trainer import SUMMARY_FILE, FinetuneResult, finetune
from jmp_model.finetune.watcher import FinetuneWatcher
from jmp_model.train.checkpoint import list_checkpoints


def finetune_series(
    config: FinetuneConfig,
    *,
    seeds: Sequence[int] = (0,),
    folds: Sequence[int] | None = None,
    watcher: FinetuneWatcher | None = None,
) -> list[FinetuneResult]:
    """Run a task for each seed and fold; what is finished is not run again, what was stopped goes on.

    Args:
        config: `out` is the folder of the series; its `seed` and `fold` are replaced.
        seeds: seeds of heads and order.
        folds: folds; by default all of a task that has folds.
        watcher: told about all runs.

    Returns:
        Results of the runs done now.

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
    runs = [(fold, seed) for fold in chosen for seed in seeds]
    results = []
    for fold, seed in runs:
        name = f"seed{seed}" if fold is None else f"fold{fold}-seed{seed}"
        single = config.model_copy(update={"seed": seed, "fold": fold, "out": config.out / name})
        if (single.out / SUMMARY_FILE).exists():
            continue
        results.append(finetune(single, resume=bool(list_checkpoints(single.out)), watcher=watcher))
    return results
