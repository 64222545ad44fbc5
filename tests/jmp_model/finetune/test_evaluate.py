"""Evaluation of checkpoints, the report page, and own files in one call."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from ase.io import write

from jmp_data import open_dataset
from jmp_data.errors import CheckpointError, ManifestError
from jmp_model.finetune.config import DataSettings
from jmp_model.finetune.error_analysis import (
    error_by_element,
    error_by_force,
    structure_errors,
    summarize_errors,
    worst_structures,
)
from jmp_model.finetune.evaluate import evaluate_checkpoint
from jmp_model.finetune.own_data import finetune_files
from jmp_model.finetune.own_task import own_task
from jmp_model.finetune.predictions import SplitPredictions, score
from jmp_model.finetune.tasks import TargetSpec
from jmp_model.finetune.trainer import finetune
from jmp_model.finetune.watcher import SilentFinetuneWatcher
from tests.jmp_model.finetune.small_tasks import force_task, labelled_molecules, scalar_task, small_config


@pytest.fixture(scope="module")
def force_run(root: Path, tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("forces") / "run"
    return finetune(small_config(force_task(), root, out, "report=true", steps=8))


def test_evaluation_repeats_the_test_errors_of_the_run(root: Path, force_run) -> None:
    found = evaluate_checkpoint(force_run.out, data=DataSettings(root=root))
    assert found.split == "test"
    assert found.structures == 6
    for name, value in found.metrics.items():
        assert value == pytest.approx(force_run.test[name], rel=1e-4), name
    assert found.units["forces"] == "meV/Å"


def test_classes_are_scored_alike(root: Path, tmp_path: Path) -> None:
    result = finetune(small_config(scalar_task("has_oxygen"), root, tmp_path / "run"))
    found = evaluate_checkpoint(result.out, data=DataSettings(root=root))
    assert found.metrics["has_oxygen"] == pytest.approx(result.test["has_oxygen"])


def test_a_pretrained_model_needs_a_task_and_heads(root: Path, pretrained: Path) -> None:
    data = DataSettings(root=root)
    with pytest.raises(ManifestError, match=r"name a task.*molecules, metals"):
        evaluate_checkpoint(pretrained, data=data)
    found = evaluate_checkpoint(pretrained, task=force_task("direct"), heads="molecules", data=data)
    assert found.metrics["forces"] > 0
    with pytest.raises(ManifestError, match="no test split"):
        evaluate_checkpoint(pretrained, task=force_task("direct"), heads="molecules", data=DataSettings())


def test_report_page(force_run) -> None:
    page = (force_run.out / "report.html").read_text()
    for text in (
        "small:forces",
        "Worst structures",
        "molecule 0",
        "meV/Å",
        "from scratch",
        "Learning curves",
        "Error by element",
        "Error by size of the force",
        "JMPCalculator",
    ):
        assert text in page
    assert page.count('role="img" aria-label="predictions against labels"') == 2
    # Nothing is fetched: the only addresses are names of XML namespaces.
    assert set(re.findall(r"https?://[^\"'<> ]+", page)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert "#01020" not in page  # every colour is the page's


def test_report_of_classes(root: Path, tmp_path: Path) -> None:
    result = finetune(small_config(scalar_task("has_oxygen"), root, tmp_path / "run", "report=true"))
    page = (result.out / "report.html").read_text()
    assert "confusion matrix" in page
    assert "balanced accuracy" in page


def test_a_model_is_not_measured_on_what_it_does_not_predict(root: Path, force_run) -> None:
    with pytest.raises(CheckpointError, match=r"predicts energy, forces; small:gap is about gap"):
        evaluate_checkpoint(force_run.out, task=scalar_task())
    with pytest.raises(CheckpointError, match=r"makes forces as gradient"):
        evaluate_checkpoint(force_run.out, task=force_task("direct"))
    with pytest.raises(ManifestError, match="has its own heads"):
        evaluate_checkpoint(force_run.out, heads="molecules")


def made_up() -> SplitPredictions:
    truth = np.array([[0.0, 0, 0], [1.0, 0, 0], [0, 3.0, 0], [0, 0, 4.0], [0, 0, 0]])
    return SplitPredictions(
        truth={"forces": truth, "energy": np.array([1.0, np.nan])},
        predicted={"forces": truth + np.arange(5)[:, None], "energy": np.array([1.5, 9.0])},
        natoms=np.array([2, 3]),
        atomic_numbers=np.array([1, 8, 1, 1, 6]),
        free=np.array([True, True, False, True, True]),
        index=np.array([0, 1]),
    )


def test_errors_by_hand() -> None:
    forces = TargetSpec(kind="forces", report_scale=1000.0)
    energy = TargetSpec(kind="energy")
    predictions = made_up()
    assert score(predictions, "forces", forces) == pytest.approx(1000.0 * (0 + 1 + 3 + 4) / 4)
    assert score(predictions, "energy", energy) == 0.5
    assert structure_errors(predictions, "forces", forces).tolist() == pytest.approx([500.0, 3000.0])
    assert error_by_element(predictions, "forces", forces) == {"H": (1500.0, 2), "C": (4000.0, 1), "O": (1000.0, 1)}
    summary = summarize_errors(predictions, "forces", forces)
    assert (summary.mae, summary.count) == (2000.0, 12)
    assert summary.rmse == pytest.approx(1000.0 * (26 / 4) ** 0.5)
    assert summary.spread == pytest.approx(1000.0 * 5 / 12)
    assert summarize_errors(predictions, "energy", energy).mae_per_atom == 0.25
    ends, errors = error_by_force(predictions, "forces", forces)
    assert ends[-1] == 4.0
    assert errors[-1] == 3000.0
    worst = worst_structures(predictions, "forces", forces, list(labelled_molecules(2, 0)), count=1)  # type: ignore[arg-type]
    assert worst[0].structure.source_id == "molecule 1"
    assert worst[0].error == pytest.approx(3000.0)


class Lines(SilentFinetuneWatcher):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)


def write_frames(path: Path, count: int = 40) -> Path:
    frames = []
    for structure in labelled_molecules(count, 5):
        atoms = structure.to_ase()
        frames.append(atoms)
    write(path, frames)
    return path


def test_own_file_to_model_and_report_in_one_call(pretrained: Path, tmp_path: Path) -> None:
    file = write_frames(tmp_path / "mine.extxyz")
    watcher = Lines()
    overrides = ("schedule.max_steps=4", "hardware.accelerator=cpu", "hardware.devices=1", "log_every=1")
    result = finetune_files([file], out=tmp_path / "run", start=pretrained, overrides=overrides, watcher=watcher)
    assert result.test.keys() == {"energy", "forces", "loss"}
    assert (tmp_path / "run" / "report.html").exists()
    assert any("JMPCalculator" in line for line in watcher.lines)
    assert any("element references" in line for line in watcher.lines)

    from jmp_model.calculator import JMPCalculator

    atoms = next(labelled_molecules(1, 9)).to_ase()
    atoms.calc = JMPCalculator(result.out)
    assert np.isfinite(atoms.get_potential_energy())
    assert atoms.get_forces().shape == (len(atoms), 3)
    again = finetune_files([file], out=tmp_path / "run", resume=True)
    assert again.steps == 4
    with pytest.raises(ManifestError, match="already holds a run"):
        finetune_files([file], out=tmp_path / "run")


def test_own_task_follows_what_the_data_hold(root: Path) -> None:
    train = open_dataset(root / "small" / "train")
    both = own_task(train)
    assert both.forces == "gradient"
    assert both.primary == "forces"
    assert both.graph.cutoff == 8.0
    assert both.targets["energy"].references == "fit"
    assert own_task(train, targets=["gap"]).forces is None
    assert own_task(train, targets=["has_oxygen"]).targets["has_oxygen"].kind == "class"
    assert own_task(train, targets=["forces"]).forces == "direct"
    with pytest.raises(ManifestError, match="no column dipole; it has energy, forces, gap, has_oxygen"):
        own_task(train, targets=["dipole"])


def test_too_few_own_structures(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"too few|no split|at least"):
        finetune_files([write_frames(tmp_path / "two.extxyz", 2)], out=tmp_path / "run")
