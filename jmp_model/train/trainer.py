"""The pre-training loop."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from jmp_data import ShardDataset
from jmp_data.errors import ManifestError
from jmp_model.denormals import flushed_denormals
from jmp_model.train.checkpoint import (
    Checkpoint,
    checkpoint_folder,
    prune_checkpoints,
    read_checkpoint,
    write_checkpoint,
)
from jmp_model.train.config import CONFIG_FILE, PretrainConfig, save_config
from jmp_model.train.data import split_batch
from jmp_model.train.distributed import build_fabric
from jmp_model.train.memory import memory_hint
from jmp_model.train.metrics import TaskSums
from jmp_model.train.metrics_log import MetricsLog, read_rows
from jmp_model.train.nonfinite import add_findings, nonfinite_folder, save_batch
from jmp_model.train.plots import plot_loss_curves
from jmp_model.train.progress import SilentWatcher, Watcher
from jmp_model.train.result import PretrainResult, errors_of_row, summarize
from jmp_model.train.setup import Run, check_resume, prepare
from jmp_model.train.step import MicroBatch, NonFiniteError, StepReport
from jmp_model.train.stopping import StopRequest
from jmp_model.train.timing import Clock
from jmp_model.train.validate import validate

SUMMARY_FILE = "summary.json"


@flushed_denormals()
def pretrain(config: PretrainConfig, *, resume: bool = False, watcher: Watcher | None = None) -> PretrainResult:
    """Run the pre-training recipe.

    Args:
        config: resolved recipe.
        resume: go on from the last checkpoint in `config.out`; the same run as if it had never stopped.
        watcher: told about progress, on rank 0.

    Raises:
        ManifestError: bad configuration, or an existing run folder without `resume`.
        CheckpointError: nothing to resume from, or a checkpoint of another model.
        NonFiniteError: a loss or gradient is not finite; the message names where the batch was stored.
    """
    begin = time.perf_counter()
    checkpoint = _checkpoint_to_resume(config, resume)
    fabric = build_fabric(config.hardware)
    fabric.launch()
    watcher = watcher if watcher is not None and fabric.is_global_zero else SilentWatcher()
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
    return loop.finish(time.perf_counter() - begin)


def _checkpoint_to_resume(config: PretrainConfig, resume: bool) -> Checkpoint | None:
    if resume:
        checkpoint = read_checkpoint(config.out)
        check_resume(config, checkpoint, config.out)
        return checkpoint
    if (config.out / "checkpoints").exists():
        raise ManifestError(f"{config.out}: already holds a run; go on with --resume, or choose another folder")
    return None


class _Loop:
    """Steps, and what happens between them."""

    def __init__(self, run: Run, stop: StopRequest, watcher: Watcher) -> None:
        self.run = run
        self.stop = stop
        self.watcher = watcher
        self.is_writer = run.fabric.is_global_zero
        self.log = MetricsLog(run.config.out, run.start) if self.is_writer else None
        self.checkpoint: Path | None = None
        self.done = run.start
        self._window: list[StepReport] = []
        self._clock = Clock()

    def train(self) -> None:
        """Train to the end of the schedule, or until told to stop."""
        run = self.run
        if self.done == 0:
            self.validate()
        batches = _endless(run)
        while self.done < run.total_steps and not self.stop.due(run.fabric):
            with self._clock.waiting():
                micro_batches = self._next(batches)
            report = self._step(micro_batches)
            self.done += 1
            self.watcher.step_done(report, run.total_steps)
            self._log_training(report)
            if self._due(run.config.validation.every_steps or len(run.stream)):
                self.validate()
            if self._due(run.config.checkpoint.every_steps or max(1, run.total_steps // 10)):
                self.save()
        if self.checkpoint is None or self.checkpoint.name != checkpoint_folder(run.config.out, self.done).name:
            self.save()

    def _next(self, batches: Iterator[Any]) -> list[MicroBatch]:
        run = self.run
        parts = split_batch(next(batches), run.config.data.micro_batches)
        return [self._prepare(part) for part in parts]

    def _prepare(self, part: Any) -> MicroBatch:
        run = self.run
        # Targets first: they are normalised on the CPU, and a batch moves in place.
        targets = run.normalizer.normalize(part).to(run.fabric.device)
        return MicroBatch(run.stream.attach_graphs(run.fabric.to_device(part)), targets)

    def _step(self, micro_batches: list[MicroBatch]) -> StepReport:
        data = self.run.config.data
        try:
            with memory_hint(self.done, structures=data.batch_size, micro_batches=data.micro_batches):
                return self.run.step(self.done, micro_batches)
        except NonFiniteError as error:
            self._keep_nonfinite(error, micro_batches)
            raise

    def _keep_nonfinite(self, error: NonFiniteError, micro_batches: list[MicroBatch]) -> None:
        run = self.run
        folder = nonfinite_folder(run.config.out, self.done)
        lines = save_batch(folder, [m.inputs for m in micro_batches], self._dataset, run.fabric.global_rank)
        checkpoint = run.checkpoint(self.done)
        if self.is_writer:
            write_checkpoint(checkpoint, folder / "checkpoint")
        add_findings(error, folder, lines)

    def _dataset(self, index: int) -> tuple[str, ShardDataset]:
        member = self.run.mixture.members[index]
        return member.name, member.dataset

    def _due(self, every: int) -> bool:
        """Whether a periodic action is due; the last step always is."""
        return self.done % every == 0 or self.done == self.run.total_steps

    def _log_training(self, report: StepReport) -> None:
        self._window.append(report)
        if self.log is None or not self._due(self.run.config.log_every):
            return
        self.log.add("training", self.done, self._training_row())
        self._window = []

    def _training_row(self) -> dict[str, float]:
        window, tasks = self._window, self.run.mixture.names
        sums = sum((report.sums for report in window[1:]), window[0].sums)
        seconds, waited = self._clock.read()
        structures = float(sums.column("structures").sum())
        row = {
            "epoch": self.done / len(self.run.stream),
            "lr": window[-1].lr,
            **{name: _mean(window, name) for name in ("loss", "energy_loss", "force_loss", "grad_norm")},
            "skipped": float(sum(report.skipped for report in window)),
            "structures": structures,
            "atoms": float(sums.column("atoms").sum()),
            "structures_per_second": structures / seconds,
            "waiting_share": waited / seconds,
        }
        return row | _task_columns(sums, tasks)

    def validate(self) -> None:
        """Measure errors with the averaged weights."""
        run = self.run
        if not run.validation:
            return
        with run.step.average.applied(run.module), self._clock.paused():
            sums = validate(
                run.module,
                run.step.forward,
                run.validation,
                fabric=run.fabric,
                normalizer=run.normalizer,
                weights=run.step.weights,
            )
        errors = sums.by_task(run.mixture.names)
        if self.log is not None:
            self.log.add("validation", self.done, _task_columns(sums, run.mixture.names))
        self.watcher.validated(self.done, errors)

    def save(self) -> None:
        """Write a checkpoint and delete old ones."""
        run = self.run
        self.checkpoint = checkpoint_folder(run.config.out, self.done)
        with self._clock.paused():
            checkpoint = run.checkpoint(self.done)
            if self.is_writer:
                write_checkpoint(checkpoint, self.checkpoint)
                prune_checkpoints(run.config.out, run.config.checkpoint.keep)
            run.fabric.barrier()

    def close(self) -> None:
        """Flush the logs."""
        if self.log is not None:
            self.log.close()

    def finish(self, seconds: float) -> PretrainResult:
        """Draw the curves, write the summary."""
        out, tasks = self.run.config.out, self.run.mixture.names
        validation = read_rows(out, "validation")
        assert self.checkpoint is not None
        stopped = self.stop.reason if self.done < self.run.total_steps else ""
        result = PretrainResult(
            out=out,
            checkpoint=self.checkpoint,
            steps=self.done,
            total_steps=self.run.total_steps,
            stopped=stopped,
            before=errors_of_row(validation[0], tasks) if validation else {},
            after=errors_of_row(validation[-1], tasks) if validation else {},
            losses=[row["loss"] for row in read_rows(out, "training")],
            seconds=seconds,
        )
        if self.is_writer:
            plot_loss_curves(out, tasks)
            (out / SUMMARY_FILE).write_text(json.dumps(summarize(result, self.run), indent=1) + "\n")
        self.run.fabric.barrier()
        return result


def _endless(run: Run) -> Iterator[Any]:
    """Epoch after epoch."""
    return itertools.chain.from_iterable(itertools.repeat(run.stream))


def _mean(window: list[StepReport], name: str) -> float:
    return sum(float(getattr(report, name)) for report in window) / len(window)


def _task_columns(sums: TaskSums, tasks: tuple[str, ...]) -> dict[str, float]:
    columns = {
        "energy_mae": sums.energy_mae(),
        "force_mae": sums.force_mae(),
        "energy_loss": sums.mean_energy_loss(),
        "force_loss": sums.mean_force_loss(),
        "structures": sums.column("structures"),
    }
    values = torch.stack([column.double() for column in columns.values()], dim=1).tolist()
    return {f"{task}/{name}": values[i][j] for i, task in enumerate(tasks) for j, name in enumerate(columns)}
