"""`jmp evaluate` and `jmp results`: errors of one model, and of all runs, beside the published ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from jmp_data.errors import ManifestError

from .console import find_device, out, print_json, print_table

if TYPE_CHECKING:
    from jmp_model.finetune.evaluate import Evaluation
    from jmp_model.finetune.results import ResultRow


def register(app: typer.Typer) -> None:
    """Add the verbs of this module."""
    app.command()(evaluate)
    app.command()(results)


def evaluate(
    model: Annotated[Path, typer.Argument(help="Run folder (its best weights), checkpoint, or released .pt file.")],
    task: Annotated[
        str | None, typer.Option(help="Task such as qm9:U0, or a my.yaml. Default: the one it was tuned for.")
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(help="Output folder of jmp-data build. Default: where the run had its data, else shards."),
    ] = None,
    data: Annotated[str | None, typer.Option(help="Folder or URL of one split, instead of looking it up.")] = None,
    split: Annotated[Literal["train", "val", "test"], typer.Option(help="Which split.")] = "test",
    fold: Annotated[int | None, typer.Option(min=0, help="Fold of a task that has folds. Default: the run's.")] = None,
    heads: Annotated[str | None, typer.Option(help="For a pre-trained model: task whose heads to use.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Structures evaluated together.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "auto",
    report: Annotated[Path | None, typer.Option(help="Folder for a page with parity plots and worst cases.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure a model on a task, in the published units and beside the published figures.

    Example: jmp evaluate ethanol --task rmd17:ethanol --root shards
    """
    from jmp_model.finetune.config import DataSettings
    from jmp_model.finetune.evaluate import evaluate_checkpoint

    if root is not None and data is not None:
        raise ManifestError("give either --root or --data")
    settings = None
    if root is not None or data is not None:
        settings = DataSettings.model_validate({"root": root} if data is None else {split: data})
    found = evaluate_checkpoint(
        model,
        task=task,
        data=settings,
        split=split,
        fold=fold,
        heads=heads,
        batch_size=batch_size,
        device=find_device(device),
        report=report,
    )
    if as_json:
        print_json({**dataclasses.asdict(found), "model": str(model)})
        return
    _print_evaluation(found)
    if report is not None:
        out.print(f"page written to {report / 'report.html'}", markup=False)


def _print_evaluation(found: Evaluation) -> None:
    columns = ["target", "metric", "this model", *found.published, "unit"]
    rows = []
    for name, value in found.metrics.items():
        figures = [f"{figure:g}" if name == found.primary else "" for figure in found.published.values()]
        rows.append([name, found.kinds[name], f"{value:.4g}", *figures, found.units[name]])
    fold = "" if found.fold is None else f", fold {found.fold}"
    title = f"{found.task}{fold}: {found.structures:,} structures of {found.split}"
    print_table(title, columns, rows)
    for note in found.notes:
        out.print(note, markup=False)


def results(
    runs: Annotated[list[Path], typer.Argument(help="Run folders of fine-tuning, or folders that hold some.")],
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Also write the table as CSV.")] = None,
    markdown: Annotated[Path | None, typer.Option("--markdown", help="Also write the table as Markdown.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as JSON.")] = False,
) -> None:
    """The table of the paper over whatever has been run, published figures beside it; and what has not been run.

    Example: jmp results runs/*
    """
    from jmp_model.finetune.results import COLUMNS, as_csv, as_markdown, collect_results, not_run, table_cells

    for folder in runs:
        if not folder.is_dir():
            raise ManifestError(f"{folder}: no such folder")
    rows = collect_results(runs)
    missing = not_run(rows)
    for file, text in ((csv_file, as_csv), (markdown, as_markdown)):
        if file is not None:
            file.write_text(text(rows))
    if as_json:
        print_json({"rows": [_as_json(row) for row in rows], "not_run": missing})
        return
    print_table("Test errors; scratch and JMP columns as published", COLUMNS, table_cells(rows))
    total = len(missing) + sum(row.published is not None for row in {row.task: row for row in rows}.values())
    if missing:
        out.print(f"not run, {len(missing)} of {total} tasks of the paper: {', '.join(missing)}", markup=False)


def _as_json(row: ResultRow) -> dict[str, Any]:
    runs = [{"seed": seed, "fold": fold, "test": value} for seed, fold, value in row.scores]
    return {
        "task": row.task,
        "unit": row.unit,
        "metric": row.metric,
        "from_scratch": row.from_scratch,
        "mean": row.mean,
        "spread": row.spread if len(runs) > 1 else None,
        "runs": runs,
        "compared": {model: row.compared(model) for model in ("JMP-S", "JMP-L", "scratch-S", "scratch-L")},
        "published": None if row.published is None else row.published.model_dump(),
    }
