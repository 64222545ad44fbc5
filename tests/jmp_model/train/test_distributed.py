"""Two ranks over gloo follow one rank with the same global batch, and runs move between numbers of ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jmp_model.train.checkpoint import read_checkpoint
from jmp_model.train.config import PretrainConfig, save_config
from jmp_model.train.metrics_log import read_rows
from jmp_model.train.trainer import pretrain
from tests.jmp_model.train.small_runs import small_config

ROOT = Path(__file__).parents[3]
STEPS = 5
WITHOUT_DROPOUT = "data.edge_dropout=0"


def launch(config: PretrainConfig, folder: Path, *arguments: str, ranks: int = 2) -> None:
    """Run a configuration under torchrun."""
    save_config(config, folder / "launch.yaml")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    script = str(Path(__file__).with_name("launched_run.py"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, script, str(folder / "launch.yaml"), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[:6000]


@pytest.fixture(scope="module")
def one_rank(mix: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("one") / "run"
    pretrain(small_config(mix, out, WITHOUT_DROPOUT, steps=STEPS))
    return out


def assert_same_course(out: Path, reference: Path) -> None:
    ours, theirs = read_rows(out, "training"), read_rows(reference, "training")
    assert [row["step"] for row in ours] == list(range(1, STEPS + 1))
    for name in ("loss", "energy_loss", "force_loss", "grad_norm", "molecules/force_mae", "structures", "lr"):
        assert [row[name] for row in ours] == pytest.approx([row[name] for row in theirs], rel=1e-3), name
    mine, other = read_rows(out, "validation"), read_rows(reference, "validation")
    for row, expected in zip(mine, other, strict=True):
        for name in ("molecules/energy_mae", "metals/force_mae", "metals/structures"):
            assert row[name] == pytest.approx(expected[name], rel=1e-4), name
    weights, expected_weights = read_checkpoint(out).average, read_checkpoint(reference).average
    assert weights.keys() == expected_weights.keys()
    for name, value in weights.items():
        assert (value - expected_weights[name]).abs().max() < 1e-3, name


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_two_ranks_follow_one(mix: Path, tmp_path: Path, one_rank: Path, strategy: str) -> None:
    config = small_config(mix, tmp_path / "run", WITHOUT_DROPOUT, f"hardware.strategy={strategy}", steps=STEPS)
    launch(config, tmp_path)
    assert_same_course(config.out, one_rank)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_run_moves_between_numbers_of_ranks(mix: Path, tmp_path: Path, one_rank: Path, strategy: str) -> None:
    settings = (WITHOUT_DROPOUT, "checkpoint.every_steps=2", "checkpoint.keep=9", f"hardware.strategy={strategy}")
    config = small_config(mix, tmp_path / "run", *settings, steps=STEPS)
    pretrain(config.model_copy(update={"hardware": config.hardware.model_copy(update={"strategy": "auto"})}))
    for step in (4, 5):
        folder = config.out / "checkpoints" / f"step-{step:08d}"
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    launch(config, tmp_path, "resume")
    assert_same_course(config.out, one_rank)
