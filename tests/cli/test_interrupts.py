"""Ctrl-C and closed pipes: one line at most, no traceback, nothing half-written that passes for whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import typer

import jmp_data.schema.block
from jmp_cli.console import run_app
from tests.cli.run_cli import run

FORMULAS, CONFORMATIONS = 40, 4000


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    rng = np.random.default_rng(0)
    positions = (rng.random((CONFORMATIONS, 14, 3)) * 10).astype(np.float32)
    with h5py.File(folder / "ani1x-release.h5", "w") as file:
        for carbons in range(1, FORMULAS + 1):
            group = file.create_group(f"C{carbons}H10")
            group["atomic_numbers"] = np.array([6] * 4 + [1] * 10, np.uint8)
            group["coordinates"] = positions
            group["wb97x_dz.energy"] = rng.random(CONFORMATIONS)
            group["wb97x_dz.forces"] = positions
    return folder


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_build_says_so_and_goes_on_later(raw: Path, tmp_path: Path, workers: int) -> None:
    arguments = ["build", "ani1x", "--raw", str(raw), "--out", str(tmp_path / "out"), "--workers", str(workers)]
    command = [sys.executable, "-m", "jmp_cli.data_app", *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while process.poll() is None and not (tmp_path / "out").exists():
        time.sleep(0.01)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the program and all of its workers
    _, errors = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.skip("the build was faster than the signal")
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert [line for line in errors.splitlines() if line.startswith("error:")] == [
        "error: interrupted; what is finished is kept, the same command goes on from there"
    ]
    assert run("jmp-data", *arguments).code == 0
    assert run("jmp-data", "verify", tmp_path / "out").code == 0


@pytest.mark.parametrize("arguments", [["list"], ["info", "oc20"], ["list", "--json"]])
def test_a_closed_pipe_is_no_error_worth_a_traceback(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "jmp_cli.data_app", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    errors = process.stderr.read()
    process.wait(timeout=60)
    assert "Traceback" not in errors
    assert "BrokenPipeError" not in errors


def test_an_error_that_nobody_foresaw_is_one_line_with_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    app = typer.Typer()

    @app.command()
    def fall() -> None:
        natural_sizes = jmp_data.schema.block.ragged_take
        natural_sizes(None, None)  # type: ignore[arg-type]

    with pytest.raises(SystemExit) as caught:
        run_app(lambda **options: app([], **options), "jmp-data")  # type: ignore[arg-type]
    assert caught.value.code == 70
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert errors.startswith("error: unexpected TypeError at block.py:")
    assert "bug" in errors


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["nothing"], "nothing"),
        (["build"], "sources"),
        (["build", "oc20", "--limit", "0"], "--limit"),
        (["build", "oc20", "--format", "hdf5"], "--format"),
        (["mix", "a", "--temperature", "warm"], "--temperature"),
        (["list", "--nothing"], "--nothing"),
    ],
)
def test_a_wrong_command_line_is_one_error_line(arguments: list[str], word: str) -> None:
    outcome = run("jmp-data", *arguments)
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert outcome.error_lines
    assert word in outcome.error_lines[0]
