"""Output blocks: what each round contributes to the features that the heads read."""

from __future__ import annotations

from torch import Tensor, nn

from jmp_model.gemnet_oc.config import GemNetOCConfig
from jmp_model.gemnet_oc.interaction import collect_edges
from jmp_model.gemnet_oc.layers import INV_SQRT_2, Dense, dense_then_residuals, residual_stack
from jmp_model.gemnet_oc.scaling import ScaleFactor
from jmp_model.gemnet_oc.topology import Topology


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

    def forward(self, h: Tensor, m: Tensor, radial: Tensor, topology: Topology) -> tuple[Tensor, Tensor | None]:
        """Map h (N, A), m (E, W) and radial features (E, r) to (N, A) and, with a force branch, (E, W)."""
        edges = self._force_features(m, radial) if self.direct_forces else None
        return self._energy_features(h, m, radial, topology), edges

    def _energy_features(self, h: Tensor, m: Tensor, radial: Tensor, topology: Topology) -> Tensor:
        y = collect_edges(m, self.dense_rbf(radial), topology)
        if self.training and self.edge_dropout > 0:
            y = y / (1 - self.edge_dropout)
        y = self.scale_sum(y, lambda: (m, None))
        y = (self.layers(y) + h) * INV_SQRT_2
        out: Tensor = self.seq_energy2(y)
        return out

    def _force_features(self, m: Tensor, radial: Tensor) -> Tensor:
        x = self.seq_forces(m)
        out: Tensor = self.scale_rbf_F(x * self.dense_rbf_F(radial), lambda: (x, None))
        return out


class FinalFeatures(nn.Module):
    """Joins the contributions of all output blocks."""

    def __init__(self, units: int, num_parts: int, depth: int) -> None:
        super().__init__()
        first = Dense(units * num_parts, units, activation=True)
        self.out_mlp = nn.Sequential(first, *dense_then_residuals(units, units, depth))

    def forward(self, x: Tensor) -> Tensor:
        """Map (rows, parts·units) to (rows, units)."""
        out: Tensor = self.out_mlp(x)
        return out
