"""How large a step may be, and how many ranks share it: what a user sets, checked, and turned into cuts."""

from __future__ import annotations

from dataclasses import dataclass

from jmp_data.errors import ManifestError
from jmp_data.stream.balance import CostModel
from jmp_data.stream.budget import BudgetCuts, Weigher
from jmp_data.stream.epoch_order import EpochOrder
from jmp_data.stream.steps import FixedCuts, Steps

BATCH_SIZE = 32
MAX_NEIGHBORS = 30
"""Edges that an atom counts as where no graph settings say otherwise."""


@dataclass(frozen=True)
class BatchLimits:
    """What one rank gets in one step.

    Attributes:
        batch_size: structures; 32 by default where nothing else is limited, else no limit.
        max_atoms: atoms, or None.
        max_edges: edges, or None.
        world_size: ranks that share a global batch.

    Raises:
        ManifestError: a limit that is not positive.
    """

    batch_size: int | None = None
    max_atoms: int | None = None
    max_edges: int | None = None
    world_size: int = 1

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_atoms", "max_edges", "world_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ManifestError(f"{name} is {value}; it must be at least 1")

    @property
    def is_fixed(self) -> bool:
        """True where every step has the same number of structures."""
        return self.max_atoms is None and self.max_edges is None

    @property
    def structures(self) -> int | None:
        """Structures that one rank may get in one step."""
        return BATCH_SIZE if self.batch_size is None and self.is_fixed else self.batch_size

    @property
    def of_all_ranks(self) -> dict[str, int]:
        """The limits of a global batch, by name; the sequence of global batches depends on these."""
        limits = {"batch_size": self.structures, "max_atoms": self.max_atoms, "max_edges": self.max_edges}
        return {f"global_{name}": limit * self.world_size for name, limit in limits.items() if limit is not None}

    def cut(self, order: EpochOrder, *, cost: CostModel | None = None, neighbors: int = MAX_NEIGHBORS) -> Steps:
        """The steps of an epoch.

        Args:
            order: the epoch.
            cost: atom counts → work, by which ranks are balanced in steps of fixed size.
            neighbors: edges that an atom counts as.

        Raises:
            ManifestError: the epoch has fewer structures than there are ranks.
        """
        if self.is_fixed:
            size = self.structures or BATCH_SIZE
            return FixedCuts(order.size, size * self.world_size, self.world_size, cost)
        weigh = Weigher(self.batch_size, self.max_atoms, self.max_edges, neighbors)
        return BudgetCuts(order, weigh.limits, weigh, self.world_size)
