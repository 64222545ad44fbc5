"""Kill builds at random moments, again and again, until one survives; what was killed is counted.

Used by the tests, and by hand for longer campaigns:

    python -m tests.jmp_data.build.fault_injection --engine dask --kills 25 --seed 3
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ENGINES = ("processes", "array", "dask")
SOURCES = ["oc20", "oc22", "ani1x", "transition1x"]
ROOT = Path(__file__).resolve().parents[3]

# Small blocks and parts, so that a build has many moments at which it can die.
SCRIPT = """
import multiprocessing, sys
from pathlib import Path
from jmp_data.sources import hdf5_frames, oc20, oc22
oc20.MAX_STRUCTURES_PER_PART = oc22.MAX_STRUCTURES_PER_PART = 5
from jmp_data.build import BuildSettings, choose_engine, plan_build, run_array_part, run_build, run_finalize
from jmp_data.errors import JmpDataError
from jmp_data.shards.layout import Layout

def plan(raw, out):
    settings = BuildSettings(layout=Layout(block_structures=4, block_atoms=64, blocks_per_shard=2))
    return plan_build({sources!r}, Path(raw), Path(out), settings=settings)

def ignore(entry):
    pass

def array_job(number, raw, out):
    run_array_part(plan(raw, out), (number, 3), choose_engine(workers=1, scheduler=None), ignore)

def run_array(raw, out):
    context = multiprocessing.get_context("spawn")
    jobs = [context.Process(target=array_job, args=(number, raw, out)) for number in (1, 2, 3)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    if any(job.exitcode for job in jobs):
        sys.exit("error: a job of the array died")
    list(run_finalize(plan(raw, out)))

def main(mode, raw, out, scheduler=None):
    if mode == "array":
        run_array(raw, out)
    else:
        engine = choose_engine(workers=2 if mode == "processes" else 1, scheduler=scheduler)
        list(run_build(plan(raw, out), engine, ignore))

if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except JmpDataError as error:
        sys.exit(f"error: {{type(error).__name__}}: {{error}}")
"""


def tree(folder: Path) -> dict[str, str]:
    """Digest of every file outside the build records."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".build" not in path.parts
    }


@dataclass
class FaultLog:
    """What a campaign did.

    Attributes:
        engine: which engine ran.
        kills: what was killed → how often.
        starts: how often the command was started.
        finished: builds that finished; each but the last was deleted and begun anew.
        refused: starts that ended with one line of error, by its kind.
        seconds: time in all.
    """

    engine: str
    kills: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    finished: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def to_json(self) -> dict[str, object]:
        """Plain dictionary."""
        return {**vars(self), "kills": dict(self.kills), "refused": dict(self.refused)}


def write_script(folder: Path) -> Path:
    """The program that is killed."""
    script = folder / "run_build.py"
    script.write_text(SCRIPT.format(sources=SOURCES))
    return script


def _start(*command: str, errors: Path | None = None) -> subprocess.Popen[bytes]:
    """Start Python in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, *command],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL if errors is None else errors.open("wb"),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def start_build(
    script: Path, engine: str, raw: Path, out: Path, errors: Path, scheduler: str | None = None
) -> subprocess.Popen[bytes]:
    """Start the program."""
    return _start(str(script), engine, str(raw), str(out), *([scheduler] if scheduler else []), errors=errors)


class DaskCluster:
    """A scheduler and two workers as processes of their own, as on a cluster; what was killed is started again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._generation = 0
        self._file = folder
        self._scheduler: subprocess.Popen[bytes] | None = None
        self._workers: subprocess.Popen[bytes] | None = None

    def address(self) -> str:
        """Address of a scheduler that is alive."""
        if self._scheduler is None or self._scheduler.poll() is not None:
            self.kill()
            self._generation += 1
            self._file = self._folder / f"scheduler-{self._generation}.json"
            self._scheduler = self._start("scheduler", "--port", "0", "--host", "127.0.0.1")
        self.replace_workers()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, ValueError):
                return str(json.loads(self._file.read_bytes())["address"])
            time.sleep(0.1)
        raise AssertionError("no Dask scheduler came up")

    def replace_workers(self) -> None:
        """Start workers if there are none, as a queue would."""
        if self._workers is None or self._workers.poll() is not None:
            self._workers = self._start("worker", "--nworkers", "2", "--nthreads", "1")

    def _start(self, what: str, *options: str) -> subprocess.Popen[bytes]:
        command = ("-m", f"distributed.cli.dask_{what}", "--scheduler-file", str(self._file), "--no-dashboard")
        return _start(*command, *options)

    def victims(self) -> list[tuple[str, psutil.Process]]:
        """What there is to kill."""
        assert self._scheduler is not None
        assert self._workers is not None
        nannies = psutil.Process(self._workers.pid)
        workers = [nannies, *nannies.children(recursive=True)]
        return [("scheduler", psutil.Process(self._scheduler.pid)), *(("worker", worker) for worker in workers)]

    def kill(self) -> None:
        """Kill all of it."""
        for process in (self._scheduler, self._workers):
            if process is not None:
                _kill_group(process.pid)
                process.wait()
        self._scheduler = self._workers = None


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def kill_something(process: subprocess.Popen[bytes], cluster: DaskCluster | None, rng: random.Random) -> str | None:
    """Kill -9 everything, the program itself, the scheduler or one of the workers; returns what it was."""
    try:
        workers = psutil.Process(process.pid).children(recursive=True)
        victims = cluster.victims() if cluster else [("worker", worker) for worker in workers]
        dice = rng.random()
        if dice < 0.25 or not victims:
            _kill_group(process.pid)
            if cluster:
                cluster.kill()
            return "everything"
        if dice < 0.4:
            process.kill()
            return "main process"
        label, victim = rng.choice(victims)
        victim.kill()
    except psutil.NoSuchProcess:
        return None
    return label


def _wait(process: subprocess.Popen[bytes], cluster: DaskCluster | None, orphans: list[int]) -> int:
    """Exit code; a program that does not end at all is a failure of its own."""
    deadline = time.monotonic() + 120
    try:
        while time.monotonic() < deadline:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(0.5)
            if cluster:
                cluster.replace_workers()
        _kill_group(process.pid)
        raise AssertionError("the build hangs after a kill")
    finally:
        for pid in orphans:  # left over from the start before; they have been at work beside this one
            _kill_group(pid)


def run_under_fire(script: Path, engine: str, raw: Path, out: Path, *, kills: int, seed: int) -> FaultLog:
    """Start a build over and over, killing something at a random moment, until `kills` hit; then let it finish.

    Raises:
        AssertionError: a start hangs, ends with anything but one clear line, or the build makes no progress.
    """
    cluster = DaskCluster(out.parent) if engine == "dask" else None
    try:
        return _run_under_fire(script, engine, raw, out, kills, random.Random(seed), cluster)
    finally:
        if cluster:
            cluster.kill()


def _run_under_fire(
    script: Path, engine: str, raw: Path, out: Path, kills: int, rng: random.Random, cluster: DaskCluster | None
) -> FaultLog:
    log, longest, orphans = FaultLog(engine), 4.0, list[int]()
    began, errors = time.monotonic(), out.with_suffix(".stderr")
    while True:
        address = cluster.address() if cluster else None
        start = time.monotonic()
        process = start_build(script, engine, raw, out, errors, address)
        log.starts += 1
        aiming = log.kills.total() < kills
        if aiming:
            time.sleep(rng.uniform(0.0, longest))
            what = kill_something(process, cluster, rng) if process.poll() is None else None
            log.kills.update([what] if what else [])
            print(f"{log.engine}: {log.kills.total()} of {kills} kills, {log.starts} starts", file=sys.stderr)
        code, orphans = _wait(process, cluster, orphans), [process.pid]
        message = errors.read_text(errors="replace")
        if code == 0:
            log.finished += 1
            longest = max(1.0, 0.9 * (time.monotonic() - start))
            if not aiming:
                break
            _kill_group(process.pid)
            shutil.rmtree(out)
        elif code > 0:
            last = message.strip().splitlines()[-1:]
            assert last, "the build failed without a word"
            assert last[0].startswith("error: "), message[-4000:]
            log.refused[last[0].split(": ")[1]] += 1
        assert log.starts < 4 * kills + 20, f"no progress: {message[-2000:]}"
    _kill_group(process.pid)
    log.seconds = round(time.monotonic() - began, 1)
    return log


@contextlib.contextmanager
def prepared(folder: Path) -> Iterator[tuple[Path, Path, dict[str, str]]]:
    """Raw archives, the program, and the digests of an undisturbed build."""
    from tests import raw_archives

    raw, script = raw_archives.write_all(folder / "raw"), write_script(folder)
    errors = folder / "calm.stderr"
    code = start_build(script, "serial", raw, folder / "calm", errors).wait()
    assert code == 0, errors.read_text()
    yield raw, script, tree(folder / "calm")


def main() -> None:
    """One campaign; prints its log as a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=ENGINES, default="processes")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, prepared(Path(name)) as (raw, script, expected):
        out = Path(name) / "out"
        log = run_under_fire(script, options.engine, raw, out, kills=options.kills, seed=options.seed)
        print(json.dumps({**log.to_json(), "byte_identical": tree(out) == expected}))


if __name__ == "__main__":
    main()
