"""Blocks read ahead of their use, by threads or worker processes, within a bounded amount of memory.

In memory at any time: the blocks of the windows in use (`window_blocks` of each data set, twice that while one window
ends and the next begins) and at most `prefetch_blocks` more. A block of 32768 atoms with energies and forces is 0.9
MB.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from jmp_data.mixture import Mixture
from jmp_data.schema import Block
from jmp_data.shards.graph_layer import LayerBlock
from jmp_data.stream.columns import BatchColumn
from jmp_data.stream.dataset_order import Window
from jmp_data.stream.epoch_order import EpochOrder
from jmp_data.stream.pool import WorkerPool
from jmp_data.stream.worker import ReadBlock, ReadStoredGraphs, Task

LOCAL_THREADS = 2
REMOTE_THREADS = 64
"""A remote read mostly waits; a local one mostly decompresses."""

Array = npt.NDArray[Any]
Read = TypeVar("Read", covariant=True)


class BlockFetcher(Protocol[Read]):
    """Starts reading blocks."""

    def start(self, dataset: int, block: int) -> Callable[[], Read]:
        """Begin to read a block; calling the result waits for it."""

    def close(self) -> None:
        """Forget what was started."""


class _Threads:
    """Threads of this process that read."""

    def __init__(self, mixture: Mixture) -> None:
        self._datasets = [member.dataset for member in mixture]
        threads = REMOTE_THREADS if is_remote(mixture) else LOCAL_THREADS
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="jmp-blocks")

    def close(self) -> None:
        """Cancel what has not begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class ThreadFetcher(_Threads):
    """Reads blocks in threads of this process."""

    def __init__(self, mixture: Mixture, columns: Sequence[BatchColumn]) -> None:
        super().__init__(mixture)
        self._columns = columns_of_datasets(mixture, columns)

    def start(self, dataset: int, block: int) -> Callable[[], Block]:
        """See `BlockFetcher.start`."""
        read = self._datasets[dataset].read_block
        return self._pool.submit(read, block, self._columns[dataset]).result


class GraphThreadFetcher(_Threads):
    """Reads the stored graphs of some data sets in threads of this process."""

    def __init__(self, mixture: Mixture, served: Sequence[bool]) -> None:
        super().__init__(mixture)
        self._served = served

    def start(self, dataset: int, block: int) -> Callable[[], LayerBlock | None]:
        """See `BlockFetcher.start`; None for the other data sets."""
        layer = self._datasets[dataset].graph_layer if self._served[dataset] else None
        return _nothing if layer is None else self._pool.submit(layer.read_block, block).result


def _nothing() -> None:
    return None


class _PoolTasks:
    """Tasks of worker processes, whose results may be asked for again and again."""

    def __init__(self, pool: WorkerPool) -> None:
        self._pool, self._started = pool, set[int]()

    def _submit(self, task: Task, convert: Callable[[dict[str, Array]], Read]) -> Callable[[], Read]:
        number = self._pool.submit(task)
        self._started.add(number)
        done: list[Read] = []

        def finish() -> Read:
            if not done:
                self._started.discard(number)
                done.append(convert(self._pool.result(number)))
            return done[0]

        return finish

    def close(self) -> None:
        """Let the pool forget what was not collected."""
        for number in self._started:
            self._pool.discard(number)


class PoolFetcher(_PoolTasks):
    """Reads blocks in worker processes."""

    def __init__(self, mixture: Mixture, pool: WorkerPool) -> None:
        super().__init__(pool)
        self._schemas = [member.dataset.schema for member in mixture]

    def start(self, dataset: int, block: int) -> Callable[[], Block]:
        """See `BlockFetcher.start`."""

        def to_block(arrays: dict[str, Array]) -> Block:
            return Block(arrays.pop("natoms"), arrays, np.zeros(0, "S1"), self._schemas[dataset])

        return self._submit(ReadBlock(dataset, block), to_block)


class GraphPoolFetcher(_PoolTasks):
    """Reads the stored graphs of some data sets in worker processes."""

    def __init__(self, served: Sequence[bool], pool: WorkerPool) -> None:
        super().__init__(pool)
        self._served = served

    def start(self, dataset: int, block: int) -> Callable[[], LayerBlock | None]:
        """See `BlockFetcher.start`; None for the other data sets."""
        if not self._served[dataset]:
            return _nothing
        return self._submit(ReadStoredGraphs(dataset, block), LayerBlock.from_arrays)


def is_remote(mixture: Mixture) -> bool:
    """Whether any data set lies behind a URL."""
    return any("://" in str(member.dataset.path) for member in mixture)


def columns_of_datasets(mixture: Mixture, columns: Sequence[BatchColumn]) -> list[list[str]]:
    """Which of the columns each data set has."""
    return [[column.field.name for column in columns if column.present[i]] for i in range(len(mixture))]


class BlocksAhead(Generic[Read]):
    """The blocks of the windows in use, and the next ones on their way.

    Args:
        order: the epoch.
        position: where reading begins.
        fetcher: who reads.
        prefetch_blocks: blocks to read ahead of the windows in use.
    """

    def __init__(self, order: EpochOrder, position: int, fetcher: BlockFetcher[Read], prefetch_blocks: int) -> None:
        self._fetcher, self._prefetch = fetcher, prefetch_blocks
        self._schedule = _block_schedule(order, position)
        self._next: tuple[int, Window, int] | None = next(self._schedule, None)
        self._pending: dict[tuple[int, int], dict[int, Callable[[], Read]]] = {}
        self._stops: dict[tuple[int, int], int] = {}
        self._ahead: deque[int] = deque()

    def move_to(self, chapter: int, consumed: Sequence[int]) -> None:
        """Start what `chapter` needs and what comes after, drop what is used up.

        Args:
            chapter: the last chapter about to be used.
            consumed: samples of each data set that will not be asked for again.
        """
        for key in [key for key, stop in self._stops.items() if stop <= consumed[key[0]]]:
            del self._pending[key], self._stops[key]
        while self._ahead and self._ahead[0] <= chapter:
            self._ahead.popleft()
        while self._next is not None and (self._next[0] <= chapter or len(self._ahead) < self._prefetch):
            needed_in, window, block = self._next
            key = (window.dataset, window.start)
            self._stops[key] = window.stop
            blocks = self._pending.setdefault(key, {})
            if block not in blocks:
                blocks[block] = self._fetcher.start(window.dataset, block)
                if needed_in > chapter:
                    self._ahead.append(needed_in)
            self._next = next(self._schedule, None)

    @property
    def num_blocks(self) -> int:
        """Blocks in memory or on their way."""
        return sum(len(blocks) for blocks in self._pending.values())

    def close(self) -> None:
        """Forget what was started."""
        self._fetcher.close()

    def block(self, window: Window, visit: int) -> Read:
        """What was read of the block of a visit; waits until it is there."""
        return self._pending[window.dataset, window.start][int(window.blocks[visit])]()


def _block_schedule(order: EpochOrder, position: int) -> Iterator[tuple[int, Window, int]]:
    for chapter, window in order.schedule(position):
        for block in window.blocks.tolist():
            yield chapter, window, block
