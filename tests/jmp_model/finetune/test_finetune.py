"""Fine-tuning runs on small data."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from jmp_data import Structure, open_dataset, write_dataset
from jmp_data.errors import CheckpointError, JmpDataError, ManifestError
from jmp_model.finetune import trainer
from jmp_model.finetune.config import load_finetune_config
from jmp_model.finetune.data import attach, stream
from jmp_model.finetune.model import build_model, keep_heads, load_pretrained, restore_model
from jmp_model.finetune.objective import Objective
from jmp_model.finetune.replay import replay
from jmp_model.finetune.trainer import finetune
from jmp_model.finetune.watcher import SilentFinetuneWatcher
from jmp_model.model import PretrainingModel
from jmp_model.train.checkpoint import read_checkpoint
from jmp_model.train.metrics_log import read_rows
from jmp_model.train.nonfinite import replay as replay_pretraining
from jmp_model.train.step import NonFiniteError
from tests.jmp_model.finetune.small_tasks import force_task, labelled_molecules, scalar_task, small_config


class StopAfter(SilentFinetuneWatcher):
    def __init__(self, step: int) -> None:
        self.step = step

    def step_done(self, report, total_steps: int) -> None:
        if report.step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def one_batch(root: Path, task):
    dataset = open_dataset(root / "small" / "val")
    batches = stream(dataset, task, batch_size=6, shuffle=False)
    return attach(next(iter(batches)), task.graph)


@pytest.mark.parametrize("forces", ["gradient", "direct"])
def test_forces_from_a_checkpoint(root: Path, pretrained: Path, tmp_path: Path, forces: str) -> None:
    rate = "optimizer.base_lr=1.0e-4"
    result = finetune(small_config(force_task(forces), root, tmp_path / "run", rate, start=pretrained, steps=16))
    assert result.steps == 16
    # So few steps with a new energy head need not help yet, but the best weights are never worse than the first.
    assert result.validation["forces"] <= result.before["forces"]
    before, after = read_checkpoint(pretrained).weights(), read_checkpoint(result.out).weights()
    assert any(not torch.equal(before[name], value) for name, value in after.items() if name in before)
    assert [row["step"] for row in read_rows(result.out, "training")] == list(range(1, 17))
    assert result.test.keys() == {"energy", "forces", "loss"}
    summary = json.loads((result.out / "summary.json").read_text())
    assert summary["units"]["forces"] == "meV/Å"
    assert summary["validation"] == result.validation


@pytest.mark.parametrize("target", ["gap", "has_oxygen"])
def test_scalars_and_classes_from_scratch(root: Path, tmp_path: Path, target: str) -> None:
    result = finetune(small_config(scalar_task(target), root, tmp_path / "run", steps=8))
    assert np.isfinite(result.test[target])
    if target == "has_oxygen":
        assert 0.0 <= result.test[target] <= 1.0


def test_several_targets_at_once(root: Path, tmp_path: Path) -> None:
    spec = {"reduction": "mean", "mean": "fit", "std": "fit"}
    task = force_task(targets={**force_task().model_dump(mode="json")["targets"], "gap": spec})
    result = finetune(small_config(task, root, tmp_path / "run"))
    assert result.test.keys() == {"energy", "forces", "gap", "loss"}


def test_kept_heads_predict_what_they_did_before_the_first_step(root: Path, pretrained: Path) -> None:
    """fairchem#1756: loading a checkpoint for fine-tuning must not change what it predicts."""
    checkpoint = read_checkpoint(pretrained)
    original = PretrainingModel(checkpoint.backbone, tasks=checkpoint.tasks)
    original.load_state_dict(checkpoint.weights())
    task = force_task("direct")
    model = build_model(task, checkpoint.backbone, kept_heads=True)
    load_pretrained(model, checkpoint, "here")
    scales = keep_heads(model, task, checkpoint, "molecules", "here")
    batch = one_batch(root, task)
    with torch.no_grad():
        expected, found = original.eval()(batch), model.eval()(batch)
    assert torch.equal(found["energy"], expected.energy[:, 0])
    assert torch.equal(found["forces"], expected.forces[:, :, 0])
    normalizer = checkpoint.normalizers[0]
    assert scales["energy"].std == normalizer.energy_std
    assert scales["forces"].std == normalizer.force_std
    assert scales["energy"].reference == normalizer.reference


def test_kept_heads_in_a_run(root: Path, pretrained: Path, tmp_path: Path) -> None:
    config = small_config(force_task(), root, tmp_path / "run", start=pretrained, keep_heads="molecules", steps=1)
    result = finetune(config)
    module, scales = restore_model(read_checkpoint(result.best), "best")
    assert module.heads["energy"].out_mlp[0].bias is not None
    assert scales["energy"].std == read_checkpoint(pretrained).normalizers[0].energy_std


def test_gradient_forces_are_the_gradient_of_the_energy_in_ev(root: Path, pretrained: Path) -> None:
    checkpoint = read_checkpoint(pretrained)
    task = force_task()
    model = build_model(task, checkpoint.backbone, kept_heads=True)
    load_pretrained(model, checkpoint, "here")
    scales = keep_heads(model, task, checkpoint, "molecules", "here")
    model = model.double().eval()
    batch = one_batch(root, task)
    batch.pos = batch.pos.double()
    objective = Objective(task, scales, dtype=torch.float64)

    def energy() -> torch.Tensor:
        return objective.outputs(model(batch))["energy"].sum() * scales["energy"].std

    forces = objective.outputs(model(batch))["forces"] * scales["forces"].std
    step = 1e-4
    for atom, axis in ((0, 0), (3, 2)):
        start = batch.pos[atom, axis].item()
        batch.pos[atom, axis] = start + step
        up = energy()
        batch.pos[atom, axis] = start - step
        down = energy()
        batch.pos[atom, axis] = start
        assert forces[atom, axis].item() == pytest.approx(-(up - down).item() / (2 * step), rel=1e-5, abs=1e-7)


@pytest.fixture(scope="module")
def whole_run(root: Path, tmp_path_factory: pytest.TempPathFactory):
    """Ten steps without a stop; an epoch has four."""
    return finetune(small_config(scalar_task(), root, tmp_path_factory.mktemp("whole") / "run", steps=10))


@pytest.mark.parametrize("stop_after", [2, 4, 7])
def test_resumed_run_is_the_uninterrupted_one(root: Path, tmp_path: Path, whole_run, stop_after: int) -> None:
    config = small_config(scalar_task(), root, tmp_path / "run", steps=10)
    assert finetune(config, watcher=StopAfter(stop_after)).stopped == "SIGTERM"
    result = finetune(config, resume=True)
    assert result.steps == 10
    assert read_rows(result.out) == read_rows(whole_run.out)
    assert result.test == whole_run.test


def test_micro_batches_change_no_number(root: Path, tmp_path: Path) -> None:
    whole = finetune(small_config(force_task(), root, tmp_path / "whole"))
    parts = finetune(small_config(force_task(), root, tmp_path / "parts", "data.micro_batches=3"))
    assert parts.test == pytest.approx(whole.test, rel=1e-3)


def test_frozen_parameters_stay_and_are_resumed(root: Path, pretrained: Path, tmp_path: Path) -> None:
    config = small_config(
        scalar_task(), root, tmp_path / "run", start=pretrained, freeze=("backbone", "embedding"), steps=6
    )
    finetune(config, watcher=StopAfter(3))
    result = finetune(config, resume=True)
    before, after = read_checkpoint(pretrained).weights(), read_checkpoint(result.out).weights()
    same = {name: torch.equal(before[name], value) for name, value in after.items() if name in before}
    assert all(same.values())
    assert any(name.startswith("heads.") for name in after)


def test_best_weights_are_kept_and_tested(root: Path, tmp_path: Path) -> None:
    result = finetune(small_config(scalar_task(), root, tmp_path / "run", "optimizer.base_lr=0.03", steps=12))
    rows = read_rows(result.out, "validation")
    assert result.validation["gap"] == min(row["gap"] for row in rows)
    assert read_checkpoint(result.best).step == min(rows, key=lambda row: row["gap"])["step"]


def test_patience_ends_a_run(root: Path, tmp_path: Path) -> None:
    overrides = ("stop.patience=1", "optimizer.base_lr=1.0e-12", "stop.min_lr=0", "stop.min_delta=0.1")
    result = finetune(small_config(scalar_task(), root, tmp_path / "run", *overrides, steps=100))
    assert result.stopped == "no improvement in 1 validations"
    assert result.epochs == 1.0


def test_a_rate_below_its_minimum_ends_a_run(root: Path, tmp_path: Path) -> None:
    result = finetune(small_config(scalar_task(), root, tmp_path / "run", "stop.min_lr=1.0", steps=100))
    assert result.stopped == "learning rate below its minimum"
    assert result.epochs == 1.0


def test_seeds_differ_and_repeat(root: Path, tmp_path: Path) -> None:
    results = [
        finetune(small_config(scalar_task(), root, tmp_path / str(index), seed=seed)).test["gap"]
        for index, seed in enumerate((1, 1, 2))
    ]
    assert results[0] == results[1] != results[2]


def test_references_of_kept_heads_can_be_refitted(root: Path, pretrained: Path, tmp_path: Path) -> None:
    """Energies of another zero: forces stay those of the checkpoint, energies lose the offset."""
    found = {}
    for refit in (False, True):
        said: list[str] = []
        watcher = SilentFinetuneWatcher()
        watcher.message = said.append  # type: ignore[method-assign]
        config = small_config(
            force_task("direct"), root, tmp_path / str(refit), start=pretrained, keep_heads="molecules", steps=1,
            refit_references=refit,
        )  # fmt: skip
        found[refit] = finetune(config, watcher=watcher).before
        assert any("--refit-references" in line for line in said) is not refit
    assert found[True]["forces"] == pytest.approx(found[False]["forces"], rel=1e-6)
    assert found[True]["energy"] < 0.01 * found[False]["energy"]


def test_a_batch_too_large_for_the_device_is_one_line(root: Path, tmp_path: Path, monkeypatch) -> None:
    def out_of_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trainer.Run, "rates", out_of_memory)
    with pytest.raises(JmpDataError, match=r"step 0: .* too small for 4 structures .* --set data.micro_batches=2"):
        finetune(small_config(scalar_task(), root, tmp_path / "run"))


def test_elements_that_are_only_measured_are_said(tmp_path: Path) -> None:
    said: list[str] = []
    watcher = SilentFinetuneWatcher()
    watcher.message = said.append  # type: ignore[method-assign]
    for split, names in {"train": ("CH4",), "val": ("CH3Cl", "CH4"), "test": ("CH3OH",)}.items():
        write_dataset(labelled_molecules(6, 0, names=names), tmp_path / "small" / split)
    finetune(small_config(scalar_task(), tmp_path, tmp_path / "run", steps=1), watcher=watcher)
    (line,) = [line for line in said if "WARNING" in line]
    assert "Cl of the val split and O of the test split never occurs in the training split" in line


def test_time_used_up_ends_with_an_evaluation(root: Path, tmp_path: Path) -> None:
    result = finetune(small_config(scalar_task(), root, tmp_path / "run", "stop.max_hours=1.0e-9", steps=100))
    assert result.stopped == "trained for 1e-09 hours"
    assert result.finished
    assert result.test.keys() == {"gap", "loss"}


@pytest.mark.parametrize("task", [force_task(), scalar_task()], ids=["forces", "gap"])
def test_nonfinite_loss_names_the_structures_and_can_be_replayed(root: Path, tmp_path: Path, monkeypatch, task) -> None:
    original = trainer.split_batch
    calls = []

    def poisoned(batch, parts):
        calls.append(1)
        if len(calls) == 2:
            batch[task.column(task.primary)].view(-1)[0] = float("inf")
        return original(batch, parts)

    config = small_config(task, root, tmp_path / "run", steps=3)
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "split_batch", poisoned)
        with pytest.raises(NonFiniteError, match=r"step 1: the loss is (inf|nan).*small\[\d+\] molecule") as caught:
            finetune(config)
    folder = config.out / "nonfinite" / "step-00000001"
    assert f"--replay {folder}" in str(caught.value)
    findings = replay(folder)
    assert any(f"target {task.primary} is not finite" in line for line in findings)
    assert any("gradient" in line for line in findings)
    with pytest.raises(CheckpointError, match="no stored batch"):
        replay(config.out)
    with pytest.raises(CheckpointError, match=r"a step of fine-tuning; look at it with jmp train finetune"):
        replay_pretraining(folder)


class TestBadConfigurations:
    """One clear line each, before any compute is spent."""

    def test_unknown_target(self, root: Path, tmp_path: Path) -> None:
        with pytest.raises(
            ManifestError, match=r"needs column dipole, which .* does not have; it has energy, forces, gap"
        ):
            finetune(small_config(scalar_task("dipole"), root, tmp_path / "run"))

    def test_fold_out_of_range(self, root: Path, tmp_path: Path) -> None:
        with pytest.raises(ManifestError, match="folds 0 to 4, not 7"):
            load_finetune_config("matbench:mp_gap", fold=7, out=tmp_path)
        with pytest.raises(ManifestError, match="has no folds"):
            load_finetune_config("qm9:U0", fold=1, out=tmp_path)

    def test_forces_wanted_of_a_set_without(self, tmp_path: Path) -> None:
        bare = [
            Structure(atomic_numbers=s.atomic_numbers, positions=s.positions, energy=s.energy)
            for s in labelled_molecules(4, 0)
        ]
        for split in ("train", "val"):
            write_dataset(bare, tmp_path / "small" / split)
        with pytest.raises(ManifestError, match="target forces needs column forces"):
            finetune(small_config(force_task(), tmp_path, tmp_path / "run"))

    def test_missing_split(self, tmp_path: Path) -> None:
        with pytest.raises(ManifestError, match="no training split"):
            finetune(small_config(force_task(), tmp_path, tmp_path / "run"))
        write_dataset(labelled_molecules(4, 0), tmp_path / "small" / "train")
        with pytest.raises(ManifestError, match=r"no validation split \(val\) in .*small, it has train; build it"):
            finetune(small_config(force_task(), tmp_path, tmp_path / "run"))
        with pytest.raises(ManifestError, match="val split"):
            finetune(small_config(force_task(), tmp_path, tmp_path / "run", "data.val=nowhere"))

    def test_elements_that_pretraining_never_saw(self, pretrained: Path, tmp_path: Path) -> None:
        for split in ("train", "val"):
            write_dataset(labelled_molecules(4, 0, names=("CH3Cl",)), tmp_path / "small" / split)
        with pytest.raises(ManifestError, match=r"Cl in .* did not occur"):
            finetune(small_config(force_task(), tmp_path, tmp_path / "run", start=pretrained))
        config = small_config(force_task(), tmp_path, tmp_path / "run", start=pretrained, new_elements="train", steps=1)
        assert finetune(config).steps == 1

    def test_heads_of_a_task_that_is_not_there(self, root: Path, pretrained: Path, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="no heads of 'oc20'; it has molecules, metals"):
            finetune(small_config(force_task(), root, tmp_path / "run", start=pretrained, keep_heads="oc20"))
        with pytest.raises(ManifestError, match="needs a checkpoint"):
            finetune(small_config(force_task(), root, tmp_path / "run", keep_heads="oc20"))

    def test_no_such_checkpoint(self, root: Path, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="no checkpoint"):
            finetune(small_config(force_task(), root, tmp_path / "run", start=tmp_path))

    def test_freezing_what_is_not_there(self, root: Path, tmp_path: Path) -> None:
        with pytest.raises(ManifestError, match="no parameter begins with 'readout'"):
            finetune(small_config(scalar_task(), root, tmp_path / "run", freeze=("readout",)))

    def test_two_ways_of_clipping(self, root: Path, tmp_path: Path) -> None:
        with pytest.raises(ManifestError, match="either by value or by norm"):
            small_config(scalar_task(), root, tmp_path / "run", "optimizer.clip_norm=1")
