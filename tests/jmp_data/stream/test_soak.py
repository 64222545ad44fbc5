"""Stops at random moments: the whole process or its workers die by SIGKILL, and another run takes over from the log.

Each run, forked so that it starts at once, consumes the stream as some number of ranks with some number of workers and
appends one line per global batch: the state and what was in the batch. It is killed in the middle of that, perhaps of
the write itself, and the next run goes on from the last whole line. All lines together must be the uninterrupted
stream.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import signal
import time

import psutil
import pytest

from jmp_data.mixture import Mixture
from jmp_data.stream import StreamLoader
from tests.jmp_data.stream.memory_dataset import make_dataset
from tests.jmp_data.stream.mixtures import identities

LIMITS = {"fixed": {"batch_size": 12}, "budgeted": {"max_atoms": 240}}
EPOCHS = 4


def mixture():
    sets = {"a": make_dataset("a", (40,) * 8), "b": make_dataset("b", (25,) * 4, seed=1, atoms=(2, 20))}
    return Mixture.from_datasets(sets)


def shared_by(limit, world_size):
    return {name: value // world_size for name, value in LIMITS[limit].items()}


def consume(log, limit, state, world_size, num_workers, delay):
    """Append a line per global batch until all epochs are done."""
    ranks = [
        StreamLoader(
            mixture(),
            rank=rank,
            world_size=world_size,
            num_workers=num_workers if rank == 0 else 0,
            window_blocks=3,
            **shared_by(limit, world_size),
        )
        for rank in range(world_size)
    ]
    if state is not None:
        for rank in ranks:
            rank.load_state_dict(state)
    with log.open("ab", buffering=0) as file:
        while ranks[0].epoch < EPOCHS:
            for parts in zip(*ranks, strict=True):
                content = sorted(key for part in parts for key in identities(part))
                digest = hashlib.sha256(repr(content).encode()).hexdigest()
                line = json.dumps({"state": ranks[0].state_dict(), "digest": digest}) + "\n"
                os.write(file.fileno(), line.encode())
                time.sleep(delay)


def whole_lines(log):
    """The complete lines; a torn last one is cut off, as a trainer ignores a half-written checkpoint."""
    content = log.read_bytes() if log.exists() else b""
    kept = content[: content.rfind(b"\n") + 1]
    log.write_bytes(kept)
    return [json.loads(line) for line in kept.splitlines()]


def soak(tmp_path, limit, stops, seed):
    uninterrupted = tmp_path / "uninterrupted.jsonl"
    consume(uninterrupted, limit, None, 1, 0, 0.0)
    expected = [line["digest"] for line in whole_lines(uninterrupted)]
    log, choose, fork = tmp_path / "log.jsonl", random.Random(seed), multiprocessing.get_context("fork")
    pace = stops * 0.06 / len(expected)  # so that all the stops fall before the end
    for _ in range(stops):
        lines = whole_lines(log)
        state = lines[-1]["state"] if lines else None
        arguments = (choose.choice([1, 2, 3]), choose.choice([0, 0, 1, 2]), pace)
        run = fork.Process(target=consume, args=(log, limit, state, *arguments))
        run.start()
        time.sleep(choose.uniform(0.01, 0.15) + 0.15 * bool(arguments[1]))
        workers = psutil.Process(run.pid).children()
        if workers and choose.random() < 0.5:
            choose.choice(workers).send_signal(signal.SIGKILL)
            time.sleep(choose.uniform(0.0, 0.3))
        run.kill()
        run.join()
        assert run.exitcode in (0, -signal.SIGKILL)
    lines = whole_lines(log)
    consume(log, limit, lines[-1]["state"] if lines else None, 1, 0, 0.0)
    assert [line["digest"] for line in whole_lines(log)] == expected
    return len(lines), len(expected)


@pytest.mark.parametrize("limit", LIMITS)
def test_five_stops(tmp_path, limit):
    soak(tmp_path, limit, stops=5, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("limit", LIMITS)
def test_two_hundred_stops(tmp_path, limit):
    before_the_last, total = soak(tmp_path, limit, stops=200, seed=2)
    assert before_the_last > total // 4, "the stops must have fallen all over the stream"
