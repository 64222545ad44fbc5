"""Worker processes that can be killed at any time: tasks are pure, so a dead worker is replaced and its tasks done
again.

Workers are started as fresh interpreters, neither forked (compressors and threads do not survive that) nor spawned by
`multiprocessing` (which runs the user's script again). They share one copy of the setup and keep nothing between tasks.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import selectors
import signal
import socket
import subprocess
import sys
import weakref
from collections import OrderedDict, deque
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jmp_data.errors import JmpDataError
from jmp_data.stream.shared_arrays import Array, Header, SharedReader, receive, send, write_arrays
from jmp_data.stream.worker import Task, WorkerSetup

ATTEMPTS = 3
"""How often a task may be in hand when a worker dies before the loader gives up."""

IN_HAND = 2
"""Tasks that a worker has at a time, so that it never waits for the next."""

_BOOT = "from jmp_data.stream.worker import main; main()"
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


class WorkerError(JmpDataError, RuntimeError):
    """Worker processes die again and again; the message names the task and how they ended."""


class _Worker:
    """One process and the tasks that it has in hand, oldest first."""

    def __init__(self, setup_header: Header, setup_memory: int) -> None:
        self.connection, theirs = socket.socketpair()
        with theirs:
            path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", _BOOT, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**os.environ, **_ONE_THREAD, "PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
            )
        with contextlib.suppress(OSError):  # killed already; seen when something is to be received
            send(self.connection, setup_header, setup_memory)
        self.in_hand: OrderedDict[int, None] = OrderedDict()
        self.answers = SharedReader()

    def end(self) -> str:
        """Stop the process, if it still runs; returns how it ended."""
        self.connection.close()
        try:
            code = self.process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


class WorkerPool:
    """Runs tasks on worker processes; results are fetched in any order.

    Args:
        num_workers: processes.
        setup: what the tasks refer to.
    """

    def __init__(self, num_workers: int, setup: WorkerSetup) -> None:
        payload = np.frombuffer(pickle.dumps(setup, protocol=pickle.HIGHEST_PROTOCOL), np.uint8)
        self._setup_header, self._setup_memory = write_arrays({"setup": payload})
        self._submitted = 0
        self._tasks: dict[int, tuple[Task, Mapping[str, Array]]] = {}
        self._urgent: deque[int] = deque()
        self._background: deque[int] = deque()
        self._attempts: dict[int, int] = {}
        self._done: dict[int, dict[str, Array] | Exception] = {}
        self._selector = selectors.DefaultSelector()
        self._workers: list[_Worker] = []
        self._closer = weakref.finalize(self, _close, self._workers, self._selector, self._setup_memory)
        for _ in range(num_workers):
            self._start_worker()

    def submit(self, task: Task, arrays: Mapping[str, Array] | None = None, *, urgent: bool = False) -> int:
        """Queue a task; returns its number. Urgent ones go before those that are not."""
        number = self._submitted = self._submitted + 1
        self._tasks[number] = (task, arrays or {})
        (self._urgent if urgent else self._background).append(number)
        self._dispatch()
        return number

    def result(self, number: int) -> dict[str, Array]:
        """Wait for a task and forget it.

        Raises:
            WorkerError: workers keep dying over it.
            Exception: whatever the task raised.
        """
        if self._withdraw(number):
            self._urgent.appendleft(number)
        while number not in self._done:
            self._dispatch()
            self._receive()
        answer = self._done.pop(number)
        self._forget(number)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def discard(self, number: int) -> None:
        """Forget a task whose result nobody wants any more."""
        self._withdraw(number)
        self._done.pop(number, None)
        self._forget(number)

    def close(self) -> None:
        """End all workers."""
        self._closer()

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.process.pid for worker in self._workers]

    def _forget(self, number: int) -> None:
        self._tasks.pop(number, None)
        self._attempts.pop(number, None)

    def _withdraw(self, number: int) -> bool:
        for queue in (self._urgent, self._background):
            if number in queue:
                queue.remove(number)
                return True
        return False

    def _start_worker(self) -> None:
        worker = _Worker(self._setup_header, self._setup_memory)
        self._workers.append(worker)
        self._selector.register(worker.connection, selectors.EVENT_READ, worker)

    def _dispatch(self) -> None:
        """Hand waiting tasks to the workers that have the fewest."""
        while self._urgent or self._background:
            worker = min(self._workers, key=lambda each: len(each.in_hand))
            if len(worker.in_hand) >= IN_HAND:
                return
            number = (self._urgent or self._background).popleft()
            task, arrays = self._tasks[number]
            worker.in_hand[number] = None
            released = worker.answers.released()
            try:
                if not arrays:
                    send(worker.connection, (number, task, None, released))
                    continue
                header, memory = write_arrays(arrays)
                try:
                    send(worker.connection, (number, task, header, released), memory)
                finally:
                    os.close(memory)
            except OSError:
                self._replace(worker)

    def _receive(self) -> None:
        """Take what workers have sent, at least one message or death."""
        for key, _ in self._selector.select():
            worker: _Worker = key.data
            try:
                (number, parcel, error), memory = receive(worker.connection)
            except (EOFError, OSError):
                self._replace(worker)
                continue
            worker.in_hand.pop(number, None)
            # Read also what nobody wants any more: its memory goes back at once.
            answer = error if parcel is None else worker.answers.read(parcel, memory)
            if memory is not None:
                os.close(memory)
            if number in self._tasks:
                self._done[number] = answer

    def _replace(self, worker: _Worker) -> None:
        """Put a dead worker's tasks back and start another in its place."""
        self._selector.unregister(worker.connection)
        self._workers.remove(worker)
        how = worker.end()
        wanted = [number for number in worker.in_hand if number in self._tasks]
        if wanted:
            first = wanted[0]
            self._attempts[first] = self._attempts.get(first, 0) + 1
            if self._attempts[first] >= ATTEMPTS:
                self._done[first] = WorkerError(
                    f"{ATTEMPTS} worker processes died while {self._tasks[first][0]}, the last by {how}; "
                    "SIGKILL usually means that memory ran out: use fewer workers or smaller batches"
                )
                wanted = wanted[1:]
        self._urgent.extendleft(reversed(wanted))
        self._start_worker()


def _close(workers: list[_Worker], selector: selectors.BaseSelector, memory: int) -> None:
    selector.close()
    for worker in workers:
        worker.connection.close()
    for worker in workers:
        worker.end()
    os.close(memory)
