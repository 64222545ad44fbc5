"""Compiled blocks give the losses of a run without them, and the same checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

from jmp_model.train.checkpoint import read_checkpoint
from jmp_model.train.metrics_log import read_rows
from jmp_model.train.trainer import pretrain
from tests.jmp_model.train.small_runs import small_config


@pytest.mark.slow
def test_compiled_run_has_the_losses_of_a_plain_one(mix: Path, tmp_path: Path) -> None:
    plain = pretrain(small_config(mix, tmp_path / "plain", steps=4))
    compiled = pretrain(small_config(mix, tmp_path / "compiled", "hardware.compile=true", steps=4))
    expected = [row["loss"] for row in read_rows(plain.out, "training")]
    assert [row["loss"] for row in read_rows(compiled.out, "training")] == pytest.approx(expected, rel=1e-4)
    assert read_checkpoint(compiled.out).model.keys() == read_checkpoint(plain.out).model.keys()
