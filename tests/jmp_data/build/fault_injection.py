"""Kill builds at random moments, again and again, until one survives; what was killed is counted.

Used by the tests, and by hand for longer campaigns, which print a line after every kill and end by themselves:

    python -m tests.jmp_data.build.fault_injection --engines processes dask --kills 25 --seed 3 --seconds 120

Each program that is started leads a session of its own, and is not reaped before that session has been killed: until
then nobody else can have its number, so no signal reaches a stranger.
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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ENGINES = ("processes", "array", "dask")
SOURCES = ["oc20", "oc22", "ani1x", "transition1x"]
ROOT = Path(__file__).resolve().parents[3]
_HANGS_SECONDS = 120  # a build takes a few; what lasts this long will not end
_START_SECONDS = 60
# A cluster whose scheduler is dead is given up sooner than by default.
_ENVIRONMENT = {"PYTHONPATH": str(ROOT), "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "5s"}

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
    context = multiprocessing.get_context("fork")  # spares each job the imports
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
        finished: builds that finished, each with the expected bytes; all but the last were deleted and begun anew.
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


def _is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD))
    return False


class Session:
    """A program with all processes that it starts, dead or alive, until `close`."""

    def __init__(self, *command: str, errors: Path | None = None) -> None:
        with contextlib.nullcontext(subprocess.DEVNULL) if errors is None else errors.open("wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, *command],
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env={**os.environ, **_ENVIRONMENT},
            )
        self.pid = self._process.pid

    def exit_code(self) -> int | None:
        """Exit code of the program, minus the signal that killed it, None while it runs; it stays unreaped."""
        if self._process.returncode is not None:
            return self._process.returncode
        state = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        if state is None:
            return None
        return state.si_status if state.si_code == os.CLD_EXITED else -state.si_status

    def living(self) -> list[psutil.Process]:
        """The program, while it is alive, and what it started."""
        with contextlib.suppress(psutil.NoSuchProcess):
            leader = psutil.Process(self.pid)
            return [process for process in (leader, *leader.children(recursive=True)) if _is_alive(process)]
        return []

    def kill_leader(self) -> None:
        """Kill -9 the program, and leave alone what it started."""
        if self.exit_code() is None:
            os.kill(self.pid, signal.SIGKILL)

    def kill(self) -> None:
        """Kill -9 everything."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Kill what is left and reap the program."""
        self.kill()
        self._process.wait(_START_SECONDS)

    def wait(self, meanwhile: Callable[[], None] = lambda: None) -> int:
        """Exit code; a program that does not end at all is a failure of its own."""
        deadline = time.monotonic() + _HANGS_SECONDS
        while time.monotonic() < deadline:
            code = self.exit_code()
            if code is not None:
                return code
            time.sleep(0.05)
            meanwhile()
        self.close()
        raise AssertionError("the build hangs")


def start_build(script: Path, engine: str, raw: Path, out: Path, errors: Path, scheduler: str | None = None) -> Session:
    """Start the program."""
    return Session(str(script), engine, str(raw), str(out), *([scheduler] if scheduler else []), errors=errors)


def run_to_end(script: Path, engine: str, raw: Path, out: Path, errors: Path) -> int:
    """Exit code of an undisturbed run."""
    session = start_build(script, engine, raw, out, errors)
    try:
        return session.wait()
    finally:
        session.close()


class DaskCluster:
    """A scheduler and two workers as processes of their own, as on a cluster; what was killed is started again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._generation = 0
        self._file = folder
        self._scheduler: Session | None = None
        self._workers: Session | None = None

    def address(self) -> str:
        """Address of a scheduler that is alive."""
        if self._scheduler is None or self._scheduler.exit_code() is not None:
            self.close()
            self._generation += 1
            self._file = self._folder / f"scheduler-{self._generation}.json"
            self._scheduler = self._start("scheduler", "--port", "0", "--host", "127.0.0.1")
        self.replace_workers()
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, ValueError):
                return str(json.loads(self._file.read_bytes())["address"])
            time.sleep(0.05)
        raise AssertionError("no Dask scheduler came up")

    def replace_workers(self) -> None:
        """Start workers if there are none, as a queue would."""
        if self._workers is not None and self._workers.exit_code() is not None:
            self._workers.close()
            self._workers = None
        if self._workers is None:
            self._workers = self._start("worker", "--nworkers", "2", "--nthreads", "1")

    def _start(self, what: str, *options: str) -> Session:
        command = ("-m", f"distributed.cli.dask_{what}", "--scheduler-file", str(self._file), "--no-dashboard")
        return Session(*command, *options)

    def victims(self) -> list[tuple[str, psutil.Process]]:
        """What there is to kill: the scheduler, and the workers with those that watch over them."""
        named = (("scheduler", self._scheduler), ("worker", self._workers))
        return [(label, process) for label, session in named if session for process in session.living()]

    def kill(self) -> None:
        """Kill -9 all of it."""
        for session in (self._scheduler, self._workers):
            if session is not None:
                session.kill()

    def close(self) -> None:
        """Kill and reap all of it."""
        for session in (self._scheduler, self._workers):
            if session is not None:
                session.close()
        self._scheduler = self._workers = None


def kill_something(session: Session, cluster: DaskCluster | None, rng: random.Random) -> str | None:
    """Kill -9 everything, the program itself, the scheduler or one of the workers; returns what it was."""
    try:
        victims = cluster.victims() if cluster else [("worker", worker) for worker in session.living()[1:]]
        dice = rng.random()
        if dice < 0.12 or not victims:
            session.kill()
            if cluster:
                cluster.kill()
            return "everything"
        if dice < 0.24:
            session.kill_leader()
            return "main process"
        label, victim = rng.choice(victims)
        victim.kill()
    except psutil.NoSuchProcess:
        return None
    return label


class Campaign:
    """Starts a build over and over, killing something at random moments; see `run_under_fire`."""

    def __init__(
        self,
        log: FaultLog,
        expected: Mapping[str, str],
        *,
        kills: int,
        seconds: float,
        seed: int,
        cluster: DaskCluster | None,
    ) -> None:
        self.log = log
        self._expected, self._kills, self._rng, self._cluster = expected, kills, random.Random(seed), cluster
        self._began = time.monotonic()
        self._deadline = self._began + seconds
        self._work_seconds = 2.0  # of a start, from its first file; measured at each build that finishes
        self._orphans: list[Session] = []

    @property
    def aiming(self) -> bool:
        """Whether more is to be killed."""
        return self.log.kills.total() < self._kills and time.monotonic() < self._deadline

    def _await_work(self, session: Session, out: Path) -> None:
        """Until the build has begun to write: before, there is nothing that a kill could break."""
        deadline = time.monotonic() + _START_SECONDS
        stamp = time.time()
        while session.exit_code() is None and time.monotonic() < deadline:
            locks = list(out.glob("*/*/.build/lock"))  # opened for writing by each start
            if any(lock.stat().st_mtime >= stamp - 0.1 for lock in locks):
                return
            time.sleep(0.02)

    def _fire(self, session: Session, out: Path) -> None:
        """Kill until the program ends, or is the only one that was not hit."""
        if self._rng.random() < 0.9:
            self._await_work(session, out)
        while self.aiming and session.exit_code() is None:
            time.sleep(self._rng.uniform(0.0, self._work_seconds))
            if session.exit_code() is not None:
                return
            what = kill_something(session, self._cluster, self._rng)
            if what is not None:
                self.log.kills[what] += 1
                self.report()
            if self._cluster:
                self._cluster.replace_workers()

    def report(self) -> None:
        """One line of JSON: what has been done so far."""
        self.log.seconds = round(time.monotonic() - self._began, 1)
        print(json.dumps(self.log.to_json()), file=sys.stderr, flush=True)

    def start_once(self, start: Callable[[str | None], Session], out: Path, errors: Path) -> bool:
        """One start, fired at or not; whether it finished the build."""
        aiming, cluster = self.aiming, self._cluster
        session = start(cluster.address() if cluster else None)
        self.log.starts += 1
        try:
            if aiming:
                self._fire(session, out)
            code = session.wait(cluster.replace_workers if cluster else lambda: None)
        finally:
            for orphan in self._orphans:  # left over from the start before; they were at work beside this one
                orphan.close()
            self._orphans = [session]
        message = errors.read_text(errors="replace")
        if code > 0:
            # Beside it may stand what Python's own resource tracker says when it, or what it tracks, was killed.
            lines = [line for line in message.splitlines() if line.startswith("error: ")]
            assert len(lines) == 1, message[-4000:]
            self.log.refused[lines[0].split(": ")[1]] += 1
        assert self.log.starts < 4 * self._kills + 20, f"no progress: {message[-2000:]}"
        return code == 0

    def run(self, start: Callable[[str | None], Session], out: Path, errors: Path) -> None:
        """Until enough was killed and the build is finished."""
        while True:
            aiming, begin = self.aiming, time.monotonic()
            if self.start_once(start, out, errors):
                seconds = time.monotonic() - begin
                self.close()
                self._compare(out)
                if not aiming:
                    return
                self._work_seconds = min(3.0, max(0.5, 0.5 * seconds))
                shutil.rmtree(out)

    def _compare(self, out: Path) -> None:
        found, expected = tree(out), self._expected
        other = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
        assert not other, f"after {dict(self.log.kills)}, other than in a calm build: {', '.join(other)}"
        self.log.finished += 1

    def close(self) -> None:
        """End what is left of earlier starts."""
        for orphan in self._orphans:
            orphan.close()
        self._orphans = []


def run_under_fire(
    script: Path,
    engine: str,
    raw: Path,
    out: Path,
    expected: Mapping[str, str],
    *,
    kills: int,
    seed: int,
    seconds: float = 600.0,
) -> FaultLog:
    """Start a build over and over, killing something at a random moment, until `kills` hit; then let it finish.

    Args:
        script: the program.
        engine: one of `ENGINES`.
        raw: raw archives.
        out: output folder.
        expected: digest of each file of an undisturbed build.
        kills: how many.
        seed: of the random moments and victims.
        seconds: stop killing after this time.

    Raises:
        AssertionError: a start hangs or ends with anything but one clear line, the build makes no progress, or one that
            finished has other bytes.
    """
    cluster = DaskCluster(out.parent) if engine == "dask" else None
    campaign = Campaign(FaultLog(engine), expected, kills=kills, seconds=seconds, seed=seed, cluster=cluster)
    errors = out.with_suffix(".stderr")
    try:
        campaign.run(lambda address: start_build(script, engine, raw, out, errors, address), out, errors)
    finally:
        campaign.close()
        if cluster:
            cluster.close()
    campaign.report()
    return campaign.log


@contextlib.contextmanager
def prepared(folder: Path) -> Iterator[tuple[Path, Path, dict[str, str]]]:
    """Raw archives, the program, and the digests of an undisturbed build."""
    from tests import raw_archives

    raw, script = folder / "raw", write_script(folder)
    raw.mkdir(parents=True)
    raw_archives.write_oc20(raw)
    raw_archives.write_oc22(raw)
    raw_archives.write_ani1x(raw, groups=3, conformations=5)
    raw_archives.write_transition1x(raw, reactions=6)
    errors = folder / "calm.stderr"
    assert run_to_end(script, "serial", raw, folder / "calm", errors) == 0, errors.read_text()
    yield raw, script, tree(folder / "calm")


def main() -> None:
    """One campaign an engine; prints the log of each as a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    parser.add_argument("--kills", type=int, default=20, help="of each engine")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=600.0, help="stop killing an engine after this time")
    options = parser.parse_args()
    # A campaign that is told to end unwinds, and so ends what it started.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    # In memory: it is processes that die here, not machines, so nothing is learnt from waiting for a disk.
    memory = Path("/dev/shm")
    with (
        tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name,
        prepared(Path(name)) as (raw, script, expected),
    ):
        for engine in options.engines:
            out = Path(name) / engine
            log = run_under_fire(
                script, engine, raw, out, expected, kills=options.kills, seed=options.seed, seconds=options.seconds
            )
            print(json.dumps(log.to_json()), flush=True)


if __name__ == "__main__":
    main()
