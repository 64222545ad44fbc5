"""The pre-training heads: one energy and one direct force head per task."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jmp_model.gemnet_oc.backbone import BackboneOutput
from jmp_model.gemnet_oc.config import GemNetOCConfig
from jmp_model.gemnet_oc.graphs import ModelInputs
from jmp_model.gemnet_oc.ragged import pick, spread
from jmp_model.heads.mlp import head_mlp
from jmp_model.heads.readout import edge_vectors_to_atoms, reduce_atoms


class PretrainingHeads(nn.Module):
    """Energy = sum over atoms; force = sum of edge scalars times edge directions. Outputs are in normalised units."""

    def __init__(self, config: GemNetOCConfig, num_tasks: int) -> None:
        super().__init__()
        self.out_energy = nn.ModuleList(head_mlp(config.emb_size_atom, 1) for _ in range(num_tasks))
        if config.direct_forces:
            self.out_forces = nn.ModuleList(head_mlp(config.emb_size_edge, 1) for _ in range(num_tasks))

    def forward(
        self, output: BackboneOutput, inputs: ModelInputs, task_index: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Evaluate the heads.

        Args:
            output: of the backbone.
            inputs: its structures.
            task_index: (B,) int64, the one head to evaluate for each structure; None for all heads.

        Returns:
            Energy (B, T) and, with a force branch, forces (N, 3, T); zeros where a head was not asked for.
        """
        tasks = None if task_index is None else task_index[inputs.batch]
        energy = reduce_atoms(_evaluate(self.out_energy, output.atom_features, tasks), inputs, "sum")
        if output.edge_features is None:
            return energy, None
        if tasks is not None:
            tasks = tasks[output.topology.main.target]
        return energy, edge_vectors_to_atoms(_evaluate(self.out_forces, output.edge_features, tasks), output)


def _evaluate(heads: nn.ModuleList, features: Tensor, tasks: Tensor | None) -> Tensor:
    """Values of all heads: (rows, T); of only one head for each row, if tasks (rows,) are given."""
    if tasks is None:
        return torch.cat([head(features) for head in heads], dim=-1)
    columns = []
    for index, head in enumerate(heads):
        rows = torch.nonzero(tasks == index).view(-1)
        columns.append(spread(head(pick(features, rows)), rows, features.shape[0]))
    return torch.cat(columns, dim=-1)
