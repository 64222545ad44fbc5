"""The table of the paper over whatever has been run, published figures beside it, and what has not been run."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jmp_data.errors import ManifestError
from jmp_model.finetune.tasks import Published, paper_tasks, published_tasks
from jmp_model.finetune.trainer import SUMMARY_FILE


@dataclass(frozen=True)
class ResultRow:
    """One task.

    Attributes:
        task: its name.
        unit: of all figures.
        metric: mae or balanced_accuracy.
        scores: test metric of each run: (seed, fold, value).
        from_scratch: whether the runs started without a checkpoint; None if there are both kinds.
        published: figures of the paper; None for a task that is not among its forty.
    """

    task: str
    unit: str
    metric: str
    scores: tuple[tuple[int, int | None, float], ...]
    from_scratch: bool | None
    published: Published | None

    @property
    def mean(self) -> float:
        """Mean over all runs; over folds, of the mean over seeds of each fold. NaN without runs."""
        by_fold: dict[int | None, list[float]] = {}
        for _, fold, value in self.scores:
            by_fold.setdefault(fold, []).append(value)
        return statistics.fmean(statistics.fmean(values) for values in by_fold.values()) if by_fold else math.nan

    @property
    def spread(self) -> float:
        """Standard deviation over the runs; NaN for fewer than two."""
        values = [value for _, _, value in self.scores]
        return statistics.stdev(values) if len(values) > 1 else math.nan

    @property
    def folds(self) -> tuple[int, ...]:
        """Folds that were run."""
        return tuple(sorted({fold for _, fold, _ in self.scores if fold is not None}))

    def compared(self, model: str) -> float | None:
        """Published figure of JMP-S, JMP-L, scratch-S or scratch-L for the folds that were run, if there is one.

        Single folds are published for fold 0 only; anything else is compared with means over five.
        """
        if self.published is None:
            return None
        return self.published.figures(fold=0 if self.folds in ((), (0,)) else 1).get(model)


def collect_results(runs: Iterable[Path]) -> list[ResultRow]:
    """One row per task and way of starting, tasks of the paper first and in its order.

    Args:
        runs: run folders of fine-tuning, or folders of such folders.

    Raises:
        ManifestError: a folder holds no finished run.
    """
    summaries = [summary for folder in runs for summary in _summaries(folder)]
    groups: dict[tuple[str, bool], list[dict[str, Any]]] = {}
    for summary in summaries:
        if summary["test"]:
            groups.setdefault((summary["task"], summary["start"] is None), []).append(summary)
    order = {name: number for number, name in enumerate(published_tasks())}
    keys = sorted(groups, key=lambda key: (order.get(key[0], len(order)), key))
    return [_row(*key, groups[key]) for key in keys]


def not_run(rows: Sequence[ResultRow]) -> list[str]:
    """Tasks of the paper without any run."""
    done = {row.task for row in rows}
    return [task.name for task in paper_tasks() if task.name not in done]


def _summaries(folder: Path) -> list[dict[str, Any]]:
    loaded = [json.loads(path.read_text()) for path in sorted(folder.rglob(SUMMARY_FILE))]
    found = [summary for summary in loaded if "task" in summary]  # data sets and pre-training have summaries too
    if not found:
        raise ManifestError(f"{folder}: no finished fine-tuning run here (no {SUMMARY_FILE} of one)")
    return found


def _row(task: str, from_scratch: bool, summaries: list[dict[str, Any]]) -> ResultRow:
    first = summaries[0]
    primary = first["primary"]
    known = published_tasks().get(task)
    return ResultRow(
        task=task,
        unit=first["units"][primary],
        metric=first["metrics"][primary],
        scores=tuple(sorted(((s["seed"], s["fold"], s["test"][primary]) for s in summaries), key=str)),
        from_scratch=from_scratch,
        published=None if known is None else known.published,
    )


COLUMNS = ("task", "unit", "start", "runs", "test", "spread", "JMP-S", "JMP-L", "scratch-S", "scratch-L")


def table_cells(rows: Sequence[ResultRow]) -> list[list[str]]:
    """Rows of text under `COLUMNS`."""
    return [
        [
            row.task,
            row.unit,
            "scratch" if row.from_scratch else "checkpoint",
            str(len(row.scores)),
            _figure(row.mean),
            _figure(row.spread),
            *[_figure(row.compared(model)) for model in COLUMNS[-4:]],
        ]
        for row in rows
    ]


def as_csv(rows: Sequence[ResultRow]) -> str:
    """The table as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(table_cells(rows))
    return text.getvalue()


def as_markdown(rows: Sequence[ResultRow]) -> str:
    """The table as Markdown, and what has not been run."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(cells) + " |" for cells in table_cells(rows)]
    missing = not_run(rows)
    if missing:
        lines += ["", f"Not run: {', '.join(missing)}."]
    return "\n".join(lines) + "\n"


def _figure(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.4g}"
