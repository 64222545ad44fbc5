"""Every shipped experiment, for real on demo data, cut to one seed and a few steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from jmp_model.experiments.compare import compare, write_results
from jmp_model.experiments.demo_data import prepare_demo_data
from jmp_model.experiments.run import Experiment, with_changes
from jmp_model.experiments.spec import experiment_names, load_experiment

SHORT = (
    "schedule.max_steps=2",
    "data.train_first=8",
    "data.val_first=4",
    "data.test_first=4",
    "scale_batches=1",
    "pretrain:schedule.steps=2",
    "pretrain:scale_batches=1",
    "pretrain:validation.max_structures=4",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("tblite")
    return prepare_demo_data(tmp_path_factory.mktemp("demo"))


@pytest.mark.slow
@pytest.mark.parametrize("name", experiment_names())
def test_runs_and_writes_its_results(name: str, data: Path, tmp_path: Path) -> None:
    spec = with_changes(load_experiment(name), seeds=[0])
    outcomes = Experiment(spec, data=data, out=tmp_path, overrides=SHORT).run()
    assert [outcome.variant for outcome in outcomes] == list(spec.variants)
    assert all(value > 0 for outcome in outcomes for value in outcome.metrics.values())
    rows = compare(spec, outcomes)
    files = write_results(tmp_path, spec, outcomes, rows)
    assert all(f"| {variant} |" in files["md"].read_text() for variant in spec.variants)
