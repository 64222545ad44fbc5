"""Basis values of a batch and their shared projections, evaluated once per forward pass and used by all blocks.

Radial functions are gaussians of d/12 Å times a polynomial envelope. A circular or spherical projection holds a weight
of stored shape (R, S, I) that the original reads back as (R, I, S): a reinterpretation, not a transpose, kept here
because the released weights were trained with it.

Shapes: R radial functions, S angular functions, I projected size, r/q/w the sizes emb_size_rbf/cbf/sbf.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jmp_model.gemnet_oc import gathering
from jmp_model.gemnet_oc.config import GemNetOCConfig
from jmp_model.gemnet_oc.initializers import he_orthogonal_
from jmp_model.gemnet_oc.layers import Dense

_LOWEST_EXPONENT = -60.0
"""Far from their centres gaussians end in denormal numbers, which make a processor many times slower; e⁻⁶⁰ is nothing
beside 1 in double precision too."""


def polynomial_envelope(x: Tensor, exponent: int) -> Tensor:
    """Smooth cutoff: 1 at x = 0, and 0 with two vanishing derivatives from x = 1 on."""
    p = exponent
    a, b, c = -(p + 1) * (p + 2) / 2, p * (p + 2), -p * (p + 1) / 2
    value = 1 + x**p * (a + x * (b + x * c))
    return torch.where(x < 1, value, torch.zeros_like(x))


class GaussianFunctions(nn.Module):
    """Fixed gaussians with centres k/(R − 1) and a standard deviation equal to the spacing.

    Centres and exponents are buffers because the released checkpoints carry them.
    """

    offset: Tensor
    temps: Tensor

    def __init__(self, num_radial: int) -> None:
        super().__init__()
        self.register_buffer("offset", torch.linspace(0, 1, num_radial))
        self.register_buffer("temps", torch.full((num_radial,), 0.5 * (num_radial - 1) ** 2))

    def forward(self, x: Tensor) -> Tensor:
        """Map reduced distances (edges,) to (edges, R)."""
        exponent = -self.temps.abs() * (x[:, None] - self.offset) ** 2
        return torch.exp(exponent.clamp_min(_LOWEST_EXPONENT))


class RadialBasis(nn.Module):
    """Gaussians times envelope, of distances in Å."""

    def __init__(self, num_radial: int, *, cutoff: float, envelope_exponent: int) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.envelope_exponent = envelope_exponent
        self.rbf = GaussianFunctions(num_radial)

    def forward(self, distance: Tensor) -> Tensor:
        """Map (edges,) Å to (edges, R)."""
        x = distance / self.cutoff
        values: Tensor = self.rbf(x)
        return values * polynomial_envelope(x, self.envelope_exponent)[:, None]


class BareLinear(nn.Module):
    """A projection stored as a bare `weight` (out, in), as the atom-atom radial one is in the released checkpoints."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(he_orthogonal_(torch.empty(out_features, in_features)))

    def forward(self, x: Tensor) -> Tensor:
        """Map (rows, in) to (rows, out)."""
        return nn.functional.linear(x, self.weight)


class BasisProjection(nn.Module):
    """Projection of radial × angular functions; returns the radial half, to be contracted with angular values later."""

    def __init__(self, num_radial: int, num_angular: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(he_orthogonal_(torch.empty(num_radial, num_angular, out_features)))

    def effective_weight(self) -> Tensor:
        """(R, I, S) view of the stored (R, S, I) numbers."""
        radial, angular, out = self.weight.shape
        return self.weight.view(radial, out, angular)

    def forward(self, radial: Tensor) -> Tensor:
        """Map radial values (edges, R) to (edges, I, S)."""
        num_radial, angular, out = self.weight.shape
        return (radial @ self.weight.view(num_radial, out * angular)).view(-1, out, angular)

    def split_outer(self, radial: Tensor, num_outer: int) -> Tensor:
        """Same numbers as `forward` with S = outer·inner, arranged for contraction over the outer index.

        Returns:
            (edges, outer, I·inner).
        """
        num_radial, angular, out = self.weight.shape
        inner = angular // num_outer
        weight = self.weight.view(num_radial, out, num_outer, inner).transpose(1, 2).reshape(num_radial, -1)
        return (radial @ weight).view(-1, num_outer, out * inner)


class EdgeEmbedding(nn.Module):
    """Initial edge features from both atoms and the distance."""

    def __init__(self, atom_features: int, edge_features: int, out_features: int) -> None:
        super().__init__()
        self.dense = Dense(2 * atom_features + edge_features, out_features, activation=True)

    def forward(self, h: Tensor, edge: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """Map h (N, A) and edge features (E, ·) to (E, out)."""
        return gathering.edge_update(edge, h, self.dense.weight, source, target)


class Bases(nn.Module):
    """All basis functions and shared projections, with the released checkpoints' names and order."""

    def __init__(self, config: GemNetOCConfig) -> None:
        super().__init__()
        radial, angular = config.num_radial, config.num_spherical
        r, q, w = config.emb_size_rbf, config.emb_size_cbf, config.emb_size_sbf
        self.num_spherical = angular
        self.radial_basis = RadialBasis(
            radial, cutoff=config.absolute_rbf_cutoff, envelope_exponent=config.envelope_exponent
        )
        self.mlp_rbf_qint = Dense(radial, r)
        self.mlp_cbf_qint = BasisProjection(radial, angular, q)
        self.mlp_sbf_qint = BasisProjection(radial, angular**2, w)
        self.mlp_rbf_aeint = Dense(radial, r)
        self.mlp_cbf_aeint = BasisProjection(radial, angular, q)
        self.mlp_rbf_eaint = Dense(radial, r)
        self.mlp_cbf_eaint = BasisProjection(radial, angular, q)
        self.mlp_rbf_aint = BareLinear(radial, r)
        self.mlp_rbf_tint = Dense(radial, r)
        self.mlp_cbf_tint = BasisProjection(radial, angular, q)
        self.mlp_rbf_h = Dense(radial, r)
        self.mlp_rbf_out = Dense(radial, r)
        self.edge_emb = EdgeEmbedding(config.emb_size_atom, radial, config.emb_size_edge)


SHARED_BY_BLOCKS = (
    "mlp_rbf_tint", "mlp_cbf_tint", "mlp_rbf_h", "mlp_rbf_qint", "mlp_cbf_qint", "mlp_sbf_qint", "mlp_rbf_aeint",
    "mlp_cbf_aeint", "mlp_rbf_eaint", "mlp_cbf_eaint", "mlp_rbf_aint",
)  # fmt: skip
"""Projections that every interaction block uses; `mlp_rbf_out` is used by every output block."""
