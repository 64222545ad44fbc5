"""The graphs that a loader puts on its batches, and the randomness of their edge dropout.

Building works on NumPy arrays, so that worker processes need no torch, which would cost each of them memory and
seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from jmp_data.errors import ManifestError
from jmp_data.graphs import GRAPH_NAMES, MOLECULE, PERIODIC, GraphSettings, attach_on_device, batch_four_graphs
from jmp_data.graphs.dropout import draw_seeds
from jmp_data.mixture import Mixture
from jmp_data.stream.state import StreamPosition
from jmp_data.stream.stored_graphs import STORED, serve

if TYPE_CHECKING:
    from torch_geometric.data import Batch

Array = npt.NDArray[Any]
GEOMETRY = ("pos", "cell", "pbc", "natoms", "tags")
GraphChoice = GraphSettings | Mapping[str, GraphSettings] | Literal["auto"]
GraphPlace = Literal["workers", "device"]


@dataclass(frozen=True)
class GraphBuilder:
    """Builds graphs; a pure function of the batch, its place in the stream and these settings.

    Attributes:
        settings: for all structures, one for each data set, or None to choose by periodicity.
        edge_dropout: probability of dropping an edge.
        seed: what the dropout depends on, together with epoch, step and rank.
        names: which of the four graphs.
    """

    settings: GraphSettings | tuple[GraphSettings, ...] | None
    edge_dropout: float
    seed: int
    names: tuple[str, ...] = GRAPH_NAMES

    @classmethod
    def for_mixture(
        cls, mixture: Mixture, graphs: GraphChoice, edge_dropout: float, seed: int, names: Sequence[str] = GRAPH_NAMES
    ) -> GraphBuilder:
        """Resolve what a user asked for.

        Raises:
            ManifestError: settings by name do not name exactly the data sets of the mixture, or there is no such graph.
        """
        chosen = tuple(name for name in GRAPH_NAMES if name in names)
        if not chosen or len(chosen) < len(names):
            raise ManifestError(f"graph_names are {list(names)}; choose from {', '.join(GRAPH_NAMES)}")
        if isinstance(graphs, GraphSettings):
            return cls(graphs, edge_dropout, seed, chosen)
        if graphs == "auto":
            return cls(None, edge_dropout, seed, chosen)
        if not isinstance(graphs, Mapping) or set(graphs) != set(mixture.names):
            given = sorted(graphs) if isinstance(graphs, Mapping) else graphs
            raise ManifestError(f"graph settings are for {given}, the mixture holds {sorted(mixture.names)}")
        return cls(tuple(graphs[name] for name in mixture.names), edge_dropout, seed, chosen)

    def settings_for(self, dataset: int) -> tuple[GraphSettings, GraphSettings]:
        """Settings of the molecules and of the periodic structures of a data set."""
        if self.settings is None:
            return MOLECULE, PERIODIC
        settings = self.settings[dataset] if isinstance(self.settings, tuple) else self.settings
        return settings, settings

    @property
    def main_neighbors(self) -> int:
        """The most neighbours that any of the main graphs may keep."""
        settings = self.settings if isinstance(self.settings, tuple) else (self.settings or MOLECULE,)
        return max(each.main for each in settings)

    def build(self, arrays: Mapping[str, Array], place: StreamPosition, rank: int) -> dict[str, Array]:
        """The graphs of a batch.

        Args:
            arrays: pos, cell, pbc, natoms, tags and dataset_index of the batch, and its stored edges, if any.
            place: where the stream stands after the batch.
            rank: whose batch it is.

        Returns:
            `<graph>_edge_index` (2, nedges) int64 and `<graph>_cell_offsets` (nedges, 3), as `attach_graphs` names
            them.
        """
        settings = self._settings_of(arrays)
        if STORED in arrays:
            edges = serve(arrays, settings, self.names)
        else:
            graphs = batch_four_graphs(
                arrays["pos"],
                arrays["cell"],
                arrays["pbc"],
                arrays["natoms"],
                arrays["tags"],
                settings,
                edge_dropout=self.edge_dropout,
                rng=self._dropout_rng(place, rank),
            )
            edges = {name: getattr(graphs, name) for name in self.names}
        indices = {f"{name}_edge_index": each.edge_index for name, each in edges.items()}
        return indices | {f"{name}_cell_offsets": each.cell_offsets for name, each in edges.items()}

    def add_seeds(self, batch: Batch, place: StreamPosition, rank: int) -> Batch:
        """Put `edge_seeds` (B,) on a batch, from which `attach_on_device` drops the edges that `build` drops."""
        import torch

        count = batch.num_graphs
        batch.edge_seeds = torch.from_numpy(draw_seeds(count, self.edge_dropout, self._dropout_rng(place, rank)))
        batch._slice_dict["edge_seeds"] = torch.arange(count + 1)
        batch._inc_dict["edge_seeds"] = torch.zeros(count, dtype=torch.int64)
        return batch

    def attach_on_device(self, batch: Batch) -> Batch:
        """Build the graphs of a batch with `edge_seeds` on its device and put them on it; returns it."""
        return attach_on_device(
            batch, self.settings, edge_dropout=self.edge_dropout, seeds=batch.edge_seeds, names=self.names
        )

    def _dropout_rng(self, place: StreamPosition, rank: int) -> np.random.Generator | None:
        """What the seeds of a batch are drawn from; None without dropout."""
        return np.random.default_rng([self.seed % 2**63, place.epoch, place.step, rank]) if self.edge_dropout else None

    def _settings_of(self, arrays: Mapping[str, Array]) -> GraphSettings | list[GraphSettings]:
        if isinstance(self.settings, GraphSettings):
            return self.settings
        if self.settings is None:
            return [PERIODIC if any(axes) else MOLECULE for axes in arrays["pbc"].tolist()]
        return [self.settings[number] for number in arrays["dataset_index"].tolist()]


def geometry_of(batch: Batch) -> dict[str, Array]:
    """What `GraphBuilder.build` needs of a batch, as NumPy views."""
    return {name: batch[name].numpy() for name in (*GEOMETRY, "dataset_index")}


def attach(batch: Batch, edges: Mapping[str, Array]) -> Batch:
    """Put built graphs on their batch, so that `get_example` finds each structure's part of them; returns it."""
    import torch

    for graph in (name for name in GRAPH_NAMES if f"{name}_edge_index" in edges):
        edge_index = torch.from_numpy(edges[f"{graph}_edge_index"])
        # Edges are sorted by target atom, so each structure owns one stretch of them.
        slices = torch.searchsorted(edge_index[1].contiguous(), batch.ptr)
        for name, value, shift in (
            (f"{graph}_edge_index", edge_index, batch.ptr[:-1]),
            (f"{graph}_cell_offsets", torch.from_numpy(edges[f"{graph}_cell_offsets"]), torch.zeros_like(slices[:-1])),
        ):
            batch[name] = value
            batch._slice_dict[name], batch._inc_dict[name] = slices, shift
    return batch
