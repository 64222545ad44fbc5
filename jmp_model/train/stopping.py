"""Ending a run early with a checkpoint: on SIGTERM or SIGUSR1 from a cluster, or when its time is used up."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

import torch
from lightning_fabric import Fabric


class StopRequest:
    """Notices that the run should end; ranks agree on it, so that none is left waiting.

    Args:
        max_hours: wall-clock limit, or None.
    """

    def __init__(self, max_hours: float | None = None) -> None:
        self.reason = ""
        self._deadline = None if max_hours is None else time.monotonic() + 3600.0 * max_hours
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        # Python allows signal handlers in the main thread only.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGUSR1):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.reason = signal.Signals(number).name

    def due(self, fabric: Fabric) -> bool:
        """Whether to stop now; collective, so every rank must ask."""
        if not self.reason and self._deadline is not None and time.monotonic() > self._deadline:
            self.reason = "time limit"
        if fabric.world_size == 1:
            return bool(self.reason)
        wanted = torch.tensor(float(bool(self.reason)), device=fabric.device)
        if not float(fabric.all_reduce(wanted, reduce_op="sum")):
            return False
        self.reason = self.reason or "another rank was told to stop"
        return True
