"""The graphs that a loader puts on its batches, and the randomness of their edge dropout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from jmp_data.errors import ManifestError
from jmp_data.graphs import MOLECULE, GraphSettings, attach_graphs
from jmp_data.mixture import Mixture
from jmp_data.stream.state import StreamPosition

if TYPE_CHECKING:
    from torch_geometric.data import Batch

GraphChoice = GraphSettings | Mapping[str, GraphSettings] | Literal["auto"]


@dataclass(frozen=True)
class GraphBuilder:
    """Attaches graphs; a pure function of the batch, its place in the stream and these settings.

    Attributes:
        settings: for all structures, one for each data set, or None to choose by periodicity.
        edge_dropout: probability of dropping an edge.
        seed: what the dropout depends on, together with epoch, step and rank.
    """

    settings: GraphSettings | tuple[GraphSettings, ...] | None
    edge_dropout: float
    seed: int

    @classmethod
    def for_mixture(cls, mixture: Mixture, graphs: GraphChoice, edge_dropout: float, seed: int) -> GraphBuilder:
        """Resolve what a user asked for.

        Raises:
            ManifestError: settings by name do not name exactly the data sets of the mixture.
        """
        if isinstance(graphs, GraphSettings):
            return cls(graphs, edge_dropout, seed)
        if graphs == "auto":
            return cls(None, edge_dropout, seed)
        if not isinstance(graphs, Mapping) or set(graphs) != set(mixture.names):
            given = sorted(graphs) if isinstance(graphs, Mapping) else graphs
            raise ManifestError(f"graph settings are for {given}, the mixture holds {sorted(mixture.names)}")
        return cls(tuple(graphs[name] for name in mixture.names), edge_dropout, seed)

    @property
    def main_neighbors(self) -> int:
        """The most neighbours that any of the main graphs may keep."""
        settings = self.settings if isinstance(self.settings, tuple) else (self.settings or MOLECULE,)
        return max(each.main for each in settings)

    def attach(self, batch: Batch, place: StreamPosition, rank: int) -> Batch:
        """Add the four graphs to a batch; returns it."""
        rng = np.random.default_rng([self.seed % 2**63, place.epoch, place.step, rank]) if self.edge_dropout else None
        return attach_graphs(batch, self.settings, edge_dropout=self.edge_dropout, rng=rng)
