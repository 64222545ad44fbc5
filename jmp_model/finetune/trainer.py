"""The fine-tuning loop: epochs, validation after each, best weights kept, then the test split."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from typing import Any

from jmp_data.errors import ManifestError
from jmp_model.denormals import flushed_denormals
from jmp_model.finetune.config import FinetuneConfig
from jmp_model.finetune.data import SplitName, attach
from jmp_model.finetune.evaluate import evaluate_split
from jmp_model.finetune.model import restore_model
from jmp_model.finetune.objective import Sums
from jmp_model.finetune.predictions import predict_split
from jmp_model.finetune.report import write_report
from jmp_model.finetune.result import FinetuneResult, metrics_of_row, report_context, summarize
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
from jmp_model.train.memory import memory_hint
from jmp_model.train.metrics_log import MetricsLog, read_rows
from jmp_model.train.nonfinite import add_findings, nonfinite_folder, save_batch
from jmp_model.train.setup import refuse_changed_settings
from jmp_model.train.sharding import assign
from jmp_model.train.step import NonFiniteError
from jmp_model.train.stopping import StopRequest
from jmp_model.weights.any_checkpoint import BEST

SUMMARY_FILE = "summary.json"
_FREE_ON_RESUME = ("hardware", "out", "log_every", "report", "start")


@flushed_denormals()
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
        refuse_other_settings(config, checkpoint.config)
        return checkpoint
    if (config.out / "checkpoints").exists():
        raise ManifestError(f"{config.out}: already holds a run; go on with --resume, or choose another folder")
    return None


def refuse_other_settings(config: FinetuneConfig, before: Mapping[str, Any]) -> None:
    """Refuse to go on with, or to count as done, a run that another configuration started.

    Raises:
        ManifestError: names the first setting that differs, with both values.
    """
    refuse_changed_settings(before, config.model_dump(mode="json"), config.out, free=_FREE_ON_RESUME)


class _Loop:
    def __init__(self, run: Run, stop: StopRequest, watcher: FinetuneWatcher) -> None:
        self.run = run
        self.stop = stop
        self.watcher = watcher
        self.done = run.start
        self.reason = ""
        self.log = MetricsLog(run.config.out, run.start) if run.fabric.is_global_zero else None
        self._window = Sums({})
        self._begin = time.perf_counter() - run.seconds_before
        hours = run.config.stop.max_hours
        self._budget = StopRequest(None if hours is None else max(0.0, hours - run.seconds_before / 3600.0))

    def train(self) -> None:
        """Train until the schedule ends, patience is used up, or told to stop."""
        run = self.run
        if self.done == 0:
            self.validate()
        while not self._ended():
            epoch_began = time.perf_counter()
            for batch in run.train:
                self._step(batch)
                if self.done >= run.total_steps or self._out_of_time():
                    break
            interrupted = bool(self.stop.reason)
            if not interrupted:
                self.validate()
                if self.done == len(run.train):
                    self._tell_duration(time.perf_counter() - epoch_began)
            self.save()
            if interrupted:
                self.reason = self.stop.reason
                return

    def _tell_duration(self, seconds: float) -> None:
        cosine = self.run.schedules[0].cosine_steps / len(self.run.train)
        self.watcher.message(
            f"One epoch takes {_duration(seconds)}: the cosine ends after {_duration(cosine * seconds)}, then training "
            "goes on while it helps"
        )

    def _out_of_time(self) -> bool:
        fabric = self.run.fabric
        return self.stop.due(fabric) or self._budget.due(fabric)

    def _ended(self) -> bool:
        run = self.run
        if self.done >= run.total_steps:
            self.reason = "all steps done"
        elif run.early_stop.exhausted:
            self.reason = f"no improvement in {run.config.stop.patience} validations"
        elif self.done and max(run.rates(self.done)) < run.config.stop.min_lr:
            self.reason = "learning rate below its minimum"
        elif self._budget.reason:
            self.reason = f"trained for {run.config.stop.max_hours} hours"
        return bool(self.reason)

    def _step(self, batch: Any) -> None:
        run = self.run
        micro_batches = [self._prepare(part) for part in split_batch(batch, run.config.data.micro_batches)]
        try:
            with memory_hint(self.done, structures=run.config.batch_size, micro_batches=run.config.data.micro_batches):
                report = run.step(self.done, micro_batches, run.rates(self.done))
        except NonFiniteError as error:
            self._keep_nonfinite(error, micro_batches)
            raise
        self.done += 1
        self.watcher.step_done(report, run.total_steps)
        self._log(report)

    def _prepare(self, part: Any) -> MicroBatch:
        run = self.run
        # Targets first: they are normalised on the CPU, and a batch moves in place.
        targets = run.objective.targets(part).to(run.fabric.device)
        return MicroBatch(attach(run.fabric.to_device(part), run.config.task.graph), targets)

    def _log(self, report: StepReport) -> None:
        self._window.add(report.sums)
        if self.log is None or (self.done % self.run.config.log_every and self.done < self.run.total_steps):
            return
        metrics = self.run.objective.metrics(self._window)
        loss = self.run.objective.total(self._window)
        row = {"epoch": self.done / len(self.run.train), "lr": report.lr, "loss": loss, **metrics}
        self.log.add("training", self.done, row)
        self._window = Sums({})

    def _keep_nonfinite(self, error: NonFiniteError, micro_batches: list[MicroBatch]) -> None:
        run = self.run
        folder = nonfinite_folder(run.config.out, self.done)
        train = run.splits.train
        lines = save_batch(
            folder, [m.inputs for m in micro_batches], lambda _: (train.name, train), run.fabric.global_rank
        )
        checkpoint = self._checkpoint(with_optimizer=True)
        if run.fabric.is_global_zero:
            write_checkpoint(checkpoint, folder / "checkpoint")
        add_findings(error, folder, lines)

    def _checkpoint(self, *, with_optimizer: bool) -> Checkpoint:
        return self.run.checkpoint(self.done, time.perf_counter() - self._begin, with_optimizer=with_optimizer)

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
        checkpoint = self._checkpoint(with_optimizer=False)
        if self.run.fabric.is_global_zero:
            write_checkpoint(checkpoint, self.run.config.out / BEST)
        self.run.fabric.barrier()

    def save(self) -> None:
        """Write a checkpoint to go on from; the one before goes."""
        checkpoint = self._checkpoint(with_optimizer=True)
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
            finished=not self.stop.reason,
            before=metrics_of_row(rows[0], run),
            validation=metrics_of_row(next(row for row in rows if row["step"] == best.step), run),
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
        write_report(run.config.out, run.config.task, predictions, dataset, report_context(result, run, dataset))


def _duration(seconds: float) -> str:
    if seconds < 100.0:
        return f"{seconds:.0f} s"
    return f"{seconds / 60.0:.0f} min" if seconds < 6000.0 else f"{seconds / 3600.0:.1f} h"
