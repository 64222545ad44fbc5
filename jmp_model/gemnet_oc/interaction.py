"""One interaction block: five kinds of messages from the same input, then the update of edges and atoms.

Messages to edges come as narrow features with the weights that widen them, so that the block can add them up without
ever holding them side by side.

Shapes: N atoms, E main edges, A/W sizes of atom and edge features; see `kernels` for the coefficient blocks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from jmp_model.gemnet_oc import fused, gathering
from jmp_model.gemnet_oc.config import GemNetOCConfig
from jmp_model.gemnet_oc.fused import INV_SQRT_2
from jmp_model.gemnet_oc.kernels import Kernels, QuadrupletKernels
from jmp_model.gemnet_oc.layers import BilinearWeight, Dense, dense_then_residuals, residual_stack, scaled_silu
from jmp_model.gemnet_oc.ragged import BlockedLayout, exchange, group_counts, pick, spread, sum_by_group
from jmp_model.gemnet_oc.scaling import ScaleFactor
from jmp_model.gemnet_oc.topology import QuadrupletTopology, Topology

EdgeMessages = list[tuple[Tensor, Tensor, Tensor | None]]
"""Narrow features, the weight (W, narrow) that widens them, and the edges that they belong to (None: all)."""


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

    def forward(self, m: Tensor, kernels: Kernels, topology: Topology) -> EdgeMessages:
        """Map m (E, W) to messages on main edges."""
        u = _start(m, kernels.rad_e2e, self.dense_ba, self.mlp_rbf, self.scale_rbf, self.down_projection)
        blocks = topology.main_blocks
        y = blocks.unpad(gathering.aggregate(kernels.e2e, blocks.pad(u), self.mlp_cbf.weight))
        if self.scale_cbf_sum.observing:
            self.scale_cbf_sum.observe(y, u, _e2e_counts(topology))
        y = self.scale_cbf_sum(y)
        return [
            (y, self.up_projection_ca.weight, None),
            (exchange(y, topology.main_swap), self.up_projection_ac.weight, None),
        ]


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

    def forward(self, m: Tensor, kernels: Kernels, topology: Topology) -> EdgeMessages:
        """Map m (E, W) to messages on the main edges that have quadruplets; none without a qint edge."""
        quads, coefficients = topology.quads, kernels.quads
        if quads is None or coefficients is None:
            return []
        if self.scale_rbf.observing:
            # The original fits this scale on all edges, also on those that are part of no quadruplet.
            _observe_modulation(m, kernels.rad_qint, self.dense_db, self.mlp_rbf, self.scale_rbf)
        x, radial = pick(m, quads.input_edges), pick(kernels.rad_qint, quads.input_edges)
        weight = self.scale_rbf(self.mlp_rbf.weight)
        u = fused.dense_modulated_projection(x, self.dense_db.weight, radial, weight, self.down_projection.weight)
        u = quads.input_layout.pad(scaled_silu(u)).index_select(0, quads.source_row)
        incoming = u
        u = u * self.mlp_cbf(coefficients.circular)
        if self.scale_cbf.observing:
            self.scale_cbf.observe(u[quads.input_mask], incoming[quads.input_mask])
        u = self.scale_cbf(u)
        y = self._aggregate(u, coefficients, quads)
        if self.scale_sbf_sum.observing:
            on_all_edges = spread(y, quads.output_edges, topology.main.num_edges)
            self.scale_sbf_sum.observe(on_all_edges, u.flatten(0, 1), _quad_counts(quads))
        y = self.scale_sbf_sum(y)
        return [
            (y, self.up_projection_ca.weight, quads.output_edges),
            (y, self.up_projection_ac.weight, topology.main_swap[quads.output_edges]),
        ]

    def _aggregate(self, u: Tensor, coefficients: QuadrupletKernels, quads: QuadrupletTopology) -> Tensor:
        """Sum over quadruplets: (Q, D_in, K) to (Eo, out)."""
        flat = u.flatten(0, 1)
        sums = quads.slots.pad(coefficients.input_terms @ u).view(-1, u.shape[-1])
        places, _, slots = coefficients.closing.shape
        closing = spread(pick(flat, quads.closing_input), quads.closing_place, places * slots)
        extra = (coefficients.closing, closing.view(places, slots, -1))
        y = quads.output_layout.unpad(gathering.aggregate(coefficients.output, sums, self.mlp_sbf.weight, extra))
        if coefficients.single is not None:
            terms = coefficients.single
            single = terms.coefficient[:, :, None] * flat[terms.input_place][:, None, :]
            y = y.index_add(0, terms.output_row, self.mlp_sbf(single.flatten(1)))
        return y


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

    def forward(self, h: Tensor, kernels: Kernels, topology: Topology) -> EdgeMessages:
        """Map h (N, A) to messages on main edges."""
        u = self.dense_ba(h).index_select(0, topology.a2ee2a.source)
        if self.scale_rbf.observing:
            self.scale_rbf.observe(u * self.mlp_rbf(kernels.rad_a2e), u)
        weight = self.scale_rbf(self.mlp_rbf.weight)
        u = scaled_silu(fused.modulated_projection(u, kernels.rad_a2e, weight, self.down_projection.weight))
        y = gathering.aggregate(kernels.a2e, topology.a2ee2a_blocks.pad(u), self.mlp_cbf.weight)
        y = topology.main_blocks.unpad(y)
        if self.scale_cbf_sum.observing:
            self.scale_cbf_sum.observe(y, u, _a2e_counts(topology))
        y = self.scale_cbf_sum(y)
        return [
            (y, self.up_projection_ca.weight, None),
            (exchange(y, topology.main_swap), self.up_projection_ac.weight, None),
        ]


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
        u = _start(m, kernels.rad_e2a, self.dense_ba, self.mlp_rbf, self.scale_rbf, self.down_projection)
        y = self.mlp_cbf(_sum_at_atoms(kernels.e2a, topology.main_blocks, u)).index_select(0, topology.atom_row)
        if self.scale_cbf_sum.observing:
            self.scale_cbf_sum.observe(y, u, _e2a_counts(topology))
        out: Tensor = self.up_projection_ca(self.scale_cbf_sum(y))
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
        z = _sum_at_atoms(kernels.a2a, topology.pair_blocks, u.index_select(0, topology.pair_source))
        y = self.bilinear(z).index_select(0, topology.atom_row)
        if self.scale_rbf_sum.observing:
            self.scale_rbf_sum.observe(y, u[topology.a2a.source])
        out: Tensor = self.up_projection(self.scale_rbf_sum(y))
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
        y = collect_edges(m, radial, self.dense_rbf, topology)
        if self.scale_sum.observing:
            self.scale_sum.observe(y, m)
        out: Tensor = self.layers(self.scale_sum(y))
        return out


class Concatenation(nn.Module):
    """Edges read both of their atoms."""

    def __init__(self, config: GemNetOCConfig) -> None:
        super().__init__()
        edge = config.emb_size_edge
        self.dense = Dense(2 * config.emb_size_atom + edge, edge, activation=True)

    def forward(self, h: Tensor, m: Tensor, topology: Topology) -> Tensor:
        """Map h (N, A), m (E, W) to (E, W)."""
        return gathering.edge_update(m, h, self.dense.weight, topology.main.source, topology.main.target)


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
        messages = self.trip_interaction(m, kernels, topology)
        messages += self.quad_interaction(m, kernels, topology)
        messages += self.atom_edge_interaction(h, kernels, topology)
        h = h + self.edge_atom_interaction(m, kernels, topology) + self.atom_interaction(h, kernels, topology)
        h = h * (1 / math.sqrt(3))
        x = fused.dense_silu(m, self.dense_ca.weight, gain=0.5)
        x = fused.add_messages(x, messages, gain=0.5 * INV_SQRT_2)

        m = (m + self.layers_before_skip(x)) * INV_SQRT_2
        m = self.layers_after_skip(m)
        h = self.atom_emb_layers(h)
        h = (h + self.atom_update(m, kernels.rad_atom_update, topology)) * INV_SQRT_2
        m = (m + self.residual_m(self.concat_layer(h, m, topology))) * INV_SQRT_2
        return h, m


def collect_edges(m: Tensor, radial: Tensor, dense_rbf: Dense, topology: Topology) -> Tensor:
    """Sum m ∘ dense_rbf(radial), both (E, W), over the edges of each target: (N, W)."""
    return gathering.collect_edges(m, radial, dense_rbf.weight, topology.main.target, topology.num_atoms)


def expand_messages(messages: EdgeMessages, num_edges: int, width: int) -> Tensor:
    """The sum of messages as the block sees it, (E, W), up to the factor that all messages share."""
    base = messages[0][0].new_zeros(num_edges, width) if messages else torch.zeros(num_edges, width)
    return fused.add_messages(base, messages, gain=INV_SQRT_2)


def _start(
    x: Tensor, radial: Tensor, dense: Dense, mlp_rbf: Dense, scale_rbf: ScaleFactor, down_projection: Dense
) -> Tensor:
    """Dense layer, product with radial features, projection down: (rows, units) to (rows, narrow)."""
    if scale_rbf.observing:
        _observe_modulation(x, radial, dense, mlp_rbf, scale_rbf)
    weight = scale_rbf(mlp_rbf.weight)
    return scaled_silu(fused.dense_modulated_projection(x, dense.weight, radial, weight, down_projection.weight))


def _observe_modulation(x: Tensor, radial: Tensor, dense: Dense, mlp_rbf: Dense, scale_rbf: ScaleFactor) -> None:
    u = dense(x)
    scale_rbf.observe(u * mlp_rbf(radial), u)


def _sum_at_atoms(kernels: Sequence[Tensor], layout: BlockedLayout, x: Tensor) -> Tensor:
    """Coefficients (n, basis, D) of each block times features (rows, K): (N, basis·K), in the order of rows."""
    blocks = layout.blocks(layout.pad(x))
    return torch.cat([(kernel @ block).flatten(1) for kernel, block in zip(kernels, blocks, strict=True)])


def _e2e_counts(topology: Topology) -> Tensor:
    """In how many triplets each main edge is the input."""
    degree = group_counts(topology.main.target, topology.num_atoms)
    return degree[topology.main.target] - 1


def _mixed_pairs(topology: Topology) -> list[Tensor]:
    """For each block (n, D, D2) bool, true for each pair that is a triplet."""
    main, a2ee2a = topology.main_blocks, topology.a2ee2a_blocks
    masks = zip(main.blocks(main.mask()), a2ee2a.blocks(a2ee2a.mask()), topology.same_image, strict=True)
    return [outer[:, :, None] & inner[:, None, :] & ~same for outer, inner, same in masks]


def _a2e_counts(topology: Topology) -> Tensor:
    return topology.a2ee2a_blocks.unpad(torch.cat([pairs.sum(1).view(-1) for pairs in _mixed_pairs(topology)]))


def _e2a_counts(topology: Topology) -> Tensor:
    return topology.main_blocks.unpad(torch.cat([pairs.sum(2).view(-1) for pairs in _mixed_pairs(topology)]))


def _quad_counts(quads: QuadrupletTopology) -> Tensor:
    """In how many quadruplets each place (qint edge, input slot) takes part: (Q·D_in,)."""
    per_qint = sum_by_group(
        quads.output_mask.reshape(-1).long(), quads.qint_of_output.reshape(-1), quads.qint.num_edges
    )
    counts = (per_qint[:, None] * quads.input_mask).view(-1)
    return counts.index_add(0, quads.closing_input, torch.full_like(quads.closing_input, -1))
