"""A run that builds its graphs on the device is the run whose loader builds them."""

import os
import signal
from pathlib import Path

import pytest
import torch

from jmp_data import StreamLoader
from jmp_data.graphs import GRAPH_NAMES
from jmp_model.finetune import data
from jmp_model.finetune.tasks import GraphSpec
from jmp_model.train.config import DataSettings
from jmp_model.train.data import place_of_graphs, split_batch
from jmp_model.train.metrics_log import read_rows
from jmp_model.train.trainer import pretrain
from tests.jmp_model.train.small_runs import small_config, write_mixture
from tests.jmp_model.train.test_trainer import Interrupt


@pytest.fixture(scope="module")
def mix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mixture(tmp_path_factory.mktemp("graphs_on"), train=10, val=3)


def losses(mix: Path, out: Path, *overrides: str) -> list[float]:
    return pretrain(small_config(mix, out, "data.edge_dropout=0.3", *overrides, steps=4)).losses


def test_device_and_workers_give_the_same_losses_and_errors(mix: Path, tmp_path: Path) -> None:
    where = {name: tmp_path / name for name in ("workers", "device", "parts")}
    expected = losses(mix, where["workers"], "data.graphs_on=workers")
    assert losses(mix, where["device"], "data.graphs_on=device") == expected
    assert losses(mix, where["parts"], "data.graphs_on=device", "data.micro_batches=2") == pytest.approx(
        expected, rel=2e-4
    )
    rows = [read_rows(where[name], "validation") for name in ("workers", "device")]
    assert rows[0] == rows[1]


def test_a_run_goes_on_with_graphs_built_elsewhere(mix: Path, tmp_path: Path) -> None:
    expected = losses(mix, tmp_path / "whole")
    device, workers = (
        small_config(mix, tmp_path / "run", "data.edge_dropout=0.3", f"data.graphs_on={place}", steps=4)
        for place in ("device", "workers")
    )
    first = pretrain(device, watcher=Interrupt(2, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert first.steps == 2
    assert pretrain(workers, resume=True).losses == expected


def test_fine_tuning_builds_the_same_graphs_on_a_gpu(mix: Path) -> None:
    spec = GraphSpec(cutoff=5.0, max_neighbors=12)
    for batch in StreamLoader(mix.parent / "metals" / "train", 4, targets=[]):
        each = [spec.settings(n) for n in batch.natoms.tolist()]
        there, here = data._attach_on_device(batch.clone(), each), data.attach(batch, spec)
        for key in (f"{name}_{part}" for name in GRAPH_NAMES for part in ("edge_index", "cell_offsets")):
            assert torch.equal(there[key], here[key]), key


def test_parts_of_a_batch_keep_every_label(mix: Path) -> None:
    batch = next(iter(StreamLoader(mix.parent / "molecules" / "train", 5)))
    batch.gap = torch.arange(5.0)
    first, second = split_batch(batch, 2)
    assert first.gap.tolist() + second.gap.tolist() == batch.gap.tolist()
    for name in ("pos", "forces", "atomic_numbers", "energy", "cell", "structure_index"):
        assert torch.equal(torch.cat([first[name], second[name]]), batch[name])


def test_auto_builds_on_a_gpu_only() -> None:
    for device, place in (("cuda", "device"), ("cpu", "workers"), ("mps", "workers")):
        assert place_of_graphs(DataSettings(), torch.device(device)) == place
    assert place_of_graphs(DataSettings(graphs_on="device"), torch.device("cpu")) == "device"
