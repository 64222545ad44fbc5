"""Training on the command line: what works end to end, and every bad configuration as one line before compute."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ase.io
import pytest
import yaml

from jmp_data import Structure, write_dataset
from jmp_model.train.metrics_log import read_rows
from jmp_model.train.trainer import pretrain
from tests.cli.run_cli import Outcome, run_here
from tests.jmp_model.finetune.small_tasks import force_task, labelled_molecules, scalar_task, write_splits
from tests.jmp_model.train.small_runs import SMALLEST, small_config, write_mixture

CPU = ("--set", "hardware.accelerator=cpu", "--set", "hardware.devices=1")
SHORT = (*CPU, "--set", "schedule.max_steps=4", "--set", "log_every=1", "--set", "scale_batches=2")
TINY = ("--model", "tiny", "--set", f"model_changes={json.dumps(SMALLEST)}")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with splits, task files, own frames, a mixture, and a pre-trained run."""
    folder = tmp_path_factory.mktemp("training")
    write_splits(folder)
    for name, task in {"forces": force_task(), "gap": scalar_task(), "dipole": scalar_task("dipole")}.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task.model_dump(mode="json")))
    ase.io.write(folder / "mine.extxyz", [s.to_ase() for s in labelled_molecules(40, 5)])
    pretrain(small_config(write_mixture(folder), folder / "pre", steps=3))
    return folder


def inside_of(place: Path, arguments: list[str]) -> list[str]:
    """Files and folders among the arguments, as paths in the folder of the test."""
    return [
        str(place / a) if a in ("pre", "small", "absent") or a.endswith((".yaml", ".extxyz")) else a for a in arguments
    ]


def tune(place: Path, out: Path, *arguments: object, short: tuple[str, ...] = SHORT) -> Outcome:
    return run_here("jmp", "train", "finetune", "--root", place, "--out", out, *short, *arguments)


def expect_refusal(outcome: Outcome, *words: str) -> None:
    assert outcome.code != 0
    assert "Traceback" not in outcome.err
    (line,) = outcome.error_lines
    for word in words:
        assert word in line, line


def test_tune_evaluate_and_tabulate(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    outcome = tune(place, out, "--task", place / "forces.yaml", "--from", place / "pre", "--json")
    assert outcome.code == 0, outcome.err
    result = json.loads(outcome.out)
    assert (result["steps"], result["finished"]) == (4, True)
    page = (out / "report.html").read_text()
    for words in ("small:forces", "Learning curves", "Parity", "Worst structures", "Error by size of the force"):
        assert words in page
    evaluated = json.loads(run_here("jmp", "evaluate", out, "--json").out)
    assert evaluated["metrics"]["forces"] == pytest.approx(result["test"]["forces"], rel=1e-4)
    assert evaluated["units"]["forces"] == "meV/Å"
    shown = run_here(
        "jmp", "evaluate", out, "--task", place / "forces.yaml", "--data", place / "small/val", "--split", "val"
    )
    assert shown.code == 0, shown.err
    assert "6 structures of val" in shown.out
    table = run_here("jmp", "results", tmp_path, "--csv", tmp_path / "table.csv", "--markdown", tmp_path / "table.md")
    assert table.code == 0, table.err
    assert "small:forces" in table.out
    assert "not run, 40 of 40 tasks of the paper: qm9:mu" in table.out
    assert "small:forces" in (tmp_path / "table.csv").read_text()
    assert "Not run: qm9:mu" in (tmp_path / "table.md").read_text()


def test_own_files_to_model_report_and_calculator(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "tuned"
    arguments = ("--data", place / "mine.extxyz", "--from", place / "pre", "--out", out)
    outcome = run_here("jmp", "train", "finetune", *arguments, *SHORT)
    assert outcome.code == 0, outcome.err
    for words in ("GUESSED units.energy: eV", "fitted element references", "JMPCalculator", "report.html"):
        assert words in outcome.err
    assert (out / "report.html").exists()
    assert (out / "data/mine.yaml").exists()
    predicted = tmp_path / "predicted.extxyz"
    done = run_here("jmp", "predict", place / "mine.extxyz", "--from", out, "--out", predicted)
    assert done.code == 0, done.err
    assert len(ase.io.read(predicted, ":")) == 40
    expect_refusal(run_here("jmp", "train", "finetune", *arguments, *SHORT), "already holds a run", "--resume")


def test_own_manifest_units_and_targets(place: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "my.yaml"
    assert run_here("jmp-data", "init-manifest", place / "mine.extxyz", "--out", manifest).code == 0
    outcome = tune(place, tmp_path / "a", "--data", manifest, *TINY, "--target", "energy", "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["test"].keys() == {"energy", "loss"}
    data = ("--data", place / "mine.extxyz", *TINY)
    outcome = tune(place, tmp_path / "b", *data, "--unit", "energy=kcal/mol", "--unit", "forces=kcal/mol/Å", "--json")
    assert outcome.code == 0, outcome.err
    assert yaml.safe_load((tmp_path / "b/data/mine.yaml").read_text())["units"]["energy"] == "kcal/mol"
    frames = ase.io.read(place / "mine.extxyz", ":")
    for number, atoms in enumerate(frames):
        atoms.info["gap"] = 0.1 * number
    ase.io.write(tmp_path / "gaps.extxyz", frames)
    outcome = tune(place, tmp_path / "c", "--data", tmp_path / "gaps.extxyz", *TINY, "--target", "gap", "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["test"].keys() == {"gap", "loss"}


def test_seeds_and_folds_in_one_run(place: Path, tmp_path: Path) -> None:
    folds = tmp_path / "folds"
    for fold in range(2):
        for number, split in enumerate(("train", "val", "test")):
            write_dataset(labelled_molecules(6, 10 * fold + number), folds / "small" / f"fold{fold}_{split}")
    task = tmp_path / "folded.yaml"
    task.write_text(yaml.safe_dump(scalar_task(folds=2).model_dump(mode="json")))
    arguments = ("--task", task, *TINY, "--seeds", "0,1", "--set", "schedule.max_steps=1", "--set", "report=false")
    outcome = tune(folds, tmp_path / "series", *arguments, "--json")
    assert outcome.code == 0, outcome.err
    runs = json.loads(outcome.out)["runs"]
    assert [Path(entry["out"]).name for entry in runs] == ["fold0-seed0", "fold0-seed1", "fold1-seed0", "fold1-seed1"]
    again = tune(folds, tmp_path / "series", *arguments)
    assert "all runs are finished" in again.out
    row = json.loads(run_here("jmp", "results", tmp_path / "series", "--json").out)["rows"][0]
    assert len(row["runs"]) == 4
    assert row["spread"] > 0
    expect_refusal(
        tune(folds, tmp_path / "series", *arguments, "--set", "optimizer.base_lr=0.1"), "base_lr", "start a new run"
    )
    expect_refusal(run_here("jmp", "evaluate", tmp_path / "series/fold1-seed0", "--fold", "0"), "trained on fold 1")
    expect_refusal(run_here("jmp", "evaluate", tmp_path / "series"), "series", "fold0-seed0")


def test_several_targets_frozen_backbone_and_new_elements(place: Path, tmp_path: Path) -> None:
    targets: dict[str, Any] = {**scalar_task().model_dump(mode="json")["targets"]}
    targets |= scalar_task("has_oxygen").model_dump(mode="json")["targets"]
    task = tmp_path / "both.yaml"
    task.write_text(yaml.safe_dump(scalar_task(targets=targets).model_dump(mode="json")))
    write_dataset(labelled_molecules(8, 0, names=("CH3Cl",)), tmp_path / "small/train")
    write_dataset(labelled_molecules(4, 1, names=("CH3Cl",)), tmp_path / "small/val")
    arguments = ("--task", task, "--from", place / "pre", "--freeze", "backbone", "--new-elements", "train", "--json")
    outcome = tune(tmp_path, tmp_path / "run", *arguments)
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["validation"].keys() == {"gap", "has_oxygen"}
    assert "parameters stay as they are" in outcome.err


def test_kept_heads_predict_what_the_checkpoint_did(place: Path, tmp_path: Path) -> None:
    """Before the first step, a run with kept heads errs exactly as the pre-trained model (fairchem#1756)."""
    arguments = ("--task", place / "forces.yaml", "--forces", "direct")
    outcome = tune(place, tmp_path / "run", *arguments, "--from", place / "pre", "--keep-heads", "molecules", "--json")
    assert outcome.code == 0, outcome.err
    direct = tmp_path / "direct.yaml"
    direct.write_text(yaml.safe_dump(force_task("direct").model_dump(mode="json")))
    options = ("--task", direct, "--heads", "molecules", "--root", place, "--split", "val", "--json")
    evaluated = run_here("jmp", "evaluate", place / "pre", *options)
    assert evaluated.code == 0, evaluated.err
    before = json.loads(outcome.out)["before"]
    assert json.loads(evaluated.out)["metrics"]["forces"] == pytest.approx(before["forces"], rel=1e-6)


def test_terminated_run_goes_on(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    steps = (*CPU, "--set", "schedule.max_steps=4000", "--set", "stop.patience=10000", "--set", "scale_batches=2")
    command = ["train", "finetune", "--root", place, "--out", out, "--task", place / "gap.yaml", *TINY, *steps]
    process = subprocess.Popen(
        [sys.executable, "-m", "jmp_cli.model_app", *map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 120
    while len(read_rows(out, "training")) < 1 and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert b"SIGTERM" in said
    assert b"--resume goes on" in said
    assert not (out / "summary.json").exists()
    done = len(read_rows(out, "training"))
    outcome = run_here(
        "jmp", "train", "finetune", "--out", out, "--resume", "--set", "hardware.max_hours=1e-9", "--json"
    )
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["stopped"] == "time limit"
    assert len(read_rows(out, "training")) >= done


def test_pretraining_goes_on_from_its_folder_alone(place: Path, tmp_path: Path) -> None:
    arguments = ("--mix", place / "mix.yaml", "--out", tmp_path / "run", *TINY, *CPU, "--steps", 2)
    settings = ("--set", "scale_batches=2", "--set", "data.batch_size=4")
    stopped = run_here("jmp", "train", "pretrain", *arguments, *settings, "--set", "hardware.max_hours=1e-9")
    assert "time limit" in stopped.out, stopped.err
    outcome = run_here(
        "jmp", "train", "pretrain", "--out", tmp_path / "run", "--resume", "--set", "hardware.max_hours=1"
    )
    assert outcome.code == 0, outcome.err
    assert "2 of 2 steps" in outcome.out


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Splits without forces."""
    folder = tmp_path_factory.mktemp("bare")

    def structures(seed: int) -> Iterator[Structure]:
        for s in labelled_molecules(6, seed):
            yield Structure(atomic_numbers=s.atomic_numbers, positions=s.positions, energy=s.energy)

    for seed, split in enumerate(("train", "val")):
        write_dataset(structures(seed), folder / "small" / split)
    return folder


class TestBadConfigurations:
    """One line, a non-zero exit code, and no run folder."""

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ([], ["--task", "--data"]),
            (["--task", "qm9:enthalpy"], ["unknown task 'qm9:enthalpy'", "qm9:U0"]),
            (["--task", "qm8:mu"], ["unknown task", "matbench"]),
            (["--task", "absent.yaml"], ["absent.yaml", "no such recipe file"]),
            (["--task", "matbench:mp_gap", "--fold", "7"], ["folds 0 to 4, not 7"]),
            (["--task", "qm9:U0", "--fold", "1"], ["qm9:U0 has no folds"]),
            (["--task", "qm9:U0"], ["no training split", "jmp-data build"]),
            (["--task", "qm9:U0,U0"], ["named twice"]),
            (["--task", "rmd17:aspirin,ethanol"], ["different structures"]),
            (["--task", "qm9:mu", "--forces", "direct"], ["qm9:mu has no forces"]),
            (["--task", "qm9:mu", "--seeds", "1,x"], ["--seeds", "whole numbers"]),
            (["--task", "qm9:mu", "--seeds", "1,1"], ["named twice"]),
            (["--task", "qm9:mu", "--seed", "1", "--seeds", "1,2"], ["either --seed or --seeds"]),
            (["--task", "qm9:mu", "--data", "mine.extxyz"], ["brings its own data"]),
            (["--task", "qm9:mu", "--unit", "energy=eV"], ["give --data"]),
            (["--data", "absent.extxyz"], ["absent.extxyz", "no such file"]),
            (["--data", "mine.extxyz", "--unit", "energy"], ["--unit", "COLUMN=UNIT"]),
            (["--data", "mine.extxyz", "--unit", "energy=parsec"], ["'parsec'"]),
            (["--data", "mine.extxyz", "--target", "dipole"], ["no column dipole", "energy"]),
            (["--data", "mine.extxyz", "--from", "absent"], ["absent", "no checkpoint"]),
            (["--task", "dipole.yaml"], ["needs column dipole", "it has energy, forces, gap"]),
            (["--task", "forces.yaml", "--from", "absent"], ["absent", "no checkpoint"]),
            (["--task", "forces.yaml", "--from", "small"], ["small", "no checkpoint"]),
            (["--task", "forces.yaml", "--keep-heads", "oc20"], ["needs a checkpoint"]),
            (["--task", "forces.yaml", "--from", "pre", "--keep-heads", "oc20"], ["no heads of 'oc20'", "molecules"]),
            (["--task", "forces.yaml", "--from", "pre", "--freeze", "readout"], ["no parameter begins with 'readout'"]),
            (["--task", "forces.yaml", "--set", "optimizer.base_rl=1"], ["unknown setting optimizer.base_rl"]),
            (["--task", "forces.yaml", "--set", "optimizer.base_lr=-1"], ["optimizer.base_lr"]),
            (["--task", "forces.yaml", "--set", "optimizer.clip_norm=1"], ["either by value or by norm"]),
            (["--task", "forces.yaml", "--set", "data.micro_batches=9"], ["data.micro_batches is 9"]),
            (["--task", "forces.yaml", "--set", "hardware.compile=true"], ["compile", "gradient forces"]),
            (["--task", "forces.yaml", "--set", "hardware.strategy=fsdp"], ["fsdp", "gradient forces"]),
            (["--task", "forces.yaml", "--set", "hardware.precision=8"], ["hardware.precision"]),
            (["--task", "gap.yaml", "--set", "optimizer.layer_rates={nothing: 0.1}"], ["begins with 'nothing'"]),
            (["--task", "gap.yaml", "--set", "model_changes={num_blockz: 3}"], ["model_changes", "num_blockz"]),
            (["--task", "gap.yaml", "--set", "seed"], ["--set 'seed'", "key=value"]),
            (["--task", "gap.yaml", "--recipe", "absent.yaml"], ["absent.yaml", "no such recipe file"]),
            (["--resume"], ["no run to go on with"]),
            (["--replay", "small"], ["no stored batch"]),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) and value and value[0].startswith("--") else "",
    )  # fmt: skip
    def test_finetune(self, place: Path, tmp_path: Path, arguments: list[str], words: list[str]) -> None:
        inside = inside_of(place, arguments)
        expect_refusal(tune(place, tmp_path / "run", *TINY, *inside), *words)
        assert not (tmp_path / "run" / "checkpoints").exists()
        assert not (tmp_path / "run" / "config.yaml").exists()

    def test_forces_of_a_set_without(self, place: Path, bare: Path, tmp_path: Path) -> None:
        outcome = tune(bare, tmp_path / "run", "--task", place / "forces.yaml", *TINY)
        expect_refusal(outcome, "target forces needs column forces", "does not have", "it has energy")

    def test_elements_that_pretraining_never_saw(self, place: Path, tmp_path: Path) -> None:
        for split in ("train", "val"):
            write_dataset(labelled_molecules(4, 0, names=("CH3Cl",)), tmp_path / "small" / split)
        outcome = tune(tmp_path, tmp_path / "run", "--task", place / "forces.yaml", "--from", place / "pre")
        expect_refusal(outcome, "Cl in", "did not occur", "--new-elements train")

    def test_own_files_that_are_too_few(self, tmp_path: Path) -> None:
        ase.io.write(tmp_path / "two.extxyz", [s.to_ase() for s in labelled_molecules(2, 5)])
        outcome = run_here(
            "jmp", "train", "finetune", "--data", tmp_path / "two.extxyz", "--out", tmp_path / "run", *TINY
        )
        expect_refusal(outcome, "two.extxyz", "too few structures")

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ([], ["--mix"]),
            (["--mix", "absent.yaml"], ["absent.yaml"]),
            (["--mix", "mix.yaml", "--set", "data.batch_size=0"], ["data.batch_size"]),
            (["--mix", "mix.yaml", "--set", "data.graphs={silver: {cutoff: 6}}"], ["data.graphs names silver"]),
            (["--mix", "mix.yaml", "--set", "targets.references=published"], ["no published energy_std"]),
            (["--mix", "mix.yaml", "--recipe", "pretrian"], ["no recipe 'pretrian'"]),
            (["--mix", "mix.yaml", "--init-from", "small"], ["small", "no checkpoint"]),
            (["--resume"], ["no run to go on with"]),
            (["--replay", "small"], ["no stored batch"]),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) and value and value[0].startswith("--") else "",
    )  # fmt: skip
    def test_pretrain(self, place: Path, tmp_path: Path, arguments: list[str], words: list[str]) -> None:
        inside = inside_of(place, arguments)
        expect_refusal(run_here("jmp", "train", "pretrain", "--out", tmp_path / "run", *TINY, *CPU, *inside), *words)
        assert not (tmp_path / "run").exists()

    def test_pretraining_without_forces(self, bare: Path, tmp_path: Path) -> None:
        mix = ("mix", bare / "small/train", "--out", tmp_path / "mix.yaml")
        assert run_here("jmp-data", *mix).code == 0
        outcome = run_here(
            "jmp", "train", "pretrain", "--mix", tmp_path / "mix.yaml", "--out", tmp_path / "run", *TINY, *CPU
        )
        expect_refusal(outcome, "has no forces", "Leave it out of the mixture")

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["absent"], ["absent", "no checkpoint"]),
            (["pre"], ["pre-trained model", "molecules, metals"]),
            (["pre", "--task", "forces.yaml", "--heads", "oc20"], ["no heads of 'oc20'"]),
            (["pre", "--task", "gap.yaml", "--heads", "molecules"], ["keep_heads needs"]),
            (["pre", "--task", "matbench:mp_gap", "--fold", "9"], ["folds 0 to 4"]),
            (["pre", "--task", "forces.yaml", "--heads", "molecules", "--root", "absent"], ["no test split"]),
            (["pre", "--root", "small", "--data", "small"], ["either --root or --data"]),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) and "--" in " ".join(value) else "",
    )
    def test_evaluate(self, place: Path, arguments: list[str], words: list[str]) -> None:
        inside = inside_of(place, arguments)
        expect_refusal(run_here("jmp", "evaluate", *inside), *words)

    def test_results(self, place: Path) -> None:
        expect_refusal(run_here("jmp", "results", place / "absent"), "no such folder")
        expect_refusal(run_here("jmp", "results", place / "small"), "no finished fine-tuning run")


def launch(*arguments: object, ranks: int = 2) -> None:
    """Run `jmp` under torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command += ["-m", "jmp_cli.model_app", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]


def losses(out: Path) -> list[float]:
    return [row["loss"] for row in read_rows(out, "training")]


@pytest.mark.slow
@pytest.mark.parametrize(("forces", "strategy"), [("gradient", "ddp"), ("direct", "ddp"), ("direct", "fsdp")])
def test_two_ranks_tune_as_one(place: Path, tmp_path: Path, forces: str, strategy: str) -> None:
    common = ("train", "finetune", "--root", place, "--task", place / "forces.yaml", "--from", place / "pre")
    common = (*common, "--forces", forces, *SHORT, "--set", "report=false")
    one = run_here("jmp", *common, "--out", tmp_path / "one")
    assert one.code == 0, one.err
    launch(*common, "--out", tmp_path / "two", "--set", f"hardware.strategy={strategy}")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)
    # Stopped on one rank, gone on with on two.
    stopped = run_here("jmp", *common, "--out", tmp_path / "moved", "--set", "hardware.max_hours=1e-9")
    assert "time limit" in stopped.out, stopped.err
    resumed = ("--out", tmp_path / "moved", "--resume", "--set", f"hardware.strategy={strategy}")
    launch("train", "finetune", *resumed, "--set", "hardware.max_hours=1")
    assert losses(tmp_path / "moved") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)


@pytest.mark.slow
def test_two_ranks_build_own_files_once(place: Path, tmp_path: Path) -> None:
    data = ("--data", place / "mine.extxyz", "--from", place / "pre", "--set", "data.batch_size=4")
    launch("train", "finetune", *data, "--out", tmp_path / "run", *SHORT)
    assert (tmp_path / "run/report.html").exists()
    assert len(losses(tmp_path / "run")) == 4
