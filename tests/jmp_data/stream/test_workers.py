import itertools
import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jmp_data.errors import ShardError
from jmp_data.graphs import GRAPH_NAMES, MOLECULE, GraphSettings, attach_graphs
from jmp_data.mixture import Mixture
from jmp_data.stream import StreamLoader
from jmp_data.stream.pool import WorkerError
from tests.jmp_data.stream.broken_datasets import DamagedDataset, DeadlyDataset
from tests.jmp_data.stream.memory_dataset import make_dataset

SETTINGS = {"molecules": MOLECULE, "crystals": GraphSettings(cutoff=3.0, a2a=40)}


def mixture():
    crystals = make_dataset("crystals", (20, 30), seed=1, atoms=(2, 6))
    for index in range(crystals.num_blocks):
        # Random vectors make flat cells; a skewed box of 4 Å does not.
        cell = crystals.read_block(index).columns["cell"]
        cell[...] = np.array([[4, 0, 0], [1, 4, 0], [0, 1, 4]], np.float32)
    molecules = make_dataset("molecules", (30, 40, 20), atoms=(4, 9), periodic=False)
    return Mixture.from_datasets({"molecules": molecules, "crystals": crystals})


def assert_equal_streams(stream, expected):
    for batch, other in zip(stream, expected, strict=True):
        assert set(batch.keys()) == set(other.keys())
        assert all(torch.equal(batch[key], other[key]) for key in other.to_dict())


@pytest.mark.parametrize("graphs", [None, "auto", SETTINGS], ids=["plain", "auto", "by name"])
def test_workers_change_nothing(graphs):
    arguments = {"batch_size": 8, "graphs": graphs, "edge_dropout": 0.2, "window_blocks": 2}
    expected = list(StreamLoader(mixture(), **arguments))
    with_workers = StreamLoader(mixture(), **arguments, num_workers=2)
    assert_equal_streams(with_workers, expected)
    assert len(with_workers.worker_pids) == 2
    with_workers.close()


def test_graphs_are_those_of_attach_graphs():
    plain = StreamLoader(mixture(), batch_size=8)
    for batch, other in zip(StreamLoader(mixture(), batch_size=8, graphs=SETTINGS), plain, strict=True):
        attach_graphs(other, list(SETTINGS.values()))
        assert set(batch.keys()) == set(other.keys())
        assert all(torch.equal(batch[key], other[key]) for key in other.to_dict())


def test_graphs_come_apart_with_their_structures():
    for batch in StreamLoader(mixture(), batch_size=8, graphs=SETTINGS):
        for number, example in enumerate(batch.to_data_list()):
            for name in GRAPH_NAMES:
                edges = batch[f"{name}_edge_index"]
                own = batch.batch[edges[1]] == number
                assert torch.equal(example[f"{name}_edge_index"], edges[:, own] - batch.ptr[number])
                assert torch.equal(example[f"{name}_cell_offsets"], batch[f"{name}_cell_offsets"][own])


def test_dropout_depends_on_seed_epoch_step_and_nothing_else():
    def edges(seed, epoch):
        stream = StreamLoader(mixture(), batch_size=8, seed=seed, graphs="auto", edge_dropout=0.3)
        stream.set_epoch(epoch)
        return [batch.main_edge_index.shape[1] for batch in stream]

    assert edges(0, 0) == edges(0, 0)
    assert edges(0, 0) != edges(0, 1)


def test_killed_workers_are_replaced_and_nothing_is_lost():
    expected = list(StreamLoader(mixture(), batch_size=4, graphs="auto"))
    stream = StreamLoader(mixture(), batch_size=4, graphs="auto", num_workers=2)
    received = []
    for number, batch in enumerate(stream):
        received.append(batch)
        if number % 7 == 3:
            os.kill(stream.worker_pids[number % 2], signal.SIGKILL)
    assert_equal_streams(received, expected)


@pytest.mark.slow
@given(st.lists(st.integers(0, 40), min_size=1, max_size=12), st.integers(1, 3))
@settings(max_examples=15, deadline=None)
def test_kills_at_any_moment(moments, num_workers):
    expected = list(StreamLoader(mixture(), batch_size=4, graphs="auto"))
    stream = StreamLoader(mixture(), batch_size=4, graphs="auto", num_workers=num_workers)
    received = []
    for number, batch in enumerate(stream):
        received.append(batch)
        for _ in range(moments.count(number)):
            os.kill(stream.worker_pids[number % num_workers], signal.SIGKILL)
    assert_equal_streams(received, expected)
    stream.close()


def test_a_task_that_kills_every_worker_is_an_error_not_a_hang():
    dataset = make_dataset("deadly", (10, 10, 10))
    dataset.__class__ = DeadlyDataset
    with pytest.raises(WorkerError, match=r"3 worker processes died while reading block 1 .* SIGKILL"):
        list(StreamLoader(dataset, batch_size=5, num_workers=2))


def test_an_error_in_a_worker_is_raised_as_itself():
    dataset = make_dataset("damaged", (10, 10, 10))
    dataset.__class__ = DamagedDataset
    with pytest.raises(ShardError, match="damaged: array positions, block 1"):
        list(StreamLoader(dataset, batch_size=5, num_workers=1))


def test_a_stream_goes_on_after_an_abandoned_iteration():
    stream = StreamLoader(mixture(), batch_size=4, num_workers=2, graphs="auto")
    expected = list(StreamLoader(mixture(), batch_size=4, graphs="auto"))
    for length in (0, 1, 9):
        assert_equal_streams(itertools.islice(stream, length), expected[:length])
    assert_equal_streams(stream, expected)
    pids = stream.worker_pids
    stream.set_epoch(0)
    assert_equal_streams(stream, expected)
    assert stream.worker_pids == pids, "workers stay for the next epoch"


def test_workers_end_with_their_loader():
    stream = StreamLoader(mixture(), batch_size=4, num_workers=2)
    next(iter(stream))
    pids = stream.worker_pids
    stream.close()
    assert not any(psutil.pid_exists(pid) for pid in pids)


SCRIPT = """
import sys, time
from jmp_data.stream import StreamLoader
from tests.jmp_data.stream.memory_dataset import make_dataset
stream = StreamLoader(make_dataset("a", (10,) * 20), batch_size=2, num_workers=2)
iterator = iter(stream)
next(iterator)
print(*stream.worker_pids, flush=True)
time.sleep(60)
"""


def test_workers_end_when_the_loader_is_killed():
    """The script has no `if __name__ == "__main__"`, which workers must not need."""
    with subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True) as process:
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 2
        process.kill()
    deadline = time.monotonic() + 10
    while any(psutil.pid_exists(pid) for pid in pids):
        assert time.monotonic() < deadline, "a worker outlived its loader"
        time.sleep(0.02)


def test_a_worker_needs_little_memory():
    stream = StreamLoader(mixture(), batch_size=4, num_workers=1)
    next(iter(stream))
    worker = psutil.Process(stream.worker_pids[0])
    private, mapped = worker.memory_full_info().uss, [entry.path for entry in worker.memory_maps()]
    stream.close()
    assert private < 100e6, "no graphs or windows of its own"
    assert not any("libtorch" in path for path in mapped)
