import json

import pytest

from jmp_data import write_dataset
from tests.cli.run_cli import run
from tests.structures import random_structures


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("bench")
    write_dataset(random_structures(0, 60), root / "some" / "train")
    return root


def test_measures_ready_batches(shards):
    outcome = run("jmp-data", "bench", shards / "some", "--seconds", 0.2, "--batch-size", 8, "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert found["structures"] == 60
    assert found["structures_per_second"] > found["batches_per_second"] > 0
    assert found["structures_per_second"] / found["batches_per_second"] == pytest.approx(7.5, abs=0.6)  # 60 in 8 steps
    assert found["edges_per_second"] == 0


def test_with_graphs_and_workers_for_people(shards):
    outcome = run("jmp-data", "bench", shards, "--seconds", 0.2, "--workers", 1, "--graphs")
    assert outcome.code == 0, outcome.err
    assert "edges per second" in outcome.out


def test_a_missing_data_set_is_one_line(tmp_path):
    outcome = run("jmp-data", "bench", tmp_path / "nowhere")
    assert outcome.code == 1
    assert "nowhere" in outcome.error_lines[0]
