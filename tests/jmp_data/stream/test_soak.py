"""Stops at random moments: the whole process or its workers die by SIGKILL, and another run takes over from the log.

Each run, forked so that it starts at once, consumes the stream as some number of ranks with some number of workers and
appends one line per global batch: the state and what was in the batch. It is killed in the middle of that, perhaps of
the write itself, and the next run goes on from the last whole line. All lines together must be the uninterrupted
stream.
"""

from __future__ import annotations

import contextlib
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
PATIENCE = 10.0


def mixture():
    sets = {"a": make_dataset("a", (40,) * 8), "b": make_dataset("b", (25,) * 4, seed=1, atoms=(2, 20))}
    return Mixture.from_datasets(sets)


def shared_by(limit, world_size):
    return {name: value // world_size for name, value in LIMITS[limit].items()}


def consume(log, limit, epochs, state=None, world_size=1, num_workers=0):
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
        while ranks[0].epoch < epochs:
            for parts in zip(*ranks, strict=True):
                content = sorted(key for part in parts for key in identities(part))
                digest = hashlib.sha256(repr(content).encode()).hexdigest()
                line = json.dumps({"state": ranks[0].state_dict(), "digest": digest}) + "\n"
                os.write(file.fileno(), line.encode())
                time.sleep(0.005)  # stands for a training step


def whole_lines(log):
    """The complete lines; a torn last one is cut off, as a trainer ignores a half-written checkpoint."""
    content = log.read_bytes() if log.exists() else b""
    kept = content[: content.rfind(b"\n") + 1]
    log.write_bytes(kept)
    return [json.loads(line) for line in kept.splitlines()]


def wait_for_growth(log, size, run):
    """Until the run has written so many bytes more, has ended, or patience has."""
    target, deadline = (log.stat().st_size if log.exists() else 0) + size, time.monotonic() + PATIENCE
    while run.is_alive() and time.monotonic() < deadline and not (log.exists() and log.stat().st_size >= target):
        time.sleep(0.001)


def children_of(run):
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(run.pid).children()
    return []


def soak(tmp_path, limit, epochs, stops, seed):
    uninterrupted = tmp_path / "uninterrupted.jsonl"
    consume(uninterrupted, limit, epochs)
    consume(tmp_path / "warm.jsonl", limit, 1, world_size=2)  # compiles before the first fork
    expected = [line["digest"] for line in whole_lines(uninterrupted)]
    line_bytes = uninterrupted.stat().st_size // len(expected)
    log, choose, fork = tmp_path / "log.jsonl", random.Random(seed), multiprocessing.get_context("fork")
    happened = 0
    while happened < stops:
        lines = whole_lines(log)
        state = lines[-1]["state"] if lines else None
        world_size, num_workers = choose.choice([1, 2, 3]), choose.choice([0, 0, 1, 2])
        run = fork.Process(target=consume, args=(log, limit, epochs, state, world_size, num_workers))
        run.start()
        if choose.random() < 0.8:
            wait_for_growth(log, choose.randrange(len(expected) * line_bytes // stops), run)
        time.sleep(choose.uniform(0.0, 0.01))
        workers = children_of(run)
        if workers and choose.random() < 0.5:
            with contextlib.suppress(psutil.NoSuchProcess):
                choose.choice(workers).send_signal(signal.SIGKILL)
            wait_for_growth(log, choose.randrange(3) * line_bytes, run)
        run.kill()
        run.join()
        happened += run.exitcode == -signal.SIGKILL
        if run.exitcode != -signal.SIGKILL:
            break
    assert run.exitcode in (0, -signal.SIGKILL)
    lines = whole_lines(log)
    consume(log, limit, epochs, lines[-1]["state"] if lines else None)
    assert [line["digest"] for line in whole_lines(log)] == expected
    return happened


@pytest.mark.parametrize("limit", LIMITS)
def test_five_stops(tmp_path, limit):
    assert soak(tmp_path, limit, epochs=4, stops=5, seed=1) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("limit", LIMITS)
def test_two_hundred_stops(tmp_path, limit):
    assert soak(tmp_path, limit, epochs=40, stops=200, seed=2) >= 150
