"""Sharing a global batch among ranks so that all have nearly the same work, without talking to each other.

Every rank sees the same atom counts, runs the same greedy rule and takes its own part: structures in order of falling
cost, each to the rank with the least work so far that still has room (Graham's longest-processing-time rule with equal
counts).
"""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
CostModel = Callable[[Ints], Floats]
"""(n,) atoms of each structure → (n,) work, any unit."""


@numba.njit(cache=True, nogil=True)
def _sift_down(load: Floats, heap: Ints, length: int) -> None:
    """Restore the heap (least load first, then least rank) after its top grew."""
    place = 0
    while True:
        child = 2 * place + 1
        if child >= length:
            return
        right = child + 1
        if right < length and (load[heap[right]], heap[right]) < (load[heap[child]], heap[child]):
            child = right
        if (load[heap[place]], heap[place]) < (load[heap[child]], heap[child]):
            return
        heap[place], heap[child] = heap[child], heap[place]
        place = child


@numba.njit(cache=True, nogil=True)
def deal(cost: Floats, order: Ints, world_size: int, equal_counts: bool, ranks: npt.NDArray[np.int32]) -> None:
    """Give each item of `order` to the least loaded rank.

    Args:
        cost: (n,) work of each item.
        order: items, heaviest first.
        world_size: number of ranks.
        equal_counts: ranks get the same number of items, or numbers that differ by one.
        ranks: (n,) output.
    """
    load, count = np.zeros(world_size), np.zeros(world_size, np.int64)
    heap, length = np.arange(world_size), world_size
    floor, extra = len(order) // world_size, len(order) % world_size
    for item in order:
        # A rank is full at `floor` items; `extra` ranks may take one more.
        while equal_counts and count[heap[0]] >= floor + (extra > 0):
            length -= 1
            heap[0] = heap[length]
            _sift_down(load, heap, length)
        rank = heap[0]
        ranks[item] = rank
        load[rank] += cost[item]
        count[rank] += 1
        extra -= count[rank] > floor
        _sift_down(load, heap, length)


@numba.njit(cache=True, nogil=True)
def _deal_steps(
    cost: Floats, order: Ints, bounds: Ints, world_size: int, equal_counts: bool, ranks: npt.NDArray[np.int32]
) -> None:
    for step in range(len(bounds) - 1):
        start, stop = bounds[step], bounds[step + 1]
        deal(cost[start:stop], order[start:stop] - start, world_size, equal_counts, ranks[start:stop])


def share_out(cost: Floats, bounds: Ints, world_size: int, *, equal_counts: bool) -> npt.NDArray[np.int32]:
    """Ranks of the structures of several global batches.

    Args:
        cost: (n,) work of each structure.
        bounds: (num_steps + 1,) step s holds the structures from bounds[s] to bounds[s + 1].
        world_size: number of ranks.
        equal_counts: in each step the counts of the ranks differ by at most one; otherwise only the work counts.

    Returns:
        (n,) int32 rank of each structure.
    """
    ranks = np.zeros(len(cost), np.int32)
    if world_size > 1:
        bounds = np.ascontiguousarray(bounds, np.int64)
        cost = np.ascontiguousarray(cost, np.float64)
        heaviest_first = np.lexsort((-cost, np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))))
        _deal_steps(cost, heaviest_first, bounds, world_size, equal_counts, ranks)
    return ranks


def imbalance(cost: Floats, ranks: npt.NDArray[np.int32], bounds: Ints, world_size: int) -> Floats:
    """(num_steps,) heaviest rank over the mean, in each step."""
    steps = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
    loads = np.bincount(steps * world_size + ranks, cost, minlength=(len(bounds) - 1) * world_size)
    loads = loads.reshape(-1, world_size)
    return np.asarray(loads.max(axis=1) / loads.mean(axis=1))
