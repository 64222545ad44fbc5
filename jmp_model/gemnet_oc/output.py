"""Output blocks: what each round contributes to the features that the heads read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from jmp_model.gemnet_oc import fused
from jmp_model.gemnet_oc.config import GemNetOCConfig
from jmp_model.gemnet_oc.fused import INV_SQRT_2
from jmp_model.gemnet_oc.interaction import collect_edges
from jmp_model.gemnet_oc.layers import Dense, ResidualStack, dense_then_residuals, residual_stack, scaled_silu
from jmp_model.gemnet_oc.scaling import ScaleFactor
from jmp_model.gemnet_oc.topology import Topology


@dataclass(frozen=True)
class EdgeContribution:
    """Per-edge features of one round, as a product that is not carried out yet.

    Attributes:
        features: (E, W).
        radial: (E, r).
        weight: (W, r).
    """

    features: Tensor
    radial: Tensor
    weight: Tensor

    def product(self) -> Tensor:
        """(E, W)."""
        return self.features * nn.functional.linear(self.radial, self.weight)


class OutputBlock(nn.Module):
    """Per-atom features for energies and per-edge features for forces after one round."""

    def __init__(self, config: GemNetOCConfig) -> None:
        super().__init__()
        self.dense_rbf = Dense(config.emb_size_rbf, config.emb_size_edge)
        self.scale_sum = ScaleFactor()
        self.layers = dense_then_residuals(config.emb_size_edge, config.emb_size_atom, config.num_atom)
        self.edge_dropout = config.edge_dropout
        self.seq_energy2 = residual_stack(config.emb_size_atom, config.num_output_afteratom)
        if config.direct_forces:
            self.scale_rbf_F = ScaleFactor()
            self.seq_forces = residual_stack(config.emb_size_edge, config.num_atom)
            self.dense_rbf_F = Dense(config.emb_size_rbf, config.emb_size_edge)
        self.direct_forces = config.direct_forces

    def forward(
        self, h: Tensor, m: Tensor, radial: Tensor, topology: Topology
    ) -> tuple[Tensor, EdgeContribution | None]:
        """Map h (N, A), m (E, W) and radial features (E, r) to (N, A) and, with a force branch, (E, W)."""
        edges = self._force_features(m, radial) if self.direct_forces else None
        return self._energy_features(h, m, radial, topology), edges

    def _energy_features(self, h: Tensor, m: Tensor, radial: Tensor, topology: Topology) -> Tensor:
        y = collect_edges(m, radial, self.dense_rbf, topology)
        if self.training and self.edge_dropout > 0:
            y = y / (1 - self.edge_dropout)
        if self.scale_sum.observing:
            self.scale_sum.observe(y, m)
        y = (self.layers(self.scale_sum(y)) + h) * INV_SQRT_2
        out: Tensor = self.seq_energy2(y)
        return out

    def _force_features(self, m: Tensor, radial: Tensor) -> EdgeContribution:
        x = self.seq_forces(m)
        if self.scale_rbf_F.observing:
            self.scale_rbf_F.observe(x * self.dense_rbf_F(radial), x)
        return EdgeContribution(x, radial, self.scale_rbf_F(self.dense_rbf_F.weight))


class FinalFeatures(nn.Module):
    """Joins the per-atom contributions of all output blocks."""

    def __init__(self, units: int, num_parts: int, depth: int) -> None:
        super().__init__()
        first = Dense(units * num_parts, units, activation=True)
        self.out_mlp = ResidualStack(first, *dense_then_residuals(units, units, depth))

    def forward(self, x: Tensor) -> Tensor:
        """Map (rows, parts·units) to (rows, units)."""
        out: Tensor = self.out_mlp(x)
        return out


class FinalEdgeFeatures(nn.Module):
    """Joins the per-edge contributions of all output blocks, without laying them side by side."""

    def __init__(self, units: int, num_parts: int, depth: int) -> None:
        super().__init__()
        self.out_mlp = FinalFeatures(units, num_parts, depth).out_mlp

    def forward(self, parts: Sequence[EdgeContribution]) -> Tensor:
        """Map one contribution per output block to (E, W)."""
        weights = self.first_weight().chunk(len(parts), dim=1)
        total = None
        for part, weight in zip(parts, weights, strict=True):
            z = fused.modulated_projection(part.features, part.radial, part.weight, weight)
            total = z if total is None else total + z
        if total is None:
            raise ValueError("there is no contribution to join")
        x: Tensor = self.out_mlp[1:](scaled_silu(total))
        return x

    def first_weight(self) -> Tensor:
        """(W, parts·W) of the layer that joins."""
        dense = self.out_mlp[0]
        assert isinstance(dense, Dense)
        return dense.weight
