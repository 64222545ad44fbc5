"""Where an epoch is cut into global batches bounded by atoms, edges or structures, and which rank gets what.

`max_atoms` and `max_edges` are hard limits of what one rank gets in one step. The *global budget*,
limit × world_size, plays the part of the global batch size: the cuts shall depend on it and not on how many ranks share
it. So a step is the longest run of the epoch order whose total stays within the global budget and which can be shared
out *for every number of ranks that divides the budget*, as far as a rank's part would hold at least `ROOM` of the
largest structure, and for the actual number of ranks in any case. (Counting smaller parts in would cost everybody: with
sizes like those of OC20 steps are 98.6 % full at `ROOM` = 4 and 96.6 % at 2; 99.9 % would be full with one rank alone.)
Sharing out is the greedy rule of `balance.py`, so the ranks are balanced by the same stroke. Two runs with the same
global budget therefore take the same steps, on any numbers of ranks whose own budget holds `ROOM` of the largest.

Policies at the edges:

* A structure larger than a rank's budget goes alone: its rank gets nothing else in that step.
* A step never has fewer structures than ranks.
* A last step of less than half the structures of the one before it shares evenly with it.
* Where the last structures of an epoch cannot be cut into two steps that give every rank one, they are one step, the
  only one in which several structures on one rank may exceed its budget together.

Planning looks at atom counts only and costs about a microsecond a structure; resuming needs the position alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import gcd

import numba
import numpy as np
import numpy.typing as npt

from jmp_data.stream.balance import deal, share_out
from jmp_data.stream.dataset_order import Ints
from jmp_data.stream.epoch_order import CHAPTER_SAMPLES, EpochOrder, Samples
from jmp_data.stream.steps import check_enough

ROOM = 4
"""Largest structures that a rank's budget must hold for its world size to count in every cut."""

MOST_RANKS = 1024

Weigh = Callable[[Samples], Ints]
"""Samples → (n, num_limits) what each of them takes of each limit."""


@dataclass(frozen=True)
class Weigher:
    """What a sample takes of each limit that is set.

    Attributes:
        batch_size: structures per rank and step, or None.
        max_atoms: atoms, or None.
        max_edges: edges, or None.
        neighbors: edges that an atom counts as.
    """

    batch_size: int | None
    max_atoms: int | None
    max_edges: int | None
    neighbors: int

    @property
    def limits(self) -> Ints:
        """(num_limits,) the limits that are set, per rank."""
        given = (self.batch_size, self.max_atoms, self.max_edges)
        return np.array([limit for limit in given if limit is not None], np.int64)

    def __call__(self, samples: Samples) -> Ints:
        """(n, num_limits) what each sample takes."""
        columns = []
        if self.batch_size is not None:
            columns.append(np.ones(len(samples), np.int64))
        if self.max_atoms is not None:
            columns.append(samples.natoms)
        if self.max_edges is not None:
            columns.append(samples.natoms * self.neighbors)
        return np.stack(columns, axis=1)


@dataclass(frozen=True, eq=False)
class BudgetCuts:
    """The cuts of budgeted batches.

    Attributes:
        order: the epoch.
        limits: (num_limits,) what one rank may get in one step.
        weigh: what a sample takes of each limit.
        world_size: ranks.
    """

    order: EpochOrder
    limits: Ints
    weigh: Weigh
    world_size: int

    def __post_init__(self) -> None:
        check_enough(self.order.size, self.world_size)

    @cached_property
    def _world_sizes(self) -> Ints:
        """Numbers of ranks that could share the global budget, the largest first."""
        shared = gcd(*(int(limit) * self.world_size for limit in self.limits))
        sizes = np.arange(min(shared, max(MOST_RANKS, self.world_size)), 0, -1)
        return np.asarray(sizes[shared % sizes == 0], np.int64)

    @cached_property
    def num_steps(self) -> int:
        """Steps of the epoch; plans all of it, about a microsecond a structure."""
        steps = position = 0
        while position < self.order.size:
            stops = self.stops(steps, position, 8 * CHAPTER_SAMPLES)
            steps, position = steps + len(stops), int(stops[-1])
        return steps

    def stops(self, step: int, position: int, at_least: int) -> Ints:
        """See `Steps.stops`; the number of the step does not matter here."""
        horizon = at_least + CHAPTER_SAMPLES
        while True:
            end = min(position + horizon, self.order.size)
            weights = self.weigh(self.order.samples(position, end))
            stops: Ints = _cut(
                weights,
                self.limits * self.world_size,
                self._world_sizes,
                self.world_size,
                self.order.size - position,
                at_least,
            )
            if len(stops):
                return stops + position
            horizon *= 2  # one step is longer than what was looked at

    def assign(self, samples: Samples, bounds: Ints) -> npt.NDArray[np.int32]:
        """See `Steps.assign`."""
        cost = _costs(self.weigh(samples), self.limits * self.world_size)
        return share_out(cost, bounds, self.world_size, equal_counts=False)


@numba.njit(cache=True, nogil=True)
def _costs(weights: Ints, budgets: Ints) -> npt.NDArray[np.float64]:
    """Share of the global budget that each structure takes, of the limit that it strains most."""
    cost = np.zeros(len(weights))
    for i in range(len(weights)):
        for c in range(len(budgets)):
            cost[i] = max(cost[i], weights[i, c] / budgets[c])
    return cost


@numba.njit(cache=True, nogil=True)
def _fits(weights: Ints, budgets: Ints, world_size: int, cost: npt.NDArray[np.float64], order: Ints) -> bool:
    """Whether the greedy rule shares these structures among so many ranks within their limits."""
    ranks = np.empty(len(weights), np.int32)
    deal(cost, order, world_size, False, ranks)
    loads, counts = np.zeros((world_size, len(budgets)), np.int64), np.zeros(world_size, np.int64)
    for i in range(len(weights)):
        counts[ranks[i]] += 1
        loads[ranks[i]] += weights[i]
    for rank in range(world_size):
        if counts[rank] > 1:
            for c in range(len(budgets)):
                if loads[rank, c] * world_size > budgets[c]:
                    return False
    return True


@numba.njit(cache=True, nogil=True)
def _longest(weights: Ints, budgets: Ints) -> int:
    """Length of the longest start whose total stays within the budgets; -1 if that is everything."""
    totals = np.zeros(len(budgets), np.int64)
    for i in range(len(weights)):
        for c in range(len(budgets)):
            totals[c] += min(weights[i, c], budgets[c])
            if totals[c] > budgets[c]:
                return i
    return -1


@numba.njit(cache=True, nogil=True)
def _shorten(weights: Ints, budgets: Ints, world_sizes: Ints, world_size: int, length: int) -> int:
    """The first length, from `length` downwards, that can be shared by all numbers of ranks that count."""
    largest = np.zeros(len(budgets), np.int64)
    for i in range(length):
        largest = np.maximum(largest, weights[i])
    while length > world_size:
        cost = _costs(weights[:length], budgets)
        order = np.argsort(-cost, kind="mergesort")
        fits = True
        for ranks in world_sizes:
            if ranks == world_size or (largest * ranks * ROOM <= budgets).all():
                fits = _fits(weights[:length], budgets, ranks, cost, order)
            if not fits:
                break
        if fits:
            break
        length = max(length - max(1, length // 128), world_size)
    return length


@numba.njit(cache=True, nogil=True)
def _cut(weights: Ints, budgets: Ints, world_sizes: Ints, world_size: int, remaining: int, at_least: int) -> Ints:
    """Stops relative to the first row of `weights`, which may end before the `remaining` rows of the epoch do."""
    stops, found, start = np.empty(at_least + 1, np.int64), 0, 0
    while start < at_least and start < remaining:
        left = remaining - start
        length = _longest(weights[start:], budgets)
        if length < 0 and len(weights) == remaining:
            length = left
        # The step, or the evening out of the last ones, may depend on what lies beyond the known rows.
        if length < 0 or (start + length + world_size > len(weights) and len(weights) < remaining):
            break
        length = _shorten(weights[start:], budgets, world_sizes, world_size, max(length, min(world_size, left)))
        rest = left - length
        if 0 < 2 * rest < length:
            length = _shorten(weights[start:], budgets, world_sizes, world_size, (left + 1) // 2)
            rest = left - length
        if 0 < rest < world_size:
            length = left - world_size if left >= 2 * world_size else left
        start += length
        stops[found] = start
        found += 1
    return stops[:found]
