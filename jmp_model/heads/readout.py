"""From per-atom and per-edge values to structures and vectors; and from an energy to its gradient forces."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from jmp_model.gemnet_oc.backbone import BackboneOutput
from jmp_model.gemnet_oc.graphs import ModelInputs
from jmp_model.gemnet_oc.ragged import sum_by_group

Reduction = Literal["sum", "mean", "max"]


def reduce_atoms(values: Tensor, inputs: ModelInputs, reduction: Reduction) -> Tensor:
    """Reduce per-atom values (N, ...) over each structure: (B, ...), in the precision of the positions."""
    values = values.to(inputs.positions.dtype)
    if reduction == "max":
        index = inputs.batch.view(-1, *[1] * (values.dim() - 1)).expand_as(values)
        out = values.new_full((inputs.num_structures, *values.shape[1:]), -torch.inf)
        return out.scatter_reduce(0, index, values, reduce="amax", include_self=False)
    total = sum_by_group(values, inputs.batch, inputs.num_structures)
    if reduction == "mean":
        return total / inputs.natoms.to(values.dtype).view(-1, *[1] * (values.dim() - 1))
    return total


def edge_vectors_to_atoms(values: Tensor, output: BackboneOutput) -> Tensor:
    """Sum per-edge values (E, T) times unit edge vectors at the targets: (N, 3, T)."""
    along = output.vectors[:, :, None] * values[:, None, :].to(output.vectors.dtype)
    return sum_by_group(along, output.topology.main.target, output.topology.num_atoms)


def gradient_forces(energy: Tensor, positions: Tensor, *, create_graph: bool) -> Tensor:
    """Forces −∂E/∂positions, of all structures at once.

    Args:
        energy: (B,) computed from `positions`.
        positions: (N, 3) that required gradients when `energy` was computed.
        create_graph: keep the graph, so that a loss on forces can be differentiated.

    Returns:
        (N, 3). Zero where the energy does not depend on positions, as for lone atoms.
    """
    if not energy.requires_grad:
        return torch.zeros_like(positions)
    (gradient,) = torch.autograd.grad(
        energy.sum(), positions, create_graph=create_graph, retain_graph=create_graph, allow_unused=True
    )
    return torch.zeros_like(positions) if gradient is None else -gradient
