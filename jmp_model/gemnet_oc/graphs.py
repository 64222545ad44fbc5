"""What the model reads: atoms of a batch, and four edge sets that say who interacts with whom.

Shapes: N atoms, B structures, E edges of one set. An edge goes from a source (neighbour) to a target (centre); its cell
offset belongs to the source, whose image sits at `positions[source] + cell_offsets @ cell`.
Distances and directions are derived from positions inside the model, so that gradients with respect to positions exist.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from jmp_data.errors import InvalidStructureError

GRAPH_NAMES = ("main", "a2a", "a2ee2a", "qint")


@dataclass(frozen=True)
class EdgeSet:
    """Directed edges of one graph, in any order.

    Attributes:
        edge_index: (2, E) integers; row 0 source, row 1 target, indices into the atoms of the batch.
        cell_offsets: (E, 3) integers; lattice offset of the source.
    """

    edge_index: Tensor
    cell_offsets: Tensor

    def __post_init__(self) -> None:
        """Check shapes, so that a transposed or foreign array is named here and not deep inside the model."""
        if self.edge_index.dim() != 2 or self.edge_index.shape[0] != 2:
            raise InvalidStructureError(f"edge_index has shape {tuple(self.edge_index.shape)}, expected (2, edges)")
        if self.cell_offsets.shape != (self.edge_index.shape[1], 3):
            raise InvalidStructureError(
                f"cell_offsets has shape {tuple(self.cell_offsets.shape)}, expected ({self.edge_index.shape[1]}, 3)"
            )

    @property
    def num_edges(self) -> int:
        """Number of directed edges."""
        return self.edge_index.shape[1]

    def to(self, device: torch.device | str) -> EdgeSet:
        """Copy to a device."""
        return EdgeSet(self.edge_index.to(device), self.cell_offsets.to(device))


@dataclass(frozen=True)
class Graphs:
    """The four graphs of a batch.

    Attributes:
        main: edges that carry embeddings, before symmetrisation (the model symmetrises).
        a2a: atom to atom messages.
        a2ee2a: atom to edge and edge to atom messages.
        qint: middle edges of quadruplets.
    """

    main: EdgeSet
    a2a: EdgeSet
    a2ee2a: EdgeSet
    qint: EdgeSet

    def to(self, device: torch.device | str) -> Graphs:
        """Copy to a device."""
        return Graphs(**{name: getattr(self, name).to(device) for name in GRAPH_NAMES})

    @classmethod
    def from_any(cls, graphs: Any) -> Graphs:
        """Accept our own class, or a mapping or object with the four names, each having edge_index and cell_offsets."""
        if isinstance(graphs, cls):
            return graphs
        sets = {}
        for name in GRAPH_NAMES:
            edges = graphs[name] if isinstance(graphs, Mapping) else getattr(graphs, name)
            if not isinstance(edges, EdgeSet):
                edges = EdgeSet(torch.as_tensor(edges.edge_index), torch.as_tensor(edges.cell_offsets))
            sets[name] = edges
        return cls(**sets)


@dataclass(frozen=True)
class ModelInputs:
    """A batch of structures as plain tensors.

    Attributes:
        atomic_numbers: (N,) int64.
        positions: (N, 3), Å.
        cell: (B, 3, 3), Å, rows are lattice vectors; ignored where all offsets are zero.
        batch: (N,) int64, structure of each atom, ascending.
        natoms: (B,) int64.
        graphs: the four edge sets.
    """

    atomic_numbers: Tensor
    positions: Tensor
    cell: Tensor
    batch: Tensor
    natoms: Tensor
    graphs: Graphs

    @property
    def num_structures(self) -> int:
        """B, without a device synchronisation."""
        return self.natoms.shape[0]

    @classmethod
    def from_batch(cls, batch: Any, graphs: Any = None) -> ModelInputs:
        """Read a `torch_geometric` batch.

        Args:
            batch: has pos, atomic_numbers, batch, natoms, cell (B, 3, 3) and, unless given apart, the four graphs as
                `<graph>_edge_index` and `<graph>_cell_offsets`, as `jmp_data.graphs.attach_graphs` leaves them.
            graphs: anything `Graphs.from_any` accepts, instead of those.

        Raises:
            InvalidStructureError: there is no graph.
        """
        if graphs is None:
            missing = [name for name in GRAPH_NAMES if not hasattr(batch, f"{name}_edge_index")]
            if missing:
                raise InvalidStructureError(
                    f"the batch carries no {missing[0]}_edge_index: build its four graphs with attach_graphs first"
                )
            graphs = {
                name: EdgeSet(getattr(batch, f"{name}_edge_index"), getattr(batch, f"{name}_cell_offsets"))
                for name in GRAPH_NAMES
            }
        positions = batch.pos
        return cls(
            atomic_numbers=batch.atomic_numbers.long().view(-1),
            positions=positions,
            cell=batch.cell.to(positions.dtype).view(-1, 3, 3),
            batch=batch.batch.long(),
            natoms=torch.as_tensor(batch.natoms, device=positions.device).long().view(-1),
            graphs=Graphs.from_any(graphs).to(positions.device),
        )

    def to(self, device: torch.device | str) -> ModelInputs:
        """Copy to a device."""
        return ModelInputs(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    def with_dtype(self, dtype: torch.dtype) -> ModelInputs:
        """Copy with positions and cell in another floating-point type."""
        return replace(self, positions=self.positions.to(dtype), cell=self.cell.to(dtype))
