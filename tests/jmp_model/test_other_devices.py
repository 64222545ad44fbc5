"""Training, fine-tuning and prediction on a device other than the CPU: nothing is left behind or read back unasked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch.utils import backend_registration

ROOT = Path(__file__).parents[2]


pytestmark = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this version of PyTorch knows no devices written in Python",
)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.jmp_model.stand_in_runs", str(tmp_path_factory.mktemp("stand_in"))]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("name", ["pretraining", "prediction", "step"])
def test_a_device_gives_the_same_numbers(results: dict[str, Any], name: str) -> None:
    assert results[name]["device"] == pytest.approx(results[name]["cpu"], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", ["gradient forces", "scalar"])
def test_fine_tuning_on_a_device_ends_with_the_same_errors(results: dict[str, Any], name: str) -> None:
    assert results[name]["device"] == pytest.approx(results[name]["cpu"], rel=1e-5)


def test_a_step_waits_for_the_device_four_times_only(results: dict[str, Any]) -> None:
    """Checks and counts of edges, closing edges of quadruplets, rows of the heads; then what the test asks for."""
    asked = {place: n for place, n in results["step"]["to_host"].items() if "jmp_model/stand_in_runs.py" not in place}
    assert sum(asked.values()) == 4, asked
    sent = [place for place in results["step"]["to_device"] if "stand_in_runs.py" not in place]
    assert not [place for place in sent if "gemnet_oc" in place and "graphs.py" not in place], sent
