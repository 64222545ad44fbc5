"""`jmp experiment`: names, results on disk and as JSON, going on, and bad input."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.cli.run_cli import run
from tests.jmp_model.finetune.small_tasks import force_task, write_splits
from tests.jmp_model.train.small_runs import SMALLEST, write_mixture

NAMES = {"scratch_or_fine_tuned", "force_loss", "temperature", "leave_one_out", "overlap", "heads", "size_ladder"}
CPU = {"hardware.accelerator": "cpu", "hardware.devices": 1, "scale_batches": 2, "model_changes": SMALLEST}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data sets of two small sources and of a task, and an experiment over them."""
    root = tmp_path_factory.mktemp("experiment")
    write_mixture(root / "data", train=8, val=4)
    write_splits(root / "data")
    (root / "task.yaml").write_text(json.dumps(force_task().model_dump(mode="json")))
    spec = {
        "title": "Small",
        "question": "Does it run?",
        "baseline": "scratch",
        "tiny_pretrain": {**CPU, "schedule.steps": 2, "data.batch_size": 4, "data.graphs": {}},
        "finetune": {
            "task": str(root / "task.yaml"),
            "settings": {**CPU, "report": False},
            "tiny": {"schedule.max_steps": 2},
            "tiny_rates": [0.001, 0.003],
        },
        "variants": {"scratch": {}, "tuned": {"pretrain": {"mix": {"datasets": ["molecules", "metals"]}}}},
    }
    (root / "small.yaml").write_text(json.dumps(spec))
    return root


def test_all_names_are_listed() -> None:
    listed = run("jmp", "experiment", "--json")
    assert listed.code == 0
    assert json.loads(listed.out).keys() == NAMES


def test_table_picture_and_json_and_a_second_call_reuses_everything(folder: Path) -> None:
    arguments = ("experiment", folder / "small.yaml", "--data", folder / "data", "--out", folder / "out", "--json")
    first = run("jmp", *arguments, "--seeds", "2")
    assert first.code == 0, first.err
    assert first.err.count("learning rate") == 2
    found = json.loads(first.out)
    assert [entry["variant"] for entry in found["results"]] == ["scratch", "tuned"]
    assert found["results"][0]["improvement"] is None
    assert len(found["results"][1]["improvements"]) == 2
    with (folder / "out" / "results.csv").open() as stream:
        row = next(csv.DictReader(stream))
    assert float(row["mean"]) == pytest.approx((float(row["seed 0"]) + float(row["seed 1"])) / 2)
    assert (folder / "out" / "results.md").read_text().startswith("# Small\n")
    assert (folder / "out" / "results.png").read_bytes().startswith(b"\x89PNG")
    stamps = {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("metrics.jsonl")}
    assert run("jmp", *arguments, "--seeds", "0,1").out == first.out
    assert {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("metrics.jsonl")} == stamps


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "no experiment 'nothing': choose one of force_loss, heads"),
        (["temperature", "--seeds", "many"], "--seeds many: give how many"),
        (["temperature", "--seeds", "0"], "--seeds 0: give how many"),
        (["temperature", "--data", "nowhere"], "no training split of oc20"),
        (["heads", "--data", "nowhere", "--from", "scratch=run"], "no variant 'scratch' that is pre-trained"),
        (["temperature", "--data", "nowhere", "--set", "pretrain:schedule.stps=3"], "unknown setting schedule.stps"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    found = run("jmp", "experiment", *arguments, "--out", tmp_path / "out")
    assert found.code != 0
    assert len(found.error_lines) == 1
    assert message in found.error_lines[0]
    assert "Traceback" not in found.err
    assert not (tmp_path / "out").exists()
