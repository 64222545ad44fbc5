"""Three ways to run the same jobs: in this process, in local processes, on a Dask cluster.

An engine maps a function over small jobs and yields results as they finish. Jobs carry no data; a job that is lost
with its worker runs again.
"""

from __future__ import annotations

import math
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from typing import Any, Protocol, TypeVar

from jmp_data.errors import JmpDataError

Job = TypeVar("Job")
Result = TypeVar("Result")

_RESTARTS_WITHOUT_PROGRESS = 3
_QUEUED_PER_WORKER = 4
_QUEUED_AT_LEAST = 8
_ASK_AGAIN_SECONDS = 5.0
_CONNECT_SECONDS = 30


class BuildError(JmpDataError, RuntimeError):
    """The engine could not finish the jobs; what is done is kept and the same command goes on."""


class Engine(Protocol):
    """Runs jobs."""

    def run(self, function: Callable[[Any], Any], jobs: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """Yield (job number, result) as jobs finish. Errors of the function are raised here."""
        ...


class SerialEngine:
    """One job after the other in this process."""

    def run(self, function: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[tuple[int, Result]]:
        """See `Engine.run`."""
        for number, job in enumerate(jobs):
            yield number, function(job)


class ProcessEngine:
    """Local processes; a killed worker costs its job in flight, which runs again."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def run(self, function: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[tuple[int, Result]]:
        """See `Engine.run`.

        Raises:
            BuildError: workers die again and again without finishing a job.
        """
        if len(jobs) == 1:  # a pool would only cost its start
            yield from SerialEngine().run(function, jobs)
            return
        left = dict(enumerate(jobs))
        restarts = 0
        while left:
            try:
                for number, result in self._run_pool(function, left):
                    del left[number]
                    restarts = 0
                    yield number, result
            except BrokenProcessPool:
                restarts += 1
                if restarts > _RESTARTS_WITHOUT_PROGRESS:
                    raise BuildError(
                        "workers are killed before they finish a part (out of memory?); "
                        "run again with fewer --workers, finished parts are kept"
                    ) from None

    def _run_pool(self, function: Callable[[Job], Result], left: dict[int, Job]) -> Iterator[tuple[int, Result]]:
        # A fork would copy threads' locks (HDF5, BLAS, progress bars) in whatever state they are.
        context = multiprocessing.get_context("spawn")
        waiting = iter(list(left.items()))
        others = multiprocessing.active_children()
        with ProcessPoolExecutor(self.workers, mp_context=context) as pool:
            running: dict[Future[Result], int] = {}
            try:
                while True:
                    while len(running) < self.workers * _QUEUED_PER_WORKER:
                        entry = next(waiting, None)
                        if entry is None:
                            break
                        with _interrupts_blocked():  # by what starts a worker, so that it inherits it
                            future = pool.submit(function, entry[1])
                        running[future] = entry[0]
                    if not running:
                        return
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield running.pop(future), future.result()
            except Exception:
                for future in running:
                    future.cancel()
                raise
            except BaseException:
                # Ctrl-C: parts in flight would take minutes, and are made again anyway.
                for process in multiprocessing.active_children():
                    if process not in others:
                        process.terminate()
                raise


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Keep Ctrl-C, which a terminal sends to all processes, from the workers: this process ends them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class DaskEngine:
    """A Dask cluster by scheduler address; the raw and output folders must be the same paths on its workers."""

    def __init__(self, address: str) -> None:
        self.address = address

    def run(self, function: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[tuple[int, Result]]:
        """See `Engine.run`.

        Raises:
            BuildError: no scheduler at the address, or the cluster died.
        """
        from dask.distributed import Client

        try:
            client = Client(self.address, timeout=_CONNECT_SECONDS)
        except (OSError, TimeoutError) as error:
            raise BuildError(f"no Dask scheduler answers at {self.address} ({error})") from error
        with client:
            yield from self._run_on(client, function, jobs)

    @staticmethod
    def _run_on(client: Any, function: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[tuple[int, Result]]:
        from dask.distributed import as_completed

        waiting = iter(enumerate(jobs))
        numbers: dict[str, int] = {}
        completed = as_completed()
        room = _Room(client)

        def fill() -> None:
            for number, job in islice(waiting, max(0, room.tasks() - len(numbers))):
                future = client.submit(function, job, pure=False, retries=_RESTARTS_WITHOUT_PROGRESS)
                numbers[future.key] = number
                completed.add(future)

        fill()
        for future in completed:
            try:
                result = future.result()
            except JmpDataError:
                raise
            except Exception as error:
                if type(error).__module__.startswith("distributed"):
                    reason = " ".join(str(error).split())  # of several lines
                    raise BuildError(
                        f"the Dask cluster lost a part ({reason}); run again, finished parts are kept"
                    ) from error
                raise
            number = numbers.pop(future.key)
            fill()
            yield number, result


class _Room:
    """How many tasks may be with the scheduler at a time; follows workers that come and go."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._asked = -math.inf
        self._tasks = _QUEUED_AT_LEAST

    def tasks(self) -> int:
        """A few for each thread of the cluster."""
        now = time.monotonic()
        if now - self._asked > _ASK_AGAIN_SECONDS:
            self._asked = now
            self._tasks = max(_QUEUED_AT_LEAST, _QUEUED_PER_WORKER * sum(self._client.nthreads().values()))
        return self._tasks


def choose_engine(*, workers: int, scheduler: str | None) -> Engine:
    """The engine that the command-line options ask for."""
    if scheduler is not None:
        return DaskEngine(scheduler)
    return SerialEngine() if workers == 1 else ProcessEngine(workers)
