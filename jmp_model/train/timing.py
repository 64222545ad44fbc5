"""How fast training runs, and how much of the time it waits for data."""

from __future__ import annotations

import time


class Clock:
    """Time of training since the last reading, and how much of it was spent waiting for batches."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._waited = 0.0

    def waiting(self) -> _Span:
        """Counts the block as waiting."""
        return _Span(self, waits=True)

    def paused(self) -> _Span:
        """Leaves the block out altogether."""
        return _Span(self, waits=False)

    def add(self, seconds: float, *, waits: bool) -> None:
        """Book a span."""
        if waits:
            self._waited += seconds
        else:
            self._start += seconds

    def read(self) -> tuple[float, float]:
        """Seconds since the last reading, and seconds waited; starts anew."""
        now = time.perf_counter()
        found = max(now - self._start, 1e-9), self._waited
        self._start, self._waited = now, 0.0
        return found


class _Span:
    def __init__(self, clock: Clock, *, waits: bool) -> None:
        self._clock = clock
        self._waits = waits

    def __enter__(self) -> None:
        self._begin = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._clock.add(time.perf_counter() - self._begin, waits=self._waits)
