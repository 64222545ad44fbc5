"""The pre-training heads: one energy and one direct force head per task, all evaluated for every structure."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jmp_model.gemnet_oc.backbone import BackboneOutput
from jmp_model.gemnet_oc.config import GemNetOCConfig
from jmp_model.gemnet_oc.graphs import ModelInputs
from jmp_model.heads.mlp import head_mlp
from jmp_model.heads.readout import edge_vectors_to_atoms, reduce_atoms


class PretrainingHeads(nn.Module):
    """Energy = sum over atoms; force = sum of edge scalars times edge directions. Outputs are in normalised units."""

    def __init__(self, config: GemNetOCConfig, num_tasks: int) -> None:
        super().__init__()
        self.out_energy = nn.ModuleList(head_mlp(config.emb_size_atom, 1) for _ in range(num_tasks))
        if config.direct_forces:
            self.out_forces = nn.ModuleList(head_mlp(config.emb_size_edge, 1) for _ in range(num_tasks))

    def forward(self, output: BackboneOutput, inputs: ModelInputs) -> tuple[Tensor, Tensor | None]:
        """Return energy (B, T) and, with a force branch, forces (N, 3, T)."""
        per_atom = torch.cat([head(output.atom_features) for head in self.out_energy], dim=-1)
        energy = reduce_atoms(per_atom, inputs, "sum")
        if output.edge_features is None:
            return energy, None
        per_edge = torch.cat([head(output.edge_features) for head in self.out_forces], dim=-1)
        return energy, edge_vectors_to_atoms(per_edge, output)
