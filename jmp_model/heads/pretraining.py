"""The pre-training heads: one energy and one direct force head per task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jmp_model.gemnet_oc.backbone import BackboneOutput
from jmp_model.gemnet_oc.config import GemNetOCConfig
from jmp_model.gemnet_oc.graphs import ModelInputs
from jmp_model.gemnet_oc.ragged import group_counts, pick, spread
from jmp_model.gemnet_oc.topology import Topology
from jmp_model.heads.mlp import head_mlp
from jmp_model.heads.readout import edge_vectors_to_atoms, reduce_atoms


@dataclass(frozen=True)
class OwnRows:
    """Which atoms and which edges each head evaluates, if each structure is given one head.

    Attributes:
        atoms, edges: for each head (rows,) int64, ascending.
    """

    atoms: tuple[Tensor, ...]
    edges: tuple[Tensor, ...]

    @classmethod
    def of(cls, task_index: Tensor, num_tasks: int, inputs: ModelInputs, topology: Topology) -> OwnRows:
        """Sort atoms and edges by the head of their structure; one transfer to the host."""
        of_atom = task_index[inputs.batch]
        of_edge = of_atom[topology.main.target]
        counts = torch.stack([group_counts(of_atom, num_tasks), group_counts(of_edge, num_tasks)]).tolist()
        orders = torch.argsort(of_atom, stable=True), torch.argsort(of_edge, stable=True)
        return cls(*(torch.split(order, n) for order, n in zip(orders, counts, strict=True)))


class PretrainingHeads(nn.Module):
    """Energy = sum over atoms; force = sum of edge scalars times edge directions. Outputs are in normalised units."""

    def __init__(self, config: GemNetOCConfig, num_tasks: int) -> None:
        super().__init__()
        self.out_energy = nn.ModuleList(head_mlp(config.emb_size_atom, 1) for _ in range(num_tasks))
        if config.direct_forces:
            self.out_forces = nn.ModuleList(head_mlp(config.emb_size_edge, 1) for _ in range(num_tasks))

    def forward(
        self, output: BackboneOutput, inputs: ModelInputs, own: OwnRows | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Evaluate the heads.

        Args:
            output: of the backbone.
            inputs: its structures.
            own: the one head to evaluate for each structure; None for all heads.

        Returns:
            Energy (B, T) and, with a force branch, forces (N, 3, T); zeros where a head was not asked for.
        """
        atoms, edges = (None, None) if own is None else (own.atoms, own.edges)
        energy = reduce_atoms(_evaluate(self.out_energy, output.atom_features, atoms), inputs, "sum")
        if output.edge_features is None:
            return energy, None
        return energy, edge_vectors_to_atoms(_evaluate(self.out_forces, output.edge_features, edges), output)


def _evaluate(heads: nn.ModuleList, features: Tensor, own: Sequence[Tensor] | None) -> Tensor:
    """Values of all heads: (rows, T); of each head for its own rows only, if those are given."""
    if own is None:
        return torch.cat([head(features) for head in heads], dim=-1)
    columns = [
        spread(head(pick(features, rows)), rows, features.shape[0]) for head, rows in zip(heads, own, strict=True)
    ]
    return torch.cat(columns, dim=-1)
