"""Kill builds at random moments, again and again; the finished bytes equal those of an undisturbed build."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jmp_data.shards.integrity import find_datasets, verify_dataset
from tests import raw_archives
from tests.jmp_data.build.test_build import tree

SOURCES = ["oc20", "oc22", "ani1x", "transition1x"]
ROOT = Path(__file__).resolve().parents[3]

# Small blocks and parts, so that a build has many moments at which it can die.
RUN = """
import sys
from pathlib import Path
from jmp_data.sources import hdf5_frames, oc20, oc22
oc20.MAX_STRUCTURES_PER_PART = oc22.MAX_STRUCTURES_PER_PART = 5
from jmp_data.build import BuildSettings, choose_engine, plan_build, run_array_part, run_build, run_finalize
from jmp_data.shards.layout import Layout

def main(mode, raw, out):
    settings = BuildSettings(layout=Layout(block_structures=4, block_atoms=64, blocks_per_shard=2))
    builds = plan_build({sources!r}, Path(raw), Path(out), settings=settings)
    done = lambda entry: None
    if mode == "array":
        engine = choose_engine(workers=1, scheduler=None)
        for number in (1, 2, 3):
            run_array_part(builds, (number, 3), engine, done)
        list(run_finalize(builds))
    elif mode == "dask":
        from dask.distributed import LocalCluster
        with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
            list(run_build(builds, choose_engine(workers=1, scheduler=cluster.scheduler_address), done))
    else:
        list(run_build(builds, choose_engine(workers=2 if mode == "processes" else 1, scheduler=None), done))

if __name__ == "__main__":
    main(*sys.argv[1:])
"""


def children(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            child = int(path.parent.name)
            found += [child, *children(child)]
    return found


def kill_everything(process: subprocess.Popen[bytes], rng: random.Random) -> None:
    os.killpg(process.pid, signal.SIGKILL)


def kill_something(process: subprocess.Popen[bytes], rng: random.Random) -> None:
    """One worker (or the process itself, or all): whatever the dice say."""
    victims = children(process.pid)
    if not victims or rng.random() < 0.4:
        os.killpg(process.pid, signal.SIGKILL)
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(rng.choice(victims), signal.SIGKILL)


def run_under_fire(script: Path, mode: str, raw: Path, out: Path, kills: int, kill: Callable, seed: int) -> int:
    """Start the build again until it finishes, killing it `kills` times; returns how many starts that took."""
    rng, killed, starts, longest = random.Random(seed), 0, 0, 4.0
    while True:
        starts += 1
        began = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, str(script), mode, str(raw), str(out)],
            start_new_session=True,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        if killed < kills:
            time.sleep(rng.uniform(0.0, longest))
            if process.poll() is None:
                kill(process, rng)
                killed += 1
        _, errors = process.communicate(timeout=240)
        if process.returncode == 0 and killed >= kills:
            return starts
        if process.returncode == 0:
            longest = max(1.0, 0.9 * (time.monotonic() - began))
            subprocess.run(["rm", "-rf", str(out)], check=True)
        elif process.returncode > 0 and b"BuildError" not in errors and b"distributed" not in errors:
            raise AssertionError(errors.decode()[-2000:])
        if starts > 4 * kills + 20:
            raise AssertionError(f"still not finished after {starts} starts: {errors.decode()[-2000:]}")


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("faults")
    raw = raw_archives.write_all(folder / "raw")
    script = folder / "run_build.py"
    script.write_text(RUN.format(sources=SOURCES))
    subprocess.run(
        [sys.executable, str(script), "serial", str(raw), str(folder / "calm")],
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    return raw, script, tree(folder / "calm")


def check(archives, tmp_path: Path, mode: str, kills: int, kill: Callable) -> None:
    raw, script, expected = archives
    starts = run_under_fire(script, mode, raw, tmp_path / "out", kills, kill, seed=kills)
    assert starts > 1
    assert tree(tmp_path / "out") == expected
    for dataset in find_datasets(tmp_path / "out"):
        assert verify_dataset(dataset) == []


@pytest.mark.parametrize("mode", ["processes", "array"])
def test_killed_builds_end_with_the_same_bytes(archives, tmp_path: Path, mode: str) -> None:
    check(archives, tmp_path, mode, kills=2, kill=kill_something)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "kills", "kill"),
    [("processes", 50, kill_something), ("array", 40, kill_everything), ("dask", 25, kill_something)],
)
def test_killed_a_hundred_times(archives, tmp_path: Path, mode: str, kills: int, kill: Callable) -> None:
    check(archives, tmp_path, mode, kills, kill)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tiny file system needs root")
def test_a_full_disk_is_one_clear_error_and_loses_nothing(archives, tmp_path: Path) -> None:
    raw, script, expected = archives
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(small)], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        command = [sys.executable, str(script), "serial", str(raw), str(small)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        full = subprocess.run(command, capture_output=True, env=environment, check=False)
        assert full.returncode != 0
        assert b"No space left" in full.stderr
        subprocess.run(["mount", "-o", "remount,size=200m", str(small)], check=True)
        subprocess.run(command, check=True, env=environment)
        assert tree(small) == expected
    finally:
        subprocess.run(["umount", str(small)], check=False)
