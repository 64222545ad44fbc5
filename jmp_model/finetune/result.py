"""What a fine-tuning run returns, and its summary on disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jmp_data import ShardDataset
from jmp_model.finetune.report import ReportContext
from jmp_model.finetune.run import Run
from jmp_model.train.config import CONFIG_FILE


@dataclass(frozen=True)
class FinetuneResult:
    """What a run leaves.

    Attributes:
        out: run folder.
        best: checkpoint with the best weights by validation; they alone, without optimiser.
        steps: optimiser steps done.
        epochs: passes over the training split.
        stopped: why it ended.
        finished: false if it was only interrupted and can go on.
        before: validation metrics before the first step.
        validation: of the best weights.
        test: of the best weights; empty without a test split.
        seconds: of this call.
    """

    out: Path
    best: Path
    steps: int
    epochs: float
    stopped: str
    finished: bool
    before: dict[str, float]
    validation: dict[str, float]
    test: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


def metrics_of_row(row: dict[str, Any], run: Run) -> dict[str, float]:
    """Metrics of one logged validation, by target."""
    return {name: row[name] for name in run.config.task.targets if row.get(name) is not None}


def summarize(result: FinetuneResult, run: Run) -> dict[str, Any]:
    """What `summary.json` holds."""
    config = run.config
    return {
        "task": config.task.name,
        "fold": config.fold,
        "seed": config.seed,
        "start": None if config.start is None else str(config.start),
        "model": {"num_blocks": run.module.config.num_blocks, "emb_size_edge": run.module.config.emb_size_edge},
        "parameters": sum(parameter.numel() for parameter in run.module.parameters()),
        "steps": result.steps,
        "epochs": round(result.epochs, 4),
        "stopped": result.stopped,
        "seconds": round(result.seconds, 3),
        "primary": config.task.primary,
        "metrics": {name: target.metric for name, target in config.task.targets.items()},
        "units": {name: target.report_unit or target.unit for name, target in config.task.targets.items()},
        "validation_before": result.before,
        "validation": result.validation,
        "test": result.test,
        "train_structures": len(run.splits.train),
    }


def report_context(result: FinetuneResult, run: Run, dataset: ShardDataset) -> ReportContext:
    """What the report page says about a run."""
    config, splits = run.config, run.splits
    start = "Trained from scratch" if config.start is None else f"Fine-tuned from {config.start}"
    fold = "" if config.fold is None else f", fold {config.fold}"
    guesses = dataset.manifest.provenance.get("source_manifest")
    facts = {
        "started from": "random weights" if config.start is None else str(config.start),
        "trained on": f"{len(splits.train):,} structures of {splits.train.path}",
        "validated on": f"{len(splits.val):,} structures of {splits.val.path}",
        "this page": f"{len(dataset):,} structures of {dataset.path}",
        "seed": str(config.seed),
        "graph": f"{config.task.graph.cutoff:g} Å, {config.task.graph.max_neighbors} neighbours",
        "ended": f"{result.stopped}; {result.steps:,} steps, {result.epochs:.1f} epochs",
        "best weights": str(result.best),
        "all settings": str(config.out / CONFIG_FILE),
    }
    if guesses:
        facts["units, signs and splits as read"] = str(Path(dataset.path).parents[1] / str(guesses))
    minutes = result.seconds / 60.0
    return ReportContext(
        lead=f"{start} on {len(splits.train):,} structures{fold}; {result.stopped}.",
        tiles={
            "epochs": f"{result.epochs:.1f}",
            "of training": f"{minutes:.1f} min" if minutes < 90 else f"{minutes / 60.0:.1f} h",
        },
        facts=facts,
        fold=config.fold or 0,
        run=config.out,
        usage=True,
    )
