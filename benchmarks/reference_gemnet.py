"""The original formulation of GemNet-OC's forward pass, in eager PyTorch, on the weights of one of our models.

Written from the description of the architecture: every triplet and quadruplet is listed, its input is gathered, values
are put into zero-padded dense tensors per output edge, and those are multiplied. It is the yardstick for speed and
memory, and, because it shares little more than the weights with `jmp_model`, an independent check of the numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from jmp_model.gemnet_oc.angular import dihedral_angles, legendre_basis
from jmp_model.gemnet_oc.graphs import EdgeSet, ModelInputs
from jmp_model.gemnet_oc.interaction import InteractionBlock
from jmp_model.gemnet_oc.output import OutputBlock
from jmp_model.gemnet_oc.topology import symmetrize
from jmp_model.model import Predictions, PretrainingModel

INV_SQRT_2 = 1 / math.sqrt(2)


def act(x: Tensor) -> Tensor:
    return functional.silu(x) * (1 / 0.6)


def dense(layer: nn.Module, x: Tensor) -> Tensor:
    y = functional.linear(x, layer.linear.weight)
    return act(y) if layer.activation else y


def residuals(layers: nn.Sequential, x: Tensor) -> Tensor:
    for layer in layers:
        if hasattr(layer, "dense_mlp"):
            x = (x + dense(layer.dense_mlp[1], dense(layer.dense_mlp[0], x))) * INV_SQRT_2
        else:
            x = dense(layer, x)
    return x


def head(layers: nn.Sequential, x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x) if isinstance(layer, nn.Linear) else act(x)
    return x


@dataclass
class Edges:
    source: Tensor
    target: Tensor
    offset: Tensor
    distance: Tensor
    vector: Tensor


@dataclass
class Pairs:
    """Lists of (inner, outer) and the running number within each outer one."""

    inner: Tensor
    outer: Tensor
    running: Tensor
    width: int


def measure_edges(edges: EdgeSet, inputs: ModelInputs) -> Edges:
    source, target = edges.edge_index
    shift = torch.bmm(edges.cell_offsets[:, None].to(inputs.cell.dtype), inputs.cell[inputs.batch[target]])[:, 0]
    arrow = inputs.positions[target] - inputs.positions[source] - shift
    distance = arrow.norm(dim=-1)
    return Edges(source, target, edges.cell_offsets, distance, arrow / distance[:, None])


def number_within(outer: Tensor, size: int) -> tuple[Tensor, int]:
    """Running number of each entry within its (sorted) outer index."""
    counts = torch.bincount(outer, minlength=size)
    first = torch.cumsum(counts, 0) - counts
    running = torch.arange(len(outer), device=outer.device) - first[outer]
    return running, int(counts.max()) if len(outer) else 1


def join(inner_key: Tensor, outer_key: Tensor, num_keys: int) -> tuple[Tensor, Tensor]:
    """All (inner, outer) with equal keys, sorted by outer."""
    order = torch.argsort(inner_key, stable=True)
    counts = torch.bincount(inner_key, minlength=num_keys)
    first = torch.cumsum(counts, 0) - counts
    repeats = counts[outer_key]
    outer = torch.repeat_interleave(torch.arange(len(outer_key), device=outer_key.device), repeats)
    start = torch.cumsum(repeats, 0) - repeats
    local = torch.arange(len(outer), device=outer.device) - start[outer]
    return order[first[outer_key[outer]] + local], outer


def finish(inner: Tensor, outer: Tensor, keep: Tensor, size: int) -> Pairs:
    inner, outer = inner[keep], outer[keep]
    running, width = number_within(outer, size)
    return Pairs(inner, outer, running, width)


def triplets(inner: Edges, outer: Edges, num_atoms: int, *, same_graph: bool) -> Pairs:
    i, o = join(inner.target, outer.target, num_atoms)
    other_image = (inner.source[i] != outer.source[o]) | (inner.offset[i] != outer.offset[o]).any(1)
    return finish(i, o, (i != o) if same_graph else other_image, len(outer.source))


@dataclass
class Quads:
    triplet_in: Pairs
    triplet_out: Pairs
    quad_in: Tensor
    quad_out: Tensor
    quads: Pairs


def quadruplets(main: Edges, qint: Edges, num_atoms: int) -> Quads:
    i, o = join(main.target, qint.source, num_atoms)
    keep = (main.source[i] != qint.target[o]) | (main.offset[i] + qint.offset[o] != 0).any(1)
    t_in = finish(i, o, keep, len(qint.source))
    t_out = triplets(qint, main, num_atoms, same_graph=False)
    q_in, q_out = join(t_in.outer, t_out.inner, len(qint.source))
    d, ba, ca = t_in.inner[q_in], t_out.inner[q_out], t_out.outer[q_out]
    shift = main.offset[d] + qint.offset[ba] - main.offset[ca]
    keep = (main.source[d] != main.source[ca]) | (shift != 0).any(1)
    q_in, q_out = q_in[keep], q_out[keep]
    outer = t_out.outer[q_out]
    running, width = number_within(outer, len(main.source))
    return Quads(t_in, t_out, q_in, q_out, Pairs(q_in, outer, running, width))


def pad(values: Tensor, pairs: Pairs, size: int) -> Tensor:
    """(pairs, K) to (outer, width, K)."""
    padded = values.new_zeros(size, pairs.width, values.shape[1])
    padded[pairs.outer, pairs.running] = values
    return padded


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1).clamp(-1, 1)


class ReferenceGemNet(nn.Module):
    """Forward pass of a pre-training model in the original formulation."""

    def __init__(self, model: PretrainingModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: ModelInputs) -> Predictions:
        model, backbone, bases = self.model, self.model.backbone, self.model.backbone.bases
        config, num_atoms = model.config, len(inputs.positions)
        symmetric, swap = symmetrize(inputs.graphs.main)
        main = measure_edges(symmetric, inputs)
        a2a, a2ee2a, qint = (measure_edges(getattr(inputs.graphs, n), inputs) for n in ("a2a", "a2ee2a", "qint"))
        order = torch.argsort(a2ee2a.target, stable=True)
        a2ee2a = Edges(*(getattr(a2ee2a, n)[order] for n in ("source", "target", "offset", "distance", "vector")))
        order = torch.argsort(a2a.target, stable=True)
        a2a = Edges(*(getattr(a2a, n)[order] for n in ("source", "target", "offset", "distance", "vector")))
        sets = {
            "e2e": triplets(main, main, num_atoms, same_graph=True),
            "a2e": triplets(a2ee2a, main, num_atoms, same_graph=False),
            "e2a": triplets(main, a2ee2a, num_atoms, same_graph=False),
            "quad": quadruplets(main, qint, num_atoms),
            "per_atom": number_within(a2ee2a.target, num_atoms),
            "pairs": number_within(a2a.target, num_atoms),
        }
        b = self._bases(main, a2a, a2ee2a, qint, sets, num_atoms)
        h = model.embedding.atom_embedding(inputs.atomic_numbers - 1)
        m = dense(bases.edge_emb.dense, torch.cat([h[main.source], h[main.target], b["radial"]], dim=-1))
        atoms, edges = [], []
        for index, out in enumerate(backbone.out_blocks):
            if index:
                h, m = self._block(backbone.int_blocks[index - 1], h, m, b, sets, main, a2a, a2ee2a, swap)
            x_e, x_f = self._output(out, h, m, b, main)
            atoms.append(x_e)
            edges.append(x_f)
        x_e = residuals(backbone.out_mlp_E.out_mlp, torch.cat(atoms, dim=-1))
        x_f = residuals(backbone.out_mlp_F.out_mlp, torch.cat(edges, dim=-1))
        energies, forces = [], []
        for k in range(len(model.tasks)):
            per_atom = head(model.output.out_energy[k], x_e)
            energies.append(per_atom.new_zeros(len(inputs.natoms), 1).index_add(0, inputs.batch, per_atom))
            vectors = head(model.output.out_forces[k], x_f) * main.vector
            forces.append(vectors.new_zeros(num_atoms, 3).index_add(0, main.target, vectors))
        assert config.direct_forces
        return Predictions(torch.cat(energies, dim=-1), torch.stack(forces, dim=-1))

    def _bases(self, main: Edges, a2a: Edges, a2ee2a: Edges, qint: Edges, sets: dict, num_atoms: int) -> dict:
        bases = self.model.backbone.bases
        orders = bases.num_spherical
        radial, radial2 = bases.radial_basis(main.distance), bases.radial_basis(a2ee2a.distance)
        b = {"radial": radial}
        for name, layer, values in (
            ("rad_e2e", bases.mlp_rbf_tint, radial), ("rad_qint", bases.mlp_rbf_qint, radial),
            ("rad_a2e", bases.mlp_rbf_aeint, radial2), ("rad_e2a", bases.mlp_rbf_eaint, radial),
            ("rad_h", bases.mlp_rbf_h, radial), ("rad_out", bases.mlp_rbf_out, radial),
        ):  # fmt: skip
            b[name] = dense(layer, values)
        e2e, a2e, e2a, quad = sets["e2e"], sets["a2e"], sets["e2a"], sets["quad"]
        angles = {
            "e2e": cosine(main.vector[e2e.outer], main.vector[e2e.inner]),
            "a2e": cosine(main.vector[a2e.outer], a2ee2a.vector[a2e.inner]),
            "e2a": cosine(a2ee2a.vector[e2a.outer], main.vector[e2a.inner]),
        }
        sizes = {"e2e": len(main.source), "a2e": len(main.source), "e2a": len(a2ee2a.source)}
        for name, cos in angles.items():
            b[f"sph_{name}"] = pad(legendre_basis(cos, orders), sets[name], sizes[name]).transpose(1, 2)
        b["radw_e2e"] = bases.mlp_cbf_tint(radial)
        b["radw_a2e"] = bases.mlp_cbf_aeint(radial)
        radw = bases.mlp_cbf_eaint(radial2)
        running, width = sets["per_atom"]
        padded = radw.new_zeros(num_atoms, width, *radw.shape[1:])
        padded[a2ee2a.target, running] = radw
        b["radw_e2a"] = padded.transpose(1, 2).flatten(2)
        running, width = sets["pairs"]
        rad = bases.mlp_rbf_aint(bases.radial_basis(a2a.distance))
        padded = rad.new_zeros(num_atoms, width, rad.shape[1])
        padded[a2a.target, running] = rad
        b["rad_a2a"] = padded.transpose(1, 2)

        t_in, t_out = quad.triplet_in, quad.triplet_out
        cos_abd = cosine(main.vector[t_in.inner], qint.vector[t_in.outer])
        radw = bases.mlp_cbf_qint(bases.radial_basis(qint.distance))
        b["cir_qint"] = torch.bmm(radw[t_in.outer], legendre_basis(cos_abd, orders)[..., None])[..., 0]
        cos_cab = cosine(main.vector[t_out.outer], qint.vector[t_out.inner])
        v_ca, v_ba = main.vector[t_out.outer[quad.quad_out]], qint.vector[t_out.inner[quad.quad_out]]
        v_db = main.vector[t_in.inner[quad.quad_in]]
        theta = dihedral_angles(torch.linalg.cross(v_ca, v_ba), torch.linalg.cross(v_db, v_ba))
        outer = legendre_basis(cos_cab[quad.quad_out], orders)[:, :, None]
        spherical = (outer * legendre_basis(torch.cos(theta), orders)[:, None, :]).flatten(1)
        b["sph_quad"] = pad(spherical, quad.quads, len(main.source)).transpose(1, 2)
        b["radw_quad"] = bases.mlp_sbf_qint(radial)
        return b

    @staticmethod
    def _bilinear(layer: nn.Module, x: Tensor, pairs: Pairs, spherical: Tensor, radw: Tensor) -> Tensor:
        sums = torch.bmm(spherical, pad(x, pairs, spherical.shape[0]))
        return functional.linear(torch.bmm(radw, sums).flatten(1), layer.linear.weight)

    def _block(
        self, block: InteractionBlock, h: Tensor, m: Tensor, b: dict, sets: dict,
        main: Edges, a2a: Edges, a2ee2a: Edges, swap: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        num_atoms = len(h)
        e2e, quad, a2e, e2a, pair = (
            block.trip_interaction, block.quad_interaction, block.atom_edge_interaction,
            block.edge_atom_interaction, block.atom_interaction,
        )  # fmt: skip

        def both_ways(layers: nn.Module, y: Tensor) -> Tensor:
            return (dense(layers.up_projection_ca, y) + dense(layers.up_projection_ac, y)[swap]) * INV_SQRT_2

        u = e2e.scale_rbf(dense(e2e.dense_ba, m) * dense(e2e.mlp_rbf, b["rad_e2e"]))
        u = dense(e2e.down_projection, u)[sets["e2e"].inner]
        y = self._bilinear(e2e.mlp_cbf.bilinear, u, sets["e2e"], b["sph_e2e"], b["radw_e2e"])
        x_e2e = both_ways(e2e, e2e.scale_cbf_sum(y))

        quads = sets["quad"]
        u = quad.scale_rbf(dense(quad.dense_db, m) * dense(quad.mlp_rbf, b["rad_qint"]))
        u = dense(quad.down_projection, u)[quads.triplet_in.inner]
        u = quad.scale_cbf(u * dense(quad.mlp_cbf, b["cir_qint"]))[quads.quad_in]
        y = self._bilinear(quad.mlp_sbf.bilinear, u, quads.quads, b["sph_quad"], b["radw_quad"])
        x_quad = both_ways(quad, quad.scale_sbf_sum(y))

        u = dense(a2e.dense_ba, h)[a2ee2a.source]
        u = a2e.scale_rbf(u * dense(a2e.mlp_rbf, b["rad_a2e"]))
        u = dense(a2e.down_projection, u)[sets["a2e"].inner]
        y = self._bilinear(a2e.mlp_cbf.bilinear, u, sets["a2e"], b["sph_a2e"], b["radw_a2e"])
        x_a2e = both_ways(a2e, a2e.scale_cbf_sum(y))

        u = e2a.scale_rbf(dense(e2a.dense_ba, m) * dense(e2a.mlp_rbf, b["rad_e2a"]))
        u = dense(e2a.down_projection, u)[sets["e2a"].inner]
        sums = torch.bmm(b["sph_e2a"], pad(u, sets["e2a"], len(a2ee2a.source)))
        running, width = sets["per_atom"]
        padded = sums.new_zeros(num_atoms, width, *sums.shape[1:])
        padded[a2ee2a.target, running] = sums
        z = torch.bmm(b["radw_e2a"], padded.flatten(1, 2))
        y = functional.linear(z.flatten(1), e2a.mlp_cbf.bilinear.linear.weight)
        h_e2a = dense(e2a.up_projection_ca, e2a.scale_cbf_sum(y))

        running, width = sets["pairs"]
        u = dense(pair.down_projection, h)[a2a.source]
        padded = u.new_zeros(num_atoms, width, u.shape[1])
        padded[a2a.target, running] = u
        y = functional.linear(torch.bmm(b["rad_a2a"], padded).flatten(1), pair.bilinear.linear.weight)
        h_a2a = dense(pair.up_projection, pair.scale_rbf_sum(y))

        x = (dense(block.dense_ca, m) + x_e2e + x_quad + x_a2e) * 0.5
        h = (h + h_e2a + h_a2a) * (1 / math.sqrt(3))
        m = (m + residuals(block.layers_before_skip, x)) * INV_SQRT_2
        m = residuals(block.layers_after_skip, m)
        h = residuals(block.atom_emb_layers, h)
        collected = self._collect(m, dense(block.atom_update.dense_rbf, b["rad_h"]), main, num_atoms)
        h = (h + residuals(block.atom_update.layers, block.atom_update.scale_sum(collected))) * INV_SQRT_2
        m2 = dense_act(block.concat_layer.dense, torch.cat([h[main.source], h[main.target], m], dim=-1))
        return h, (m + residuals(block.residual_m, m2)) * INV_SQRT_2

    @staticmethod
    def _collect(m: Tensor, weight: Tensor, main: Edges, num_atoms: int) -> Tensor:
        return m.new_zeros(num_atoms, m.shape[1]).index_add(0, main.target, m * weight)

    def _output(self, out: OutputBlock, h: Tensor, m: Tensor, b: dict, main: Edges) -> tuple[Tensor, Tensor]:
        y = self._collect(m, dense(out.dense_rbf, b["rad_out"]), main, len(h))
        if self.training and out.edge_dropout > 0:
            y = y / (1 - out.edge_dropout)
        y = (residuals(out.layers, out.scale_sum(y)) + h) * INV_SQRT_2
        x = residuals(out.seq_forces, m)
        x_f = out.scale_rbf_F(x * dense(out.dense_rbf_F, b["rad_out"]))
        return residuals(out.seq_energy2, y), x_f


def dense_act(layer: nn.Module, x: Tensor) -> Tensor:
    return act(functional.linear(x, layer.linear.weight))
