"""The loop: exact resumption, micro-batches, stops, non-finite batches, what a run leaves behind."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path

import pytest
import yaml

from jmp_data.errors import CheckpointError, ManifestError
from jmp_model.train.checkpoint import list_checkpoints, read_checkpoint
from jmp_model.train.metrics_log import read_rows
from jmp_model.train.nonfinite import replay
from jmp_model.train.progress import SilentWatcher, TaskErrors
from jmp_model.train.step import NonFiniteError, StepReport
from jmp_model.train.trainer import pretrain
from jmp_model.weights.convert import export_released
from tests.jmp_model.train.small_runs import small_config


class Interrupt(SilentWatcher):
    """Does something after a given step."""

    def __init__(self, after: int, action) -> None:
        self.after, self.action = after, action
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)

    def step_done(self, report: StepReport, total_steps: int) -> None:
        if report.step + 1 == self.after:
            self.action()


class Listener(SilentWatcher):
    def __init__(self) -> None:
        self.validations: list[tuple[int, TaskErrors]] = []

    def validated(self, step: int, errors: TaskErrors) -> None:
        self.validations.append((step, errors))


@pytest.fixture(scope="module")
def whole_run(mix: Path, tmp_path_factory: pytest.TempPathFactory):
    """Fourteen steps without a stop; an epoch has twelve."""
    out = tmp_path_factory.mktemp("whole") / "run"
    return pretrain(small_config(mix, out, steps=14))


def training_rows(out: Path) -> list[dict]:
    timing = ("structures_per_second", "waiting_share")
    return [{k: v for k, v in row.items() if k not in timing} for row in read_rows(out, "training")]


@pytest.mark.parametrize("stop_after", [1, 5, 12, 13])
def test_resumed_run_is_the_uninterrupted_one(mix: Path, tmp_path: Path, whole_run, stop_after: int) -> None:
    config = small_config(mix, tmp_path / "run", steps=14)
    first = pretrain(config, watcher=Interrupt(stop_after, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert (first.steps, first.stopped) == (stop_after, "SIGTERM")
    second = pretrain(config, resume=True)
    assert (second.steps, second.stopped) == (14, "")
    assert training_rows(second.out) == training_rows(whole_run.out)
    assert read_rows(second.out, "validation") == read_rows(whole_run.out, "validation")
    ours, theirs = read_checkpoint(second.out), read_checkpoint(whole_run.out)
    for kind in ("model", "average", "optimizer"):
        mine, other = getattr(ours, kind), getattr(theirs, kind)
        assert all((mine[name] == other[name]).all() for name in other)
    assert ours.stream == theirs.stream


def test_crash_between_checkpoints_repeats_steps_and_logs_them_once(mix: Path, tmp_path: Path, whole_run) -> None:
    config = small_config(mix, tmp_path / "run", "checkpoint.every_steps=4", steps=14)

    def crash() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(config, watcher=Interrupt(7, crash))
    assert [row["step"] for row in read_rows(config.out, "training")] == [1, 2, 3, 4, 5, 6]
    pretrain(config, resume=True)
    assert training_rows(config.out) == training_rows(whole_run.out)
    with (config.out / "training.csv").open() as stream:
        assert [int(row["step"]) for row in csv.DictReader(stream)] == list(range(1, 15))


def test_micro_batches_change_no_number(mix: Path, tmp_path: Path, whole_run) -> None:
    result = pretrain(small_config(mix, tmp_path / "run", "data.micro_batches=3", steps=14))
    assert result.losses == pytest.approx(whole_run.losses, rel=2e-4)


def test_run_folder_tells_all(whole_run) -> None:
    out = whole_run.out
    for name in ("config.yaml", "metrics.jsonl", "training.csv", "validation.csv", "loss_curves.png", "summary.json"):
        assert (out / name).stat().st_size > 100, name
    assert list((out / "tensorboard").iterdir())
    summary = json.loads((out / "summary.json").read_text())
    assert summary["steps"] == 14
    assert summary["validation_after"] == whole_run.after
    assert {*whole_run.before} == {"molecules", "metals"}
    assert yaml.safe_load((out / "config.yaml").read_text())["optimizer"]["weight_decay"] == 0.1
    assert not list((out / "checkpoints").glob(".*"))


def test_validation_comes_first_after_each_epoch_and_last(mix: Path, tmp_path: Path) -> None:
    listener = Listener()
    pretrain(small_config(mix, tmp_path / "run", steps=14), watcher=listener)
    assert [step for step, _ in listener.validations] == [0, 12, 14]
    assert {task: row["structures"] for task, row in listener.validations[0][1].items()} == {
        "molecules": 6,
        "metals": 6,
    }


def test_training_lowers_the_errors(mix: Path, tmp_path: Path) -> None:
    result = pretrain(small_config(mix, tmp_path / "run", "data.edge_dropout=0", "data.batch_size=8", steps=60))
    assert sum(result.losses[-10:]) < 0.9 * sum(result.losses[:10])
    for task in ("molecules", "metals"):
        assert result.after[task]["force_mae"] < result.before[task]["force_mae"]


def test_old_checkpoints_go(mix: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    pretrain(small_config(mix, out, "checkpoint.every_steps=1", "checkpoint.keep=3"))
    assert [path.name for path in list_checkpoints(out)] == ["step-00000004", "step-00000005", "step-00000006"]


def test_time_limit_stops_with_a_checkpoint(mix: Path, tmp_path: Path) -> None:
    result = pretrain(small_config(mix, tmp_path / "run", "hardware.max_hours=1.0e-9"))
    assert result.stopped == "time limit"
    assert result.steps == 0
    assert read_checkpoint(result.out).step == 0


def test_an_existing_run_is_not_overwritten(mix: Path, whole_run) -> None:
    with pytest.raises(ManifestError, match="--resume"):
        pretrain(small_config(mix, whole_run.out))


def test_nothing_to_resume(mix: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint"):
        pretrain(small_config(mix, tmp_path / "run"), resume=True)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("optimizer.peak_lr=0.1", "optimizer.peak_lr"),
        ("data.batch_size=6", "data.batch_size"),
        ("seed=7", "seed"),
        ("targets.force_loss=atomwise", "targets.force_loss"),
    ],
)
def test_resuming_with_another_recipe_is_refused(mix: Path, whole_run, override: str, named: str) -> None:
    with pytest.raises(ManifestError, match=named):
        pretrain(small_config(mix, whole_run.out, override, steps=14), resume=True)


def test_resuming_a_finished_run_does_nothing(mix: Path, tmp_path: Path) -> None:
    config = small_config(mix, tmp_path / "run", steps=2)
    first = pretrain(config)
    second = pretrain(config, resume=True)
    assert second.losses == first.losses
    assert second.after == first.after


def test_weights_can_be_taken_over(mix: Path, tmp_path: Path, whole_run) -> None:
    released = tmp_path / "released.pt"
    export_released(read_checkpoint(whole_run.out), released)
    for start in (whole_run.out, released):
        watcher, out = Interrupt(0, lambda: None), tmp_path / f"from-{start.stem}"
        result = pretrain(small_config(mix, out, f"init_from={start}", steps=1), watcher=watcher)
        assert result.before == whole_run.after
        assert not any("scale" in message for message in watcher.messages)


def test_scales_are_fitted_and_that_is_said(mix: Path, tmp_path: Path, whole_run) -> None:
    watcher = Interrupt(0, lambda: None)
    pretrain(small_config(mix, tmp_path / "run", steps=1), watcher=watcher)
    assert any("scale factors" in message for message in watcher.messages)
    model = read_checkpoint(whole_run.out).model
    assert all(value > 0 for name, value in model.items() if name.endswith("scale_factor"))


def test_nonfinite_loss_names_the_structures_and_can_be_replayed(mix: Path, tmp_path: Path, monkeypatch) -> None:
    from jmp_model.train import trainer

    config = small_config(mix, tmp_path / "run", steps=3)
    original = trainer.split_batch
    calls = []

    def poisoned(batch, parts):
        calls.append(1)
        if len(calls) == 2:
            batch = batch.clone()
            batch.forces[0, 0] = float("nan")
        return original(batch, parts)

    monkeypatch.setattr(trainer, "split_batch", poisoned)
    with pytest.raises(NonFiniteError, match=r"step 1: the loss is nan.*(molecules|metals)\[\d+\] m") as caught:
        pretrain(config)
    folder = config.out / "nonfinite" / "step-00000001"
    assert str(folder) in str(caught.value)
    findings = replay(folder)
    assert any("target is not finite" in line for line in findings)
    assert any("loss is nan" in line for line in findings)
    with pytest.raises(CheckpointError, match="no stored batch"):
        replay(config.out)
