"""The GemNet-OC backbone as JMP uses it: from atom embeddings and four graphs to per-atom and per-edge features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from jmp_model.gemnet_oc.bases import SHARED_BY_BLOCKS, Bases
from jmp_model.gemnet_oc.config import GemNetOCConfig
from jmp_model.gemnet_oc.fused import layers_are_plain, plain_layers
from jmp_model.gemnet_oc.graphs import ModelInputs
from jmp_model.gemnet_oc.interaction import InteractionBlock
from jmp_model.gemnet_oc.kernels import build_kernels, measure
from jmp_model.gemnet_oc.output import FinalEdgeFeatures, FinalFeatures, OutputBlock
from jmp_model.gemnet_oc.topology import Topology, build_topology


@dataclass(frozen=True)
class BackboneOutput:
    """What the heads read.

    Attributes:
        atom_features: (N, A).
        edge_features: (E, W) on symmetrised main edges; None without a force branch.
        vectors: (E, 3) unit vectors source → target.
        topology: its `main` has source and target of those edges.
    """

    atom_features: Tensor
    edge_features: Tensor | None
    vectors: Tensor
    topology: Topology


class GemNetOC(nn.Module):
    """GemNet-OC with all its interactions.

    Parameter names and their order are those of the released JMP checkpoints.

    Attributes:
        recompute: in training keep only what passes between blocks, and run each block again in the backward pass: a
            fraction of the memory for a third more work, and the same numbers.
        one_block: pad all atoms to the same number of edges, as a program compiled for any batch needs.
    """

    def __init__(self, config: GemNetOCConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        self.one_block = False
        self.bases = Bases(config)
        self.int_blocks = nn.ModuleList(InteractionBlock(config) for _ in range(config.num_blocks))
        self.out_blocks = nn.ModuleList(OutputBlock(config) for _ in range(config.num_blocks + 1))
        parts, depth = config.num_blocks + 1, config.num_global_out_layers
        self.out_mlp_E = FinalFeatures(config.emb_size_atom, parts, depth)
        if config.direct_forces:
            self.out_mlp_F = FinalEdgeFeatures(config.emb_size_edge, parts, depth)

    def forward(self, h: Tensor, inputs: ModelInputs, topology: Topology | None = None) -> BackboneOutput:
        """Compute features.

        Args:
            h: (N, A) atom embeddings.
            inputs: positions and graphs.
            topology: that of the inputs, if it is at hand already.
        """
        if topology is None:
            topology = self.topology(inputs)
        geometry = measure(topology, inputs.positions, inputs.cell, inputs.batch)
        kernels = build_kernels(self.bases, topology, geometry, collinear=self.config.collinear)
        m = self.bases.edge_emb(h, kernels.radial, topology.main.source, topology.main.target)
        atom_parts, edge_parts = [], []
        for index, out_block in enumerate(self.out_blocks):
            if index:
                h, m = self._run(self.int_blocks[index - 1], h, m, kernels, topology)
            atoms, edges = self._run(out_block, h, m, kernels.rad_output, topology)
            atom_parts.append(atoms)
            if edges is not None:
                edge_parts.append(edges)
        return BackboneOutput(
            atom_features=self.out_mlp_E(torch.cat(atom_parts, dim=-1)),
            edge_features=self.out_mlp_F(edge_parts) if edge_parts else None,
            vectors=geometry.main_vector,
            topology=topology,
        )

    def topology(self, inputs: ModelInputs) -> Topology:
        """Index structure of a batch, as `forward` reads it."""
        return build_topology(
            inputs.graphs,
            inputs.positions.shape[0],
            symmetrization=self.config.symmetrization,
            one_block=self.one_block,
        )

    def _run(self, block: Callable[..., Any], *args: Any) -> Any:
        if self.recompute and self.training and torch.is_grad_enabled():
            plain = layers_are_plain()

            def again(*args: Any) -> Any:
                with plain_layers(plain):
                    return block(*args)

            return checkpoint(again, *args, use_reentrant=False, preserve_rng_state=False)
        return block(*args)

    def scale_stages(self) -> list[list[str]]:
        """Scale factors in running order, grouped so that no factor of a group feeds another of the same group."""
        stages: list[list[str]] = []
        for index in range(self.config.num_blocks):
            block = f"int_blocks.{index}."
            stages.append([block + name for name in _FIRST])
            stages.append([block + name for name in _SECOND])
            stages.append([block + "quad_interaction.scale_sbf_sum"])
            stages.append([block + "atom_update.scale_sum"])
        stages.append([])
        output = ["scale_sum", "scale_rbf_F"] if self.config.direct_forces else ["scale_sum"]
        for index in range(self.config.num_blocks + 1):
            stages[4 * index] += [f"out_blocks.{index}.{name}" for name in output]
        return stages

    def shared_basis_divisors(self) -> dict[str, int]:
        """Parameters shared by several blocks → by how many: the original divides their gradients by that."""
        divisors = dict.fromkeys(SHARED_BY_BLOCKS, self.config.num_blocks)
        divisors["mlp_rbf_out"] = self.config.num_blocks + 1
        return {
            f"bases.{name}.{parameter}": count
            for name, count in divisors.items()
            for parameter, _ in self.bases.get_submodule(name).named_parameters()
        }


_FIRST = (
    "trip_interaction.scale_rbf",
    "quad_interaction.scale_rbf",
    "atom_edge_interaction.scale_rbf",
    "edge_atom_interaction.scale_rbf",
    "atom_interaction.scale_rbf_sum",
)
_SECOND = (
    "trip_interaction.scale_cbf_sum",
    "quad_interaction.scale_cbf",
    "atom_edge_interaction.scale_cbf_sum",
    "edge_atom_interaction.scale_cbf_sum",
)
