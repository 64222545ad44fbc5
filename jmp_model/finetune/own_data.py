"""From files of one's own to a fine-tuned model and its report, in one call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jmp_data import open_dataset
from jmp_data.errors import ManifestError, MissingFileError
from jmp_model.finetune.config import FinetuneConfig, load_finetune_config
from jmp_model.finetune.own_task import own_task, prepare_own_data
from jmp_model.finetune.result import FinetuneResult
from jmp_model.finetune.tasks import Forces, TaskSpec
from jmp_model.finetune.trainer import finetune
from jmp_model.finetune.watcher import FinetuneWatcher, SilentFinetuneWatcher
from jmp_model.train.config import CONFIG_FILE

DATA_FOLDER = "data"


def finetune_files(
    files: Sequence[Path],
    *,
    out: Path,
    resume: bool = False,
    watcher: FinetuneWatcher | None = None,
    **settings: Any,
) -> FinetuneResult:
    """Read, check and split files, fit references, fine-tune, evaluate, report.

    Args:
        files: anything that `jmp-data build` reads; data sets go to `out`/data, with the manifest of all guesses.
        out: run folder.
        resume: go on from the last checkpoint in `out`.
        watcher: told about guesses and progress.
        **settings: of `configure_files`.

    Raises:
        RawFileError: a file cannot be read.
        ManifestError: bad configuration, or too few structures; before any compute is spent.
    """
    watcher = watcher or SilentFinetuneWatcher()
    if resume:
        config = load_finetune_config(out=out, resume=True, overrides=settings.get("overrides", ()))
    else:
        config = configure_files(files, out=out, watcher=watcher, **settings)
    result = finetune(config, resume=resume, watcher=watcher)
    if result.test:
        watcher.message(usage_hint(out))
    return result


def configure_files(
    files: Sequence[Path],
    *,
    out: Path,
    watcher: FinetuneWatcher,
    start: Path | None = None,
    task: TaskSpec | None = None,
    forces: Forces | None = None,
    targets: Sequence[str] | None = None,
    overrides: Sequence[str] = (),
    declared: dict[str, Any] | None = None,
    **values: Any,
) -> FinetuneConfig:
    """Build data sets from files and configure a run on them; nothing is trained yet.

    Args:
        files: as in `finetune_files`.
        out: run folder.
        watcher: told about guesses and defaults.
        start: checkpoint; without one the model is trained from scratch.
        task: what to learn and how; made from what the files hold by default.
        forces: how forces are made, if there are any; gradient by default.
        targets: columns to learn; energy and forces by default.
        overrides: `key=value` of the recipe.
        declared: what is known about the files, such as `{"units": {"energy": "kcal/mol"}}`.
        **values: top-level fields of the configuration, such as `seed` or `keep_heads`.

    Raises:
        RawFileError: a file cannot be read.
        ManifestError: bad configuration, or too few structures.
    """
    if (out / CONFIG_FILE).exists():
        raise ManifestError(f"{out}: already holds a run; go on with --resume, or choose another folder")
    if start is not None and not start.exists():
        raise MissingFileError(f"{start}: there is no checkpoint, run folder or released file of that name")
    splits = prepare_own_data(
        files, out / DATA_FOLDER, report=watcher.message, wanted=targets or (), **(declared or {})
    )
    if task is None:
        task = own_task(open_dataset(splits["train"]), forces=forces or "gradient", targets=targets)
    for line in _defaults(task):
        watcher.message(line)
    where = [f"data.{name}={path}" for name, path in splits.items()]
    return load_finetune_config(task, overrides=[*where, *overrides], out=out, start=start, **values)


def usage_hint(out: Path) -> str:
    """How to use the model of a run."""
    return (
        f"Report: {out / 'report.html'}. In ASE: from jmp_model import JMPCalculator; "
        f"atoms.calc = JMPCalculator({str(out)!r}). On files: jmp predict FILE --from {out} --out predicted.extxyz"
    )


def _defaults(task: TaskSpec) -> list[str]:
    learned = [
        f"{name} ({target.kind}, {'fitted' if target.references == 'fit' else 'no'} element references)"
        for name, target in task.targets.items()
    ]
    graph = task.graph
    lines = [f"Learns {', '.join(learned)}; graphs to {graph.cutoff} Å with {graph.max_neighbors} neighbours"]
    if task.forces is not None:
        lines.append(f"Forces: {task.forces}; the best weights are those with the smallest {task.primary} error")
    return lines
