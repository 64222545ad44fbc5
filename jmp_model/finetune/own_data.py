"""From files of one's own to a fine-tuned model and its report, in one call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jmp_data import open_dataset
from jmp_data.errors import ManifestError
from jmp_model.finetune.config import load_finetune_config
from jmp_model.finetune.own_task import own_task, prepare_own_data
from jmp_model.finetune.tasks import Forces
from jmp_model.finetune.trainer import FinetuneResult, finetune
from jmp_model.finetune.watcher import FinetuneWatcher, SilentFinetuneWatcher
from jmp_model.train.config import CONFIG_FILE

DATA_FOLDER = "data"


def finetune_files(
    files: Sequence[Path],
    *,
    out: Path,
    start: Path | None = None,
    forces: Forces = "gradient",
    targets: Sequence[str] | None = None,
    overrides: Sequence[str] = (),
    resume: bool = False,
    watcher: FinetuneWatcher | None = None,
    declared: dict[str, Any] | None = None,
    **values: Any,
) -> FinetuneResult:
    """Read, check and split files, fit references, fine-tune, evaluate, report.

    Args:
        files: anything that `jmp-data build` reads; data sets go to `out`/data, with the manifest of all guesses.
        out: run folder.
        start: checkpoint; without one the model is trained from scratch.
        forces: how forces are made, if there are any.
        targets: columns to learn; energy and forces by default.
        overrides: `key=value` of the recipe.
        resume: go on from the last checkpoint in `out`.
        watcher: told about guesses and progress.
        declared: what is known about the files, such as `{"units": {"energy": "kcal/mol"}}`.
        **values: top-level fields of the configuration, such as `seed` or `keep_heads`.

    Raises:
        RawFileError: a file cannot be read.
        ManifestError: bad configuration, or too few structures; before any compute is spent.
    """
    watcher = watcher or SilentFinetuneWatcher()
    if resume:
        config = load_finetune_config(out=out, resume=True, overrides=overrides)
        return finetune(config, resume=True, watcher=watcher)
    if (out / CONFIG_FILE).exists():
        raise ManifestError(f"{out}: already holds a run; go on with --resume, or choose another folder")
    splits = prepare_own_data(files, out / DATA_FOLDER, report=watcher.message, **(declared or {}))
    task = own_task(open_dataset(splits["train"]), forces=forces, targets=targets)
    for line in _defaults(task.model_dump(mode="json")):
        watcher.message(line)
    where = [f"data.{name}={path}" for name, path in splits.items()]
    config = load_finetune_config(task, overrides=[*where, *overrides], out=out, start=start, **values)
    result = finetune(config, watcher=watcher)
    watcher.message(f"Use it: JMPCalculator({str(out)!r}), or jmp predict FILE --from {out}")
    return result


def _defaults(task: dict[str, Any]) -> list[str]:
    learned = [
        f"{name} ({target['kind']}, {'fitted' if target['references'] == 'fit' else 'no'} element references)"
        for name, target in task["targets"].items()
    ]
    graph = task["graph"]
    lines = [f"Learns {', '.join(learned)}; graphs to {graph['cutoff']} Å with {graph['max_neighbors']} neighbours"]
    if task["forces"] is not None:
        lines.append(f"Forces: {task['forces']}; the best weights are those with the smallest force error")
    return lines
