"""One run in one folder: made once, gone on with after an interruption, reused when it is finished."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from jmp_data.errors import JmpDataError
from jmp_model.finetune.config import FinetuneConfig
from jmp_model.finetune.trainer import SUMMARY_FILE, finetune
from jmp_model.finetune.watcher import FinetuneWatcher
from jmp_model.train.checkpoint import list_checkpoints
from jmp_model.train.config import PretrainConfig
from jmp_model.train.progress import Watcher
from jmp_model.train.trainer import pretrain

Summary = dict[str, Any]


class ExperimentStoppedError(JmpDataError):
    """A run was told to stop, or its time is used up; the same experiment goes on from its checkpoint."""


def settings_key(*settings: Any) -> str:
    """Short name of a combination of settings, for a folder."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:12]


def read_summary(run: Path) -> Summary | None:
    """Summary of a finished run; None where there is no run or an unfinished one.

    An interrupted pre-training leaves a summary too; it says how far it came.
    """
    path = run / SUMMARY_FILE
    if not path.exists():
        return None
    summary: Summary = json.loads(path.read_text())
    return summary if summary["steps"] == summary.get("total_steps", summary["steps"]) else None


def run_pretraining(config: PretrainConfig, watcher: Watcher | None = None) -> Summary:
    """Finish a pre-training.

    Raises:
        ExperimentStoppedError: it was interrupted; its checkpoint is kept.
    """
    if read_summary(config.out) is None:
        pretrain(config, resume=bool(list_checkpoints(config.out)), watcher=watcher)
    return _finished(config.out)


def run_finetuning(config: FinetuneConfig, watcher: FinetuneWatcher | None = None) -> Summary:
    """Finish a fine-tuning run.

    Raises:
        ExperimentStoppedError: it was interrupted; its checkpoint is kept.
    """
    if read_summary(config.out) is None:
        finetune(config, resume=bool(list_checkpoints(config.out)), watcher=watcher)
    return _finished(config.out)


def run_all_finetunings(
    configs: Sequence[FinetuneConfig],
    *,
    workers: int,
    watcher: FinetuneWatcher | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Summary]:
    """Finish all runs, several at a time if asked to.

    Args:
        configs: of the runs, each with a folder of its own.
        workers: processes, of one thread each; with one, the runs are made here, one after the other.
        watcher: told about the runs that are made here.
        progress: told after each run how many of how many are finished.

    Returns:
        Their summaries, in the order of `configs`.

    Raises:
        ExperimentStoppedError: a run was interrupted.
    """
    missing = [config for config in configs if read_summary(config.out) is None]
    if workers == 1 or len(missing) < 2:
        for number, config in enumerate(missing, start=1):
            run_finetuning(config, watcher)
            progress(number, len(missing))
    else:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _use_one_thread) as pool:
            futures = [pool.submit(run_finetuning, config) for config in missing]
            try:
                for number, future in enumerate(as_completed(futures), start=1):
                    future.result()
                    progress(number, len(missing))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return [_finished(config.out) for config in configs]


def _finished(run: Path) -> Summary:
    summary = read_summary(run)
    if summary is None:
        raise ExperimentStoppedError(f"{run}: stopped before its end; the same command goes on from there")
    return summary


def _use_one_thread() -> None:
    torch.set_num_threads(1)
