from __future__ import annotations

from pathlib import Path

import pytest

from jmp_model.train.trainer import pretrain
from tests.jmp_model.finetune.small_tasks import write_splits
from tests.jmp_model.train.small_runs import small_config as pretraining_config
from tests.jmp_model.train.small_runs import write_mixture


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the splits of the small data set."""
    return write_splits(tmp_path_factory.mktemp("downstream"))


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a checkpoint that has seen a few steps."""
    folder = tmp_path_factory.mktemp("pretraining")
    return pretrain(pretraining_config(write_mixture(folder), folder / "run", steps=4)).out
