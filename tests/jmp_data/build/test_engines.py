import os
import signal
from pathlib import Path

import pytest

from jmp_data.build.engines import BuildError, DaskEngine, ProcessEngine, SerialEngine
from jmp_data.errors import RawFileError


def square(number: int) -> int:
    return number * number


def fail(number: int) -> int:
    raise RawFileError(f"file {number}: broken")


def die_once(marker: str) -> str:
    path = Path(marker)
    if not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return path.name


def die(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def scheduler():
    from dask.distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        yield cluster


@pytest.mark.parametrize("engine", [SerialEngine(), ProcessEngine(2)], ids=["serial", "processes"])
def test_all_results_come_once(engine) -> None:
    results = list(engine.run(square, list(range(20))))
    assert sorted(results) == [(number, number * number) for number in range(20)]


@pytest.mark.parametrize("engine", [SerialEngine(), ProcessEngine(2)], ids=["serial", "processes"])
def test_errors_arrive_as_they_are(engine) -> None:
    with pytest.raises(RawFileError, match="broken"):
        list(engine.run(fail, [1, 2]))


def test_a_killed_worker_costs_only_its_job_in_flight(tmp_path: Path) -> None:
    jobs = [str(tmp_path / f"job{number}") for number in range(3)]
    results = dict(ProcessEngine(2).run(die_once, jobs))
    assert results == {0: "job0", 1: "job1", 2: "job2"}


def test_workers_that_always_die_end_the_build_with_advice() -> None:
    with pytest.raises(BuildError, match="fewer --workers"):
        list(ProcessEngine(1).run(die, [0, 1]))


def test_dask_runs_the_jobs_and_survives_a_killed_worker(scheduler, tmp_path: Path) -> None:
    engine = DaskEngine(scheduler.scheduler_address)
    assert sorted(engine.run(square, list(range(40)))) == [(n, n * n) for n in range(40)]
    with pytest.raises(RawFileError, match="broken"):
        list(engine.run(fail, [1]))
    assert dict(engine.run(die_once, [str(tmp_path / "job")])) == {0: "job"}


def test_no_scheduler_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jmp_data.build.engines._CONNECT_SECONDS", 1)
    with pytest.raises(BuildError, match="no Dask scheduler"):
        list(DaskEngine("tcp://127.0.0.1:9").run(square, [1]))
