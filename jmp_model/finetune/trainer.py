"""The fine-tuning loop: epochs, validation after each, best weights kept, then the test split."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jmp_data.errors import ManifestError
from jmp_model.finetune.config import FinetuneConfig
from jmp_model.finetune.data import SplitName, attach
from jmp_model.finetune.evaluate import evaluate_split
from jmp_model.finetune.model import restore_model
from jmp_model.finetune.objective import Sums
from jmp_model.finetune.predictions import predict_split
from jmp_model.finetune.report import write_report
from jmp_model.finetune.run import Run, prepare
from jmp_model.finetune.step import MicroBatch, StepReport
from jmp_model.finetune.watcher import FinetuneWatcher, SilentFinetuneWatcher
from jmp_model.model import FineTuningModel
from jmp_model.train.checkpoint import (
    Checkpoint,
    checkpoint_folder,
    prune_checkpoints,
    read_checkpoint,
    write_checkpoint,
)
from jmp_model.train.config import CONFIG_FILE, save_config
from jmp_model.train.data import split_batch
from jmp_model.train.distributed import build_fabric
from jmp_model.train.metrics_log import MetricsLog, read_rows
from jmp_model.train.setup import refuse_changed_settings
from jmp_model.train.sharding import assign
from jmp_model.train.stopping import StopRequest

BEST = "best"
SUMMARY_FILE = "summary.json"
_FREE_ON_RESUME = ("hardware", "out", "log_every", "report", "start")


@dataclass(frozen=True)
class FinetuneResult:
    """What a run leaves.

    Attributes:
        out: run folder.
        best: checkpoint with the best weights by validation; they alone, without optimiser.
        steps: optimiser steps done.
        epochs: passes over the training split.
        stopped: why it ended.
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
    before: dict[str, float]
    validation: dict[str, float]
    test: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


def finetune(config: FinetuneConfig, *, resume: bool = False, watcher: FinetuneWatcher | None = None) -> FinetuneResult:
    """Run the fine-tuning recipe on one task, fold and seed.

    Args:
        config: resolved recipe.
        resume: go on from the last checkpoint in `config.out`.
        watcher: told about progress, on rank 0.

    Raises:
        ManifestError: bad configuration, before any compute is spent; or an existing run folder without `resume`.
        CheckpointError: a checkpoint that does not fit.
        NonFiniteError: a loss or gradient is not finite.
    """
    begin = time.perf_counter()
    checkpoint = _checkpoint_to_resume(config, resume)
    fabric = build_fabric(config.hardware)
    fabric.launch()
    watcher = watcher if watcher is not None and fabric.is_global_zero else SilentFinetuneWatcher()
    run = prepare(config, fabric, resume=checkpoint, watcher=watcher)
    if fabric.is_global_zero:
        save_config(config, config.out / CONFIG_FILE)
    fabric.barrier()
    with StopRequest(config.hardware.max_hours) as stop:
        loop = _Loop(run, stop, watcher)
        try:
            loop.train()
        finally:
            loop.close()
    return loop.finish(begin)


def _checkpoint_to_resume(config: FinetuneConfig, resume: bool) -> Checkpoint | None:
    if resume:
        checkpoint = read_checkpoint(config.out)
        refuse_changed_settings(checkpoint.config, config.model_dump(mode="json"), config.out, free=_FREE_ON_RESUME)
        return checkpoint
    if (config.out / "checkpoints").exists():
        raise ManifestError(f"{config.out}: already holds a run; go on with --resume, or choose another folder")
    return None


class _Loop:
    def __init__(self, run: Run, stop: StopRequest, watcher: FinetuneWatcher) -> None:
        self.run = run
        self.stop = stop
        self.watcher = watcher
        self.done = run.start
        self.reason = ""
        self.log = MetricsLog(run.config.out, run.start) if run.fabric.is_global_zero else None
        self._window = Sums({})

    def train(self) -> None:
        """Train until the schedule ends, patience is used up, or told to stop."""
        if self.done == 0:
            self.validate()
        while not self._ended():
            for batch in self.run.train:
                self._step(batch)
                if self.done >= self.run.total_steps or self.stop.due(self.run.fabric):
                    break
            interrupted = bool(self.stop.reason)
            if not interrupted:
                self.validate()
            self.save()
            if interrupted:
                self.reason = self.stop.reason
                return

    def _ended(self) -> bool:
        run = self.run
        if self.done >= run.total_steps:
            self.reason = "all steps done"
        elif run.early_stop.exhausted:
            self.reason = f"no improvement in {run.config.stop.patience} validations"
        elif self.done and max(run.rates(self.done)) < run.config.stop.min_lr:
            self.reason = "learning rate below its minimum"
        return bool(self.reason)

    def _step(self, batch: Any) -> None:
        run = self.run
        device = run.fabric.device
        parts = split_batch(attach(batch, run.config.task.graph), run.config.data.micro_batches)
        micro_batches = [
            MicroBatch(run.fabric.to_device(part), run.objective.targets(part).to(device)) for part in parts
        ]
        report = run.step(self.done, micro_batches, run.rates(self.done))
        self.done += 1
        self.watcher.step_done(report, run.total_steps)
        self._log(report)

    def _log(self, report: StepReport) -> None:
        self._window.add(report.sums)
        if self.log is None or (self.done % self.run.config.log_every and self.done < self.run.total_steps):
            return
        metrics = self.run.objective.metrics(self._window)
        loss = self.run.objective.total(self._window)
        row = {"epoch": self.done / len(self.run.train), "lr": report.lr, "loss": loss, **metrics}
        self.log.add("training", self.done, row)
        self._window = Sums({})

    def validate(self) -> None:
        """Measure, keep the best weights, and let the plateau rule and patience see the result."""
        run = self.run
        metrics = self._measure("val")
        primary = metrics[run.config.task.primary]
        is_best = run.early_stop.update(primary)
        if is_best:
            self._keep_best()
        if self.done >= run.schedules[0].cosine_steps:
            run.plateau.update(primary)
        if self.log is not None:
            self.log.add("validation", self.done, {"epoch": self.done / len(run.train), **metrics})
        self.watcher.validated(self.done, metrics, is_best=is_best)

    def _measure(self, split: str) -> dict[str, float]:
        run = self.run
        dataset = getattr(run.splits, split)
        average = run.step.average
        with average.applied(run.module) if average is not None else contextlib.nullcontext():
            return evaluate_split(
                run.module,
                run.step.forward,
                dataset,
                run.objective,
                fabric=run.fabric,
                batch_size=max(1, run.config.batch_size // (run.fabric.world_size * run.config.data.micro_batches)),
                first=getattr(run.config.data, f"{split}_first"),
            )

    def _keep_best(self) -> None:
        checkpoint = self.run.checkpoint(self.done, with_optimizer=False)
        if self.run.fabric.is_global_zero:
            write_checkpoint(checkpoint, self.run.config.out / BEST)
        self.run.fabric.barrier()

    def save(self) -> None:
        """Write a checkpoint to go on from; the one before goes."""
        checkpoint = self.run.checkpoint(self.done, with_optimizer=True)
        if self.run.fabric.is_global_zero:
            write_checkpoint(checkpoint, checkpoint_folder(self.run.config.out, self.done))
            prune_checkpoints(self.run.config.out, 1)
        self.run.fabric.barrier()

    def close(self) -> None:
        """Flush the logs."""
        if self.log is not None:
            self.log.close()

    def finish(self, begin: float) -> FinetuneResult:
        """Load the best weights, measure the test split, write the summary."""
        run, out = self.run, self.run.config.out
        best = read_checkpoint(out / BEST, with_optimizer=False)
        module, _ = restore_model(best, str(out / BEST), averaged=True)
        weights = {name: parameter.detach() for name, parameter in module.named_parameters()}
        for name, parameter in run.module.named_parameters():
            assign(parameter, weights[name])
        if run.step.average is not None:
            run.step.average.load(weights)
        rows = read_rows(out, "validation")
        result = FinetuneResult(
            out=out,
            best=out / BEST,
            steps=self.done,
            epochs=self.done / len(run.train),
            stopped=self.reason,
            before=_metrics(rows[0], run),
            validation=_metrics(next(row for row in rows if row["step"] == best.step), run),
            test=self._measure("test") if run.splits.test is not None and not self.stop.reason else {},
            seconds=time.perf_counter() - begin,
        )
        # A run that was only interrupted has no summary yet: it is not finished.
        if run.fabric.is_global_zero and not self.stop.reason:
            (out / SUMMARY_FILE).write_text(json.dumps(summarize(result, run), indent=1) + "\n")
            if run.config.report:
                self._write_report(module, result)
        run.fabric.barrier()
        return result

    def _write_report(self, module: FineTuningModel, result: FinetuneResult) -> None:
        run = self.run
        split: SplitName = "val" if run.splits.test is None else "test"
        dataset = run.splits.val if run.splits.test is None else run.splits.test
        predictions = predict_split(
            module.to(run.fabric.device),
            run.objective,
            dataset,
            batch_size=run.config.batch_size,
            first=getattr(run.config.data, f"{split}_first"),
            device=run.fabric.device,
        )
        start = "from scratch" if run.config.start is None else f"started from {run.config.start}"
        facts = [
            f"{start}, {result.steps} steps, {result.epochs:.1f} epochs; {result.stopped}",
            f"trained on {len(run.splits.train)} structures of {run.splits.train.path}",
            f"this page is about {len(predictions.natoms)} structures of {dataset.path}",
        ]
        write_report(run.config.out, run.config.task, predictions, dataset, facts=facts)


def _metrics(row: dict[str, Any], run: Run) -> dict[str, float]:
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
