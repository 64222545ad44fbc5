"""How fast a stream is here: on these data, this machine, this storage."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import psutil

from jmp_data.stream.loader import StreamLoader

if TYPE_CHECKING:
    from torch_geometric.data import Batch

WARM_UP = 0.5
"""Share of the measuring time that goes before it: threads start, code compiles, the first windows fill."""


def measure_stream(loader: StreamLoader, *, seconds: float) -> dict[str, Any]:
    """Take batches as fast as they come, epoch after epoch, and do nothing with them.

    Args:
        loader: what to measure; it is left in the middle of an epoch.
        seconds: how long.

    Returns:
        A JSON-able summary: seconds to the first batch; then, per second, batches, structures, atoms and edges of the
        main graph; processor seconds per second of this process and of its workers; memory of this process at the end.
    """
    batches = _endless(loader)
    start = time.perf_counter()
    next(batches)
    first = time.perf_counter() - start
    _count(batches, seconds * WARM_UP)
    cpu = _processor_seconds()
    elapsed, counts = _count(batches, seconds)
    return {
        "first_batch_seconds": first,
        "seconds": elapsed,
        **{f"{name}_per_second": count / elapsed for name, count in counts.items()},
        "processors_used": (_processor_seconds() - cpu) / elapsed,
        "memory_bytes": psutil.Process().memory_info().rss,
    }


def _endless(loader: StreamLoader) -> Iterator[Batch]:
    while True:
        yield from loader


def _count(batches: Iterator[Batch], seconds: float) -> tuple[float, dict[str, int]]:
    """Seconds that passed, and what was delivered meanwhile."""
    counts = {"batches": 0, "structures": 0, "atoms": 0, "edges": 0}
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        batch = next(batches)
        counts["batches"] += 1
        counts["structures"] += batch.num_graphs
        counts["atoms"] += len(batch.pos)
        counts["edges"] += batch.main_edge_index.shape[1] if "main_edge_index" in batch else 0
    return elapsed, counts


def _processor_seconds() -> float:
    """Processor time of this process and its children so far."""
    total = 0.0
    process = psutil.Process()
    for each in (process, *process.children(recursive=True)):
        try:
            times = each.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total
