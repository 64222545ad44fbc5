"""Explicit lists of triplets and quadruplets.

The model never needs them, because it works on dense blocks per atom; they are spelled out here from the same masks for
checks against other implementations. Edges are numbered as in `Topology` (sorted by target).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jmp_model.gemnet_oc.topology import Topology


@dataclass(frozen=True)
class Triplets:
    """Pairs of edges with a common target: `inner` sends, `outer` receives; both (triplets,), sorted by outer."""

    inner: Tensor
    outer: Tensor


@dataclass(frozen=True)
class Quadruplets:
    """Paths d→b→a←c.

    Attributes:
        triplets_in: main edge d→b (inner), qint edge b→a (outer).
        triplets_out: qint edge b→a (inner), main edge c→a (outer).
        edge_db, edge_ba, edge_ca: (quadruplets,) main, qint and main edge of each.
    """

    triplets_in: Triplets
    triplets_out: Triplets
    edge_db: Tensor
    edge_ba: Tensor
    edge_ca: Tensor


def _pairs(outer: Tensor, inner: Tensor, excluded: Tensor) -> Triplets:
    """All (outer, inner) pairs of one group that are both there and not excluded: tables (groups, width)."""
    there = (outer >= 0)[:, :, None] & (inner >= 0)[:, None, :] & ~excluded
    group, i, j = torch.nonzero(there, as_tuple=True)
    return Triplets(inner=inner[group, j], outer=outer[group, i])


def edge_to_edge(topology: Topology) -> Triplets:
    """Main edges b→a (inner) and c→a (outer)."""
    table = topology.main.layout.table()
    return _pairs(table, table, torch.eye(table.shape[1], dtype=torch.bool, device=table.device)[None])


def atom_to_edge(topology: Topology) -> Triplets:
    """a2ee2a edges b→a (inner) and main edges c→a (outer)."""
    return _pairs(topology.main.layout.table(), topology.a2ee2a.layout.table(), topology.same_image)


def edge_to_atom(topology: Topology) -> Triplets:
    """Main edges b→a (inner) and a2ee2a edges c→a (outer)."""
    excluded = topology.same_image.transpose(1, 2)
    return _pairs(topology.a2ee2a.layout.table(), topology.main.layout.table(), excluded)


def quadruplets(topology: Topology) -> Quadruplets:
    """All quadruplets and both kinds of their halves."""
    quads = topology.quads
    if quads is None:
        none = torch.zeros(0, dtype=torch.long, device=topology.main.source.device)
        return Quadruplets(Triplets(none, none), Triplets(none, none), none, none, none)
    inner_edges = quads.input_layout.table()[quads.source_row]
    edge_ba, slot = torch.nonzero(quads.input_mask, as_tuple=True)
    triplets_in = Triplets(inner=quads.input_edges[inner_edges[edge_ba, slot]], outer=edge_ba)
    place_edge, place_slot = torch.nonzero(quads.output_mask, as_tuple=True)
    triplets_out = Triplets(inner=quads.qint_of_output[place_edge, place_slot], outer=quads.output_edges[place_edge])
    there = quads.output_mask[..., None] & quads.input_mask[quads.qint_of_output]
    there.view(-1, there.shape[-1])[quads.closing_edge, quads.closing_input % quads.input_layout.width] = False
    outer, at, slot = torch.nonzero(there, as_tuple=True)
    edge_ba = quads.qint_of_output[outer, at]
    edge_db = quads.input_edges[inner_edges[edge_ba, slot]]
    return Quadruplets(triplets_in, triplets_out, edge_db, edge_ba, quads.output_edges[outer])
