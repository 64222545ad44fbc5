"""Where one epoch is cut into global batches of a fixed number of structures.

Every structure of the epoch is delivered: no batch is dropped and none is filled up. An epoch of E structures has
ceil(E / G) steps of G = batch_size × world_size structures; if the last step would hold less than half of G, it shares
evenly with the one before it. So every step holds at least G / 2 structures and every rank at least one, as soon as
each rank is given two or more structures a step. The cuts depend on E and G alone, not on how many ranks share G.

With one structure a rank (G = world_size) a short last step would leave ranks with nothing to do; there the last two
steps are served as one, and some ranks get two structures once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from jmp_data.errors import ManifestError, StateMismatchError
from jmp_data.stream.balance import CostModel, share_out
from jmp_data.stream.epoch_order import Samples

Ints = npt.NDArray[np.int64]


class Steps(Protocol):
    """Cuts of one epoch into global batches."""

    @property
    def num_steps(self) -> int:
        """Steps of the epoch, the same on every rank."""

    def stops(self, step: int, position: int, at_least: int) -> Ints:
        """Ends of the next steps, from `step` at `position` on: as many as fill about `at_least` samples."""

    def assign(self, samples: Samples, bounds: Ints) -> npt.NDArray[np.int32]:
        """(n,) rank of each sample; step s holds the samples from bounds[s] to bounds[s + 1]."""


def check_enough(size: int, world_size: int) -> None:
    """Raise `ManifestError` where an epoch cannot give every rank a structure."""
    if size < world_size:
        raise ManifestError(
            f"an epoch of {size} structures cannot be shared by {world_size} ranks; use fewer ranks or more repeats"
        )


@dataclass(frozen=True)
class FixedCuts:
    """The cuts of fixed-size batches.

    Attributes:
        size: structures of the epoch.
        global_batch: structures of one step over all ranks.
        world_size: ranks; their number matters to the cuts only where each gets a single structure.
        cost: atom counts → work, by which ranks are balanced; None for the atom count itself.
    """

    size: int
    global_batch: int
    world_size: int
    cost: CostModel | None = None

    def __post_init__(self) -> None:
        check_enough(self.size, self.world_size)

    @property
    def _even_cut(self) -> int:
        """Start of the last step, before any merging."""
        steps = -(-self.size // self.global_batch)
        rest = self.size - (steps - 1) * self.global_batch
        if steps == 1 or 2 * rest >= self.global_batch:
            return (steps - 1) * self.global_batch
        return (steps - 2) * self.global_batch + (self.global_batch + rest + 1) // 2

    @property
    def num_steps(self) -> int:
        """Steps of the epoch."""
        steps = -(-self.size // self.global_batch)
        return steps - (self.size - self._even_cut < self.world_size)

    def cut(self, step: int) -> int:
        """First position of a step; the epoch's size for the step after the last."""
        if step == self.num_steps:
            return self.size
        return self._even_cut if step == -(-self.size // self.global_batch) - 1 else step * self.global_batch

    def stops(self, step: int, position: int, at_least: int) -> Ints:
        """See `Steps.stops`.

        Raises:
            StateMismatchError: no step of this world size begins at `position`.
        """
        if step > self.num_steps or self.cut(step) != position:
            raise StateMismatchError(
                f"position {position} of {self.size} is not the start of a step for {self.world_size} ranks; "
                "the last step of an epoch has fewer structures than ranks: finish the epoch on fewer ranks"
            )
        count = max(1, -(-at_least // self.global_batch))
        return np.array([self.cut(s) for s in range(step + 1, min(step + count, self.num_steps) + 1)], np.int64)

    def assign(self, samples: Samples, bounds: Ints) -> npt.NDArray[np.int32]:
        """See `Steps.assign`."""
        cost = samples.natoms if self.cost is None else self.cost(samples.natoms)
        return share_out(np.asarray(cost, np.float64), bounds, self.world_size, equal_counts=True)
