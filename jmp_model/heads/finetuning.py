"""Heads that fine-tuning puts on a pre-trained backbone. Each maps (backbone output, inputs) to one tensor."""

from __future__ import annotations

import numpy as np
import torch
from ase.data import atomic_masses
from torch import Tensor, nn

from jmp_model.gemnet_oc.backbone import BackboneOutput
from jmp_model.gemnet_oc.config import GemNetOCConfig
from jmp_model.gemnet_oc.graphs import ModelInputs
from jmp_model.gemnet_oc.ragged import sum_by_group
from jmp_model.heads.mlp import head_mlp
from jmp_model.heads.readout import Reduction, edge_vectors_to_atoms, reduce_atoms


class GraphScalarHead(nn.Module):
    """One number per structure: (B,)."""

    def __init__(self, config: GemNetOCConfig, *, reduction: Reduction = "sum", num_layers: int = 5) -> None:
        super().__init__()
        self.reduction: Reduction = reduction
        self.out_mlp = head_mlp(config.emb_size_atom, 1, num_layers=num_layers)

    def forward(self, output: BackboneOutput, inputs: ModelInputs) -> Tensor:
        """Reduce a scalar per atom."""
        return reduce_atoms(self.out_mlp(output.atom_features).squeeze(-1), inputs, self.reduction)


class EnergyHead(nn.Module):
    """Energy of the molecular-dynamics tasks: a bias-free sum over atoms, (B,)."""

    def __init__(self, config: GemNetOCConfig, *, num_layers: int = 5) -> None:
        super().__init__()
        self.out_mlp = head_mlp(config.emb_size_atom, 1, num_layers=num_layers, bias=False)

    def forward(self, output: BackboneOutput, inputs: ModelInputs) -> Tensor:
        """Sum a scalar per atom."""
        return reduce_atoms(self.out_mlp(output.atom_features).squeeze(-1), inputs, "sum")


class GraphClassificationHead(nn.Module):
    """Logits per structure: (B,) for two classes, (B, classes) for more."""

    def __init__(
        self,
        config: GemNetOCConfig,
        *,
        num_classes: int = 2,
        reduction: Reduction = "sum",
        dropout: float = 0.0,
        num_layers: int = 5,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"a classification head needs at least 2 classes, got {num_classes}")
        self.reduction: Reduction = reduction
        self.dropout = nn.Dropout(dropout)
        binary = num_classes == 2
        self.out_mlp = head_mlp(
            config.emb_size_atom, 1 if binary else num_classes, num_layers=num_layers, last_bias=not binary
        )

    def forward(self, output: BackboneOutput, inputs: ModelInputs) -> Tensor:
        """Reduce logits per atom."""
        logits = reduce_atoms(self.out_mlp(self.dropout(output.atom_features)), inputs, self.reduction)
        return logits.squeeze(-1) if logits.shape[-1] == 1 else logits


class NodeVectorHead(nn.Module):
    """One vector per atom, (N, 3), such as a direct force; needs a backbone with its force branch."""

    def __init__(self, config: GemNetOCConfig, *, num_layers: int = 5) -> None:
        super().__init__()
        if not config.direct_forces:
            raise ValueError("a vector head reads edge features: the backbone needs direct_forces=True")
        self.out_mlp = head_mlp(config.emb_size_edge, 1, num_layers=num_layers)

    def forward(self, output: BackboneOutput, inputs: ModelInputs) -> Tensor:
        """Sum scalars times directions over the edges of each atom."""
        if output.edge_features is None:
            raise ValueError("the backbone gave no edge features: it needs direct_forces=True")
        return edge_vectors_to_atoms(self.out_mlp(output.edge_features), output).squeeze(-1)


class SpatialExtentHead(nn.Module):
    """Electronic spatial extent ⟨R²⟩ of QM9: Σ a_n·‖r_n − r_com‖² with learned a_n, (B,).

    Its perceptron has one hidden layer more than the others and no biases.
    """

    masses: Tensor

    def __init__(self, config: GemNetOCConfig, *, num_hidden: int = 5) -> None:
        super().__init__()
        self.scalar_mlp = head_mlp(config.emb_size_atom, 1, num_layers=num_hidden + 1, bias=False)
        masses = np.pad(atomic_masses, (0, 121))[: config.num_elements + 1]
        self.register_buffer("masses", torch.as_tensor(masses, dtype=torch.get_default_dtype()), persistent=False)

    def forward(self, output: BackboneOutput, inputs: ModelInputs) -> Tensor:
        """Weigh squared distances to the centre of mass."""
        mass = self.masses[inputs.atomic_numbers].to(inputs.positions.dtype)[:, None]
        total = sum_by_group(mass, inputs.batch, inputs.num_structures)
        centre = sum_by_group(mass * inputs.positions, inputs.batch, inputs.num_structures) / total
        square = ((inputs.positions - centre[inputs.batch]) ** 2).sum(-1)
        return reduce_atoms(self.scalar_mlp(output.atom_features).squeeze(-1) * square, inputs, "sum")
