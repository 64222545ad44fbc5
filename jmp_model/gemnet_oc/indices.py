"""Explicit lists of triplets and quadruplets.

The model never needs them, because it works on dense blocks per atom; they are spelled out here from the same masks for
checks against other implementations. Edges are numbered as in `Topology` (sorted by target).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jmp_model.gemnet_oc.ragged import GroupCounts, PaddedLayout
from jmp_model.gemnet_oc.topology import TargetSorted, Topology


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


def _table(edges: TargetSorted, topology: Topology) -> Tensor:
    """(N, width) edges at each row of atoms, −1 where there is none."""
    rows = topology.atom_row[edges.target]
    return PaddedLayout.of(rows, GroupCounts.of(rows, topology.num_atoms)).table()


def _same_image(outer: Tensor, inner: Tensor, topology: Topology) -> Tensor:
    """Which pairs of a main edge and an a2ee2a edge, (N, D) and (N, D2), have the same source image."""
    main, a2ee2a = topology.main.image_keys()[outer], topology.a2ee2a.image_keys()[inner]
    return main[:, :, None] == a2ee2a[:, None, :]


def edge_to_edge(topology: Topology) -> Triplets:
    """Main edges b→a (inner) and c→a (outer)."""
    table = _table(topology.main, topology)
    return _pairs(table, table, torch.eye(table.shape[1], dtype=torch.bool, device=table.device)[None])


def atom_to_edge(topology: Topology) -> Triplets:
    """a2ee2a edges b→a (inner) and main edges c→a (outer)."""
    outer, inner = _table(topology.main, topology), _table(topology.a2ee2a, topology)
    return _pairs(outer, inner, _same_image(outer, inner, topology))


def edge_to_atom(topology: Topology) -> Triplets:
    """Main edges b→a (inner) and a2ee2a edges c→a (outer)."""
    inner, outer = _table(topology.main, topology), _table(topology.a2ee2a, topology)
    return _pairs(outer, inner, _same_image(inner, outer, topology).transpose(1, 2))


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
