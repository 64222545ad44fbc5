"""The report folder of `make demo`: pictures, and one page that says what was built, trained and compared."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jmp_data import Mixture, open_dataset
from jmp_data.shards.integrity import find_datasets
from jmp_model.experiments.runs import read_summary

_TITLES = {"energy_mae": "energy, eV", "force_mae": "forces, eV/Å"}


def write_demo_report(folder: Path, *, shards: Path, mix: Path, pretraining: Path, experiment: Path) -> Path:
    """Write `folder/README.md` and the pictures that it shows.

    Args:
        folder: the report, made where it does not exist.
        shards: what was built.
        mix: mixture file.
        pretraining: run folder of a finished pre-training.
        experiment: output folder of the experiment that fine-tuned from it.

    Returns:
        The page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(pretraining / "loss_curves.png", folder / "loss_curves.png")
    shutil.copyfile(experiment / "results.png", folder / "claim.png")
    claim = (experiment / "results.md").read_text().replace("results.png", "claim.png").removeprefix("# ")
    summary = read_summary(pretraining) or {}
    lines = [
        "# What the demo did",
        "",
        "Archives with labels of real, cheap physics, in the layouts of the published data sets, became shards,",
        "a mixture, a pre-trained tiny model and a fine-tuned one. The numbers say nothing of the published models.",
        "",
        "## Data sets that were built",
        "",
        *_table(["data set", "split", "structures", "quarantined", "MB"], _built(shards)),
        "",
        "## Mixture",
        "",
        *_mixture_table(Mixture.load(mix)),
        "",
        f"## Pre-training: {summary.get('steps', 0):,} steps, {summary.get('parameters', 0):,} parameters",
        "",
        "Mean absolute errors on the validation splits, with the averaged weights:",
        "",
        *validation_table(summary),
        "",
        "![loss curves](loss_curves.png)",
        "",
        f"## {claim.rstrip()}",
        "",
        "## Where things are",
        "",
        *(f"- `{path}`: {what}" for path, what in _index(shards, mix, pretraining, experiment)),
        "",
    ]
    page = folder / "README.md"
    page.write_text("\n".join(lines))
    return page


def validation_table(summary: dict[str, Any]) -> list[str]:
    """Markdown table of errors before and after pre-training, for each data set."""
    columns, rows = ["data set"], []
    for title in _TITLES.values():
        columns += [f"{title}, before", "after", "lower by"]
    for task, after in summary.get("validation_after", {}).items():
        before = summary["validation_before"][task]
        row = [task]
        for name in _TITLES:
            row += [f"{before[name]:.3f}", f"{after[name]:.3f}", f"{100 * (1 - after[name] / before[name]):.0f} %"]
        rows.append(row)
    return _table(columns, rows)


def _built(shards: Path) -> list[list[str]]:
    rows = []
    for path in find_datasets(shards):
        manifest = open_dataset(path).manifest
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        quarantined = sum(manifest.quarantined.values())
        rows.append(
            [manifest.name, manifest.split, f"{manifest.num_structures:,}", str(quarantined), f"{size / 1e6:.2f}"]
        )
    return rows


def _mixture_table(mixture: Mixture) -> list[str]:
    columns = ["data set", "structures", "share", "probability", "structures an epoch"]
    rows = [
        [row["dataset"], f"{row['structures']:,}", f"{row['share']:.3f}", f"{row['probability']:.3f}", row["samples"]]
        for row in mixture.table()
    ]
    return _table(columns, rows)


def _index(shards: Path, mix: Path, pretraining: Path, experiment: Path) -> list[tuple[str, str]]:
    return [
        (str(shards), "the data sets; look with `jmp-data inspect`"),
        (str(mix), "the mixture file"),
        (str(pretraining), "checkpoints, `training.csv`, `validation.csv`, TensorBoard events, resolved recipe"),
        (str(experiment), "each fine-tuning run with its recipe and curves; `results.csv`"),
    ]


def _table(columns: Sequence[object], rows: Sequence[Sequence[object]]) -> list[str]:
    return [f"| {' | '.join(map(str, row))} |" for row in (columns, ["---"] * len(columns), *rows)]
