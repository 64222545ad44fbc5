"""One interaction block: five kinds of messages from the same input, then the update of edges and atoms.

Shapes: N atoms, E main edges, A/W sizes of atom and edge features; see `kernels` for the coefficient blocks.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from jmp_model.gemnet_oc.config import GemNetOCConfig
from jmp_model.gemnet_oc.kernels import Kernels, QuadrupletKernels
from jmp_model.gemnet_oc.layers import (
    INV_SQRT_2,
    BilinearWeight,
    Dense,
    dense_then_residuals,
    residual_stack,
    scaled_silu,
)
from jmp_model.gemnet_oc.ragged import exchange, pick, spread, sum_by_group
from jmp_model.gemnet_oc.scaling import ScaleFactor
from jmp_model.gemnet_oc.topology import QuadrupletTopology, Topology


class EdgeToEdge(nn.Module):
    """Triplet message b→a to c→a."""

    def __init__(self, config: GemNetOCConfig) -> None:
        super().__init__()
        edge, size_in, size_out = config.emb_size_edge, config.emb_size_trip_in, config.emb_size_trip_out
        self.dense_ba = Dense(edge, edge, activation=True)
        self.mlp_rbf = Dense(config.emb_size_rbf, edge)
        self.scale_rbf = ScaleFactor()
        self.mlp_cbf = BilinearWeight(config.emb_size_cbf, size_in, size_out)
        self.scale_cbf_sum = ScaleFactor()
        self.down_projection = Dense(edge, size_in, activation=True)
        self.up_projection_ca = Dense(size_out, edge, activation=True)
        self.up_projection_ac = Dense(size_out, edge, activation=True)

    def forward(self, m: Tensor, kernels: Kernels, topology: Topology) -> Tensor:
        """Map m (E, W) to the message on main edges (E, W)."""
        layout = topology.main.layout
        u = self.dense_ba(m)
        u = self.scale_rbf(u * self.mlp_rbf(kernels.rad_e2e), lambda: (u, None))
        u_down = self.down_projection(u)
        z = (kernels.e2e @ layout.pad(u_down)).view(layout.num_groups, layout.width, -1)
        y = self.scale_cbf_sum(self.mlp_cbf(layout.unpad(z)), lambda: (u_down, _e2e_counts(topology)))
        return both_ways(self.up_projection_ca(y), self.up_projection_ac(y), topology)


class Quadruplet(nn.Module):
    """Quadruplet message d→b→a to c→a."""

    def __init__(self, config: GemNetOCConfig) -> None:
        super().__init__()
        edge, size_in, size_out = config.emb_size_edge, config.emb_size_quad_in, config.emb_size_quad_out
        self.dense_db = Dense(edge, edge, activation=True)
        self.mlp_rbf = Dense(config.emb_size_rbf, edge)
        self.scale_rbf = ScaleFactor()
        self.mlp_cbf = Dense(config.emb_size_cbf, size_in)
        self.scale_cbf = ScaleFactor()
        self.mlp_sbf = BilinearWeight(config.emb_size_sbf, size_in, size_out)
        self.scale_sbf_sum = ScaleFactor()
        self.down_projection = Dense(edge, size_in, activation=True)
        self.up_projection_ca = Dense(size_out, edge, activation=True)
        self.up_projection_ac = Dense(size_out, edge, activation=True)

    def forward(self, m: Tensor, kernels: Kernels, topology: Topology) -> Tensor | None:
        """Map m (E, W) to the message on main edges (E, W); None if there is no qint edge at all."""
        quads, coefficients = topology.quads, kernels.quads
        if quads is None or coefficients is None:
            return None
        u = self._modulate(pick(m, quads.input_edges), pick(kernels.rad_qint, quads.input_edges))
        if self.scale_rbf.sums is not None:
            self._modulate(m, kernels.rad_qint, observed=True)
        u = quads.input_layout.pad(self.down_projection(u))[quads.source_row]
        incoming = u
        u = self._scale_incoming(u * self.mlp_cbf(coefficients.circular), incoming, quads)
        z = self._aggregate(u, coefficients, quads)
        y = self.scale_sbf_sum(
            spread(self.mlp_sbf(z), quads.output_edges, topology.main.num_edges),
            lambda: (u.flatten(0, 1), _quad_counts(quads)),
        )
        return both_ways(self.up_projection_ca(y), self.up_projection_ac(y), topology)

    def _modulate(self, m: Tensor, radial: Tensor, *, observed: bool = False) -> Tensor:
        """Edge features times radial ones; the scale is fitted on all edges, also those that no quadruplet uses."""
        u = self.dense_db(m)
        out: Tensor = self.scale_rbf(u * self.mlp_rbf(radial), (lambda: (u, None)) if observed else None)
        return out

    def _scale_incoming(self, u: Tensor, incoming: Tensor, quads: QuadrupletTopology) -> Tensor:
        if self.scale_cbf.sums is None:
            scaled: Tensor = self.scale_cbf(u)
            return scaled
        self.scale_cbf(u[quads.input_mask], lambda: (incoming[quads.input_mask], None))
        return u

    def _aggregate(self, u: Tensor, coefficients: QuadrupletKernels, quads: QuadrupletTopology) -> Tensor:
        """Sum over quadruplets: (Q, D_in, K) to (Eo, w·K)."""
        features = u.shape[2]
        sums = quads.slots.pad(coefficients.input_terms @ u)
        z = coefficients.output @ sums.view(quads.slots.num_groups, -1, features)
        z = quads.output_layout.unpad(z.view(quads.output_layout.num_groups, quads.output_layout.width, -1))
        edges, basis, slots = coefficients.closing.shape
        closing = spread(pick(u.flatten(0, 1), quads.closing_input), quads.closing_place, edges * slots)
        z = z - torch.bmm(coefficients.closing, closing.view(edges, slots, features)).view(edges, basis * features)
        if coefficients.rounding is not None:
            terms = coefficients.rounding
            single = terms.coefficient[:, :, None] * u.flatten(0, 1)[terms.input_place][:, None, :]
            z = z.index_add(0, terms.output_row, single.flatten(1))
        return z


class AtomToEdge(nn.Module):
    """Triplet message from atom b over an a2ee2a edge b→a to the main edge c→a."""

    def __init__(self, config: GemNetOCConfig) -> None:
        super().__init__()
        atom, edge = config.emb_size_atom, config.emb_size_edge
        size_in, size_out = config.emb_size_trip_in, config.emb_size_trip_out
        self.dense_ba = Dense(atom, atom, activation=True)
        self.mlp_rbf = Dense(config.emb_size_rbf, atom)
        self.scale_rbf = ScaleFactor()
        self.mlp_cbf = BilinearWeight(config.emb_size_cbf, size_in, size_out)
        self.scale_cbf_sum = ScaleFactor()
        self.down_projection = Dense(atom, size_in, activation=True)
        self.up_projection_ca = Dense(size_out, edge, activation=True)
        self.up_projection_ac = Dense(size_out, edge, activation=True)

    def forward(self, h: Tensor, kernels: Kernels, topology: Topology) -> Tensor:
        """Map h (N, A) to the message on main edges (E, W)."""
        layout = topology.main.layout
        u = self.dense_ba(h)[topology.a2ee2a.source]
        u = self.scale_rbf(u * self.mlp_rbf(kernels.rad_a2e), lambda: (u, None))
        u_down = self.down_projection(u)
        z = (kernels.a2e @ topology.a2ee2a.layout.pad(u_down)).view(layout.num_groups, layout.width, -1)
        y = self.scale_cbf_sum(self.mlp_cbf(layout.unpad(z)), lambda: (u_down, _a2e_counts(topology)))
        return both_ways(self.up_projection_ca(y), self.up_projection_ac(y), topology)


class EdgeToAtom(nn.Module):
    """Triplet message from the main edge b→a over an a2ee2a edge c→a to atom a."""

    def __init__(self, config: GemNetOCConfig) -> None:
        super().__init__()
        atom, edge = config.emb_size_atom, config.emb_size_edge
        size_in, size_out = config.emb_size_trip_in, config.emb_size_trip_out
        self.dense_ba = Dense(edge, edge, activation=True)
        self.mlp_rbf = Dense(config.emb_size_rbf, edge)
        self.scale_rbf = ScaleFactor()
        self.mlp_cbf = BilinearWeight(config.emb_size_cbf, size_in, size_out)
        self.scale_cbf_sum = ScaleFactor()
        self.down_projection = Dense(edge, size_in, activation=True)
        self.up_projection_ca = Dense(size_out, atom, activation=True)

    def forward(self, m: Tensor, kernels: Kernels, topology: Topology) -> Tensor:
        """Map m (E, W) to the message on atoms (N, A)."""
        u = self.dense_ba(m)
        u = self.scale_rbf(u * self.mlp_rbf(kernels.rad_e2a), lambda: (u, None))
        u_down = self.down_projection(u)
        z = kernels.e2a @ topology.main.layout.pad(u_down)
        y = self.scale_cbf_sum(self.mlp_cbf(z.flatten(1)), lambda: (u_down, _e2a_counts(topology)))
        out: Tensor = self.up_projection_ca(y)
        return out


class AtomToAtom(nn.Module):
    """Pair message between atoms."""

    def __init__(self, config: GemNetOCConfig) -> None:
        super().__init__()
        atom, size_in, size_out = config.emb_size_atom, config.emb_size_aint_in, config.emb_size_aint_out
        self.bilinear = Dense(config.emb_size_rbf * size_in, size_out)
        self.scale_rbf_sum = ScaleFactor()
        self.down_projection = Dense(atom, size_in, activation=True)
        self.up_projection = Dense(size_out, atom, activation=True)

    def forward(self, h: Tensor, kernels: Kernels, topology: Topology) -> Tensor:
        """Map h (N, A) to the message on atoms (N, A)."""
        u = self.down_projection(h)
        z = kernels.a2a @ topology.pairs.pad(u[topology.pair_source])
        y = self.scale_rbf_sum(self.bilinear(z.flatten(1)), lambda: (u[topology.a2a.source], None))
        out: Tensor = self.up_projection(y)
        return out


class AtomUpdate(nn.Module):
    """Atoms collect their main edges."""

    def __init__(self, config: GemNetOCConfig) -> None:
        super().__init__()
        self.dense_rbf = Dense(config.emb_size_rbf, config.emb_size_edge)
        self.scale_sum = ScaleFactor()
        self.layers = dense_then_residuals(config.emb_size_edge, config.emb_size_atom, config.num_atom)

    def forward(self, m: Tensor, radial: Tensor, topology: Topology) -> Tensor:
        """Map m (E, W) and radial features (E, r) to the update of atoms (N, A)."""
        y = collect_edges(m, self.dense_rbf(radial), topology)
        out: Tensor = self.layers(self.scale_sum(y, lambda: (m, None)))
        return out


class Concatenation(nn.Module):
    """Edges read both of their atoms."""

    def __init__(self, config: GemNetOCConfig) -> None:
        super().__init__()
        edge = config.emb_size_edge
        self.dense = Dense(2 * config.emb_size_atom + edge, edge, activation=True)

    def forward(self, h: Tensor, m: Tensor, topology: Topology) -> Tensor:
        """Map h (N, A), m (E, W) to (E, W).

        The parts of the weight that see an atom are applied per atom instead of per edge.
        """
        source, target, edge = torch.split(self.dense.linear.weight, [h.shape[1], h.shape[1], m.shape[1]], dim=1)
        y = nn.functional.linear(m, edge)
        y = y + nn.functional.linear(h, source)[topology.main.source]
        y = y + nn.functional.linear(h, target)[topology.main.target]
        return scaled_silu(y)


class InteractionBlock(nn.Module):
    """One round of message passing."""

    def __init__(self, config: GemNetOCConfig) -> None:
        super().__init__()
        edge, atom = config.emb_size_edge, config.emb_size_atom
        self.dense_ca = Dense(edge, edge, activation=True)
        self.trip_interaction = EdgeToEdge(config)
        self.quad_interaction = Quadruplet(config)
        self.atom_edge_interaction = AtomToEdge(config)
        self.edge_atom_interaction = EdgeToAtom(config)
        self.atom_interaction = AtomToAtom(config)
        self.layers_before_skip = residual_stack(edge, config.num_before_skip)
        self.layers_after_skip = residual_stack(edge, config.num_after_skip)
        self.atom_emb_layers = residual_stack(atom, config.num_atom_emb_layers)
        self.atom_update = AtomUpdate(config)
        self.concat_layer = Concatenation(config)
        self.residual_m = residual_stack(edge, config.num_concat)

    def forward(self, h: Tensor, m: Tensor, kernels: Kernels, topology: Topology) -> tuple[Tensor, Tensor]:
        """Map atom (N, A) and edge (E, W) features to their updates."""
        x = self.dense_ca(m) + self.trip_interaction(m, kernels, topology)
        quad = self.quad_interaction(m, kernels, topology)
        if quad is not None:
            x = x + quad
        x = (x + self.atom_edge_interaction(h, kernels, topology)) * 0.5
        h = h + self.edge_atom_interaction(m, kernels, topology) + self.atom_interaction(h, kernels, topology)
        h = h * (1 / math.sqrt(3))

        m = (m + self.layers_before_skip(x)) * INV_SQRT_2
        m = self.layers_after_skip(m)
        h = self.atom_emb_layers(h)
        h = (h + self.atom_update(m, kernels.rad_atom_update, topology)) * INV_SQRT_2
        m = (m + self.residual_m(self.concat_layer(h, m, topology))) * INV_SQRT_2
        return h, m


def collect_edges(m: Tensor, weight: Tensor, topology: Topology) -> Tensor:
    """Sum m ∘ weight, both (E, W), over the edges of each target: (N, W)."""
    return sum_by_group(m * weight, topology.main.target, topology.num_atoms)


def both_ways(forward: Tensor, backward: Tensor, topology: Topology) -> Tensor:
    """Combine what an edge says about itself with what its reverse says about it."""
    return (forward + exchange(backward, topology.main_swap)) * INV_SQRT_2


def _e2e_counts(topology: Topology) -> Tensor:
    """In how many triplets each main edge is the input."""
    degree = topology.main.layout.mask().sum(1)
    return degree[topology.main.target] - 1


def _mixed_pairs(topology: Topology) -> Tensor:
    valid = topology.main.layout.mask()[:, :, None] & topology.a2ee2a.layout.mask()[:, None, :]
    return valid & ~topology.same_image


def _a2e_counts(topology: Topology) -> Tensor:
    return topology.a2ee2a.layout.unpad(_mixed_pairs(topology).sum(1))


def _e2a_counts(topology: Topology) -> Tensor:
    return topology.main.layout.unpad(_mixed_pairs(topology).sum(2))


def _quad_counts(quads: QuadrupletTopology) -> Tensor:
    """In how many quadruplets each place (qint edge, input slot) takes part: (Q·D_in,)."""
    per_qint = sum_by_group(
        quads.output_mask.reshape(-1).long(), quads.qint_of_output.reshape(-1), quads.qint.num_edges
    )
    counts = (per_qint[:, None] * quads.input_mask).view(-1)
    return counts.index_add(0, quads.closing_input, torch.full_like(quads.closing_input, -1))
