"""`make demo`: the whole job on demo archives, cut to a few steps, and a second start that goes on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def run_demo(folder: Path) -> str:
    changes = ("schedule.max_steps=2", "data.train_first=8", "data.val_first=4", "data.test_first=4", "scale_batches=1")
    words = [word for change in changes for word in ("--set", change)]
    command = [sys.executable, "-m", "jmp_cli.demo", str(folder), "--steps", "4", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_demo_shows_all_it_did_and_can_be_started_again(tmp_path: Path) -> None:
    pytest.importorskip("tblite")
    first = run_demo(tmp_path)
    for shown in ("Demo archives", "Built", "verified, no damage", "Mixture at T = 2", "Validation MAE", "fine-tuned"):
        assert shown in first
    report = tmp_path / "report"
    page = (report / "README.md").read_text()
    for name in ("oc20", "oc22", "ani1x", "transition1x", "ethanol"):
        assert f"| {name}" in page or f":{name} |" in page
    for picture in ("loss_curves.png", "claim.png"):
        assert f"]({picture})" in page
        assert (report / picture).read_bytes().startswith(b"\x89PNG")
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "experiment").rglob("metrics.jsonl")}
    run_demo(tmp_path)
    assert (report / "README.md").read_text() == page
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "experiment").rglob("metrics.jsonl")} == stamps
