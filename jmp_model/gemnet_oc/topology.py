"""Integer structure of a batch: sorted edges, the symmetrised main graph and its reverse map, who excludes whom.

Nothing here depends on positions or needs a gradient, so it can be built once for many forward passes.
All edges are brought into an order of our own (sorted by target atom); the order of the input does not matter.

Shapes: N atoms; E main edges after symmetrisation; D, D2, Dq largest number of main, a2ee2a, qint edges at one target;
Q qint edges; P output places (main edge, qint slot) of atoms that have a qint edge; Na such atoms.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jmp_data.errors import InvalidStructureError
from jmp_model.gemnet_oc.config import Symmetrization
from jmp_model.gemnet_oc.graphs import EdgeSet, Graphs
from jmp_model.gemnet_oc.ragged import PaddedLayout

# Offsets and their differences pack into 3 × 10 bits below the atom index of one int64 key.
_OFFSET_LIMIT = 256
_BITS = 10


@dataclass(frozen=True)
class TargetSorted:
    """Edges sorted by target atom.

    Attributes:
        source, target: (E,) int64.
        cell_offsets: (E, 3) int64.
        layout: places of the edges in (N, width) blocks, one row of slots per target.
    """

    source: Tensor
    target: Tensor
    cell_offsets: Tensor
    layout: PaddedLayout

    @property
    def num_edges(self) -> int:
        """Number of directed edges."""
        return self.source.shape[0]

    @classmethod
    def of(cls, edges: EdgeSet, num_atoms: int) -> tuple[TargetSorted, Tensor]:
        """Sort an edge set; also returns the (E,) permutation, sorted edge i being input edge order[i]."""
        source, target = edges.edge_index.long()
        target, order = torch.sort(target, stable=True)
        layout = PaddedLayout.of(target, num_atoms)
        return cls(source[order], target, edges.cell_offsets[order].long(), layout), order

    def image_keys(self) -> Tensor:
        """(E,) int64, equal for two edges exactly if source atom and cell offset are."""
        return (self.source << 3 * _BITS) + pack_offsets(self.cell_offsets)


@dataclass(frozen=True)
class QuadrupletTopology:
    """Index structure of d→b→a←c, with b→a a qint edge; lists are padded per atom instead of enumerated.

    Attributes:
        qint: the qint edges, sorted by target a.
        source_atoms: (Nb,) atoms that are source b of a qint edge.
        source_row: (Q,) row of each qint edge's source in `source_atoms`.
        input_edges: (Ei,) main edges d→b with b in `source_atoms`, sorted by b.
        input_layout: places of those in (Nb, D_in).
        input_mask: (Q, D_in) bool, false where there is no edge or d→b is b→a reversed.
        atoms: (Na,) atoms a that are target of a qint edge.
        slots: places of qint edges in (Na, Dq).
        output_edges: (Eo,) main edges c→a with a in `atoms`, sorted by a.
        output_layout: places of those in (Na, D_out).
        output_mask: (Eo, Dq) bool, true where slot q holds a qint edge other than c→a itself.
        qint_of_output: (Eo, Dq) qint edge of each place, 0 where there is none.
        closing_edge: (Pc,) flat places (output edge, slot) where a main edge c→b closes the triangle a, b, c.
        closing_place: (Pc,) the same in the padded layout, flat (atom, D_out, Dq).
        closing_input: (Pc,) flat place (qint edge, input slot) of that edge c→b: it is no quadruplet of c→a.
    """

    qint: TargetSorted
    source_atoms: Tensor
    source_row: Tensor
    input_edges: Tensor
    input_layout: PaddedLayout
    input_mask: Tensor
    atoms: Tensor
    slots: PaddedLayout
    output_edges: Tensor
    output_layout: PaddedLayout
    output_mask: Tensor
    qint_of_output: Tensor
    closing_edge: Tensor
    closing_place: Tensor
    closing_input: Tensor


@dataclass(frozen=True)
class Topology:
    """Index structure of a whole batch.

    Attributes:
        main: symmetrised main graph; main_swap: (E,) reverse of each edge.
        a2ee2a: atom-edge interaction graph.
        same_image: (N, D, D2) bool, true where a main and an a2ee2a edge of one target have the same source image.
        a2a: atom-atom edges; pair_of_a2a: (edges,) index of each edge's (source, target) pair.
        pair_source: (pairs,) source atom; pairs: their places in (N, width).
        quads: None if there is no qint edge.
    """

    num_atoms: int
    main: TargetSorted
    main_swap: Tensor
    a2ee2a: TargetSorted
    same_image: Tensor
    a2a: TargetSorted
    pair_of_a2a: Tensor
    pair_source: Tensor
    pairs: PaddedLayout
    quads: QuadrupletTopology | None


def pack_offsets(cell_offsets: Tensor) -> Tensor:
    """Pack (…, 3) cell offsets into one integer each, linearly: packed differences are differences of packed ones."""
    return (cell_offsets[..., 0] << 2 * _BITS) + (cell_offsets[..., 1] << _BITS) + cell_offsets[..., 2]


def symmetrize(edges: EdgeSet, *, rule: Symmetrization = "reference") -> tuple[EdgeSet, Tensor]:
    """Make the main graph symmetric.

    "reference" keeps the edges with source < target (and self-image edges whose offset is lexicographically negative)
    and adds their reverses; an edge that truncation left in the other direction only is lost, one left in this
    direction only gains its reverse: the result depends on the order of atoms. "symmetric" keeps every pair that
    truncation left in at least one direction, which does not.

    Args:
        edges: main edges as built, E0 of them.
        rule: which of the two.

    Returns:
        The symmetric edges, kept ones first and then their reverses, and (E,) the index of each edge's reverse.
    """
    offsets = edges.cell_offsets.long()
    source, target = edges.edge_index.long()
    packed = pack_offsets(offsets)
    forward = (source < target) | ((source == target) & (packed < 0))
    if rule == "symmetric":
        flip = ~forward
        source, target = torch.where(flip, target, source), torch.where(flip, source, target)
        offsets = torch.where(flip[:, None], -offsets, offsets)
        table = torch.stack([target, source, *offsets.unbind(1)], dim=1)
        table = torch.unique(table, dim=0) if len(table) else table
        target, source, offsets = table[:, 0], table[:, 1], table[:, 2:]
    else:
        source, target, offsets = source[forward], target[forward], offsets[forward]
    kept = source.shape[0]
    both = EdgeSet(
        torch.stack([torch.cat([source, target]), torch.cat([target, source])]), torch.cat([offsets, -offsets])
    )
    index = torch.arange(2 * kept, device=source.device)
    return both, torch.where(index < kept, index + kept, index - kept)


def build_topology(graphs: Graphs, num_atoms: int, *, symmetrization: Symmetrization = "reference") -> Topology:
    """Derive all index structure of a batch.

    Args:
        graphs: the four edge sets, in any edge order.
        num_atoms: N, atoms in the batch.
        symmetrization: rule for the main graph.

    Raises:
        InvalidStructureError: an edge names an atom that is not there, or a cell offset is absurdly large.
    """
    for name in ("main", "a2a", "a2ee2a", "qint"):
        _check_edges(name, getattr(graphs, name), num_atoms)
    symmetric, swap = symmetrize(graphs.main, rule=symmetrization)
    main, order = TargetSorted.of(symmetric, num_atoms)
    position = torch.empty_like(order).scatter_(0, order, torch.arange(order.shape[0], device=order.device))
    a2ee2a, _ = TargetSorted.of(graphs.a2ee2a, num_atoms)
    a2a, _ = TargetSorted.of(graphs.a2a, num_atoms)
    pair_keys, pair_of_a2a = torch.unique(a2a.target * num_atoms + a2a.source, return_inverse=True)
    pair_target = torch.div(pair_keys, max(num_atoms, 1), rounding_mode="floor")
    main_keys = _padded_keys(main)
    same_image = main_keys[:, :, None] == _padded_keys(a2ee2a, fill=-2)[:, None, :]
    return Topology(
        num_atoms=num_atoms,
        main=main,
        main_swap=position[swap[order]],
        a2ee2a=a2ee2a,
        same_image=same_image,
        a2a=a2a,
        pair_of_a2a=pair_of_a2a,
        pair_source=pair_keys - pair_target * num_atoms,
        pairs=PaddedLayout.of(pair_target, num_atoms),
        quads=_build_quadruplets(graphs.qint, main, main_keys, num_atoms) if graphs.qint.num_edges else None,
    )


def _check_edges(name: str, edges: EdgeSet, num_atoms: int) -> None:
    if edges.num_edges == 0:
        return
    low, high = edges.edge_index.aminmax()
    if int(low) < 0 or int(high) >= num_atoms:
        raise InvalidStructureError(
            f"{name} edges name atom {int(high)} (or {int(low)}), the batch has {num_atoms} atoms"
        )
    if int(edges.cell_offsets.abs().max()) >= _OFFSET_LIMIT:
        raise InvalidStructureError(
            f"{name} edges have cell offsets of {_OFFSET_LIMIT} or more: wrap the positions first"
        )


def _padded_keys(edges: TargetSorted, fill: int = -1) -> Tensor:
    """(N, width) image keys per target; `fill`, which no real key equals, where there is no edge."""
    keys = torch.full((edges.layout.num_groups * edges.layout.width,), fill * (1 << 62), device=edges.source.device)
    # A source of index 0 with a negative offset has a small negative key, far from both fill values.
    return keys.index_copy_(0, edges.layout.slot, edges.image_keys()).view(edges.layout.num_groups, -1)


def _rows_of(atoms: Tensor, num_atoms: int) -> Tensor:
    """(N,) row of each atom in the sorted list `atoms`, −1 where it is not in it."""
    rows = torch.full((num_atoms,), -1, dtype=torch.long, device=atoms.device)
    rows[atoms] = torch.arange(atoms.shape[0], device=atoms.device)
    return rows


def _build_quadruplets(edges: EdgeSet, main: TargetSorted, main_keys: Tensor, num_atoms: int) -> QuadrupletTopology:
    qint, _ = TargetSorted.of(edges, num_atoms)
    packed = pack_offsets(qint.cell_offsets)

    source_atoms = torch.unique(qint.source)
    source_rows = _rows_of(source_atoms, num_atoms)
    input_edges = torch.nonzero(source_rows[main.target] >= 0).view(-1)
    input_layout = PaddedLayout.of(source_rows[main.target[input_edges]], source_atoms.shape[0])
    source_row = source_rows[qint.source]
    reverse_keys = (qint.target << 3 * _BITS) - packed
    input_keys = main_keys[source_atoms][:, : input_layout.width]
    input_mask = input_layout.mask()[source_row] & (input_keys[source_row] != reverse_keys[:, None])

    atoms = torch.unique_consecutive(qint.target)
    rows = _rows_of(atoms, num_atoms)
    slots = PaddedLayout.of(rows[qint.target], atoms.shape[0])
    output_edges = torch.nonzero(rows[main.target] >= 0).view(-1)
    output_row = rows[main.target[output_edges]]
    qint_slots = torch.zeros(slots.num_groups * slots.width, dtype=torch.long, device=packed.device)
    qint_slots.index_copy_(0, slots.slot, torch.arange(qint.num_edges, device=packed.device))
    qint_of_output = qint_slots.view(slots.num_groups, slots.width)[output_row]
    own_keys = main.image_keys()[output_edges]
    output_mask = slots.mask()[output_row] & (qint.image_keys()[qint_of_output] != own_keys[:, None])

    # d→b closes the triangle with c→a if d is c and its offset relative to b is o_ca − o_ba.
    closing_keys = own_keys[:, None] - packed[qint_of_output]
    matches = input_keys[source_row[qint_of_output]] == closing_keys[..., None]
    found, slot = matches.max(dim=-1)
    closing_edge = torch.nonzero((found & output_mask).view(-1)).view(-1)
    closing_input = (qint_of_output * input_layout.width + slot).view(-1)[closing_edge]
    output_layout = PaddedLayout.of(output_row, atoms.shape[0])
    row = torch.div(closing_edge, slots.width, rounding_mode="floor")
    return QuadrupletTopology(
        qint=qint,
        source_atoms=source_atoms,
        source_row=source_row,
        input_edges=input_edges,
        input_layout=input_layout,
        input_mask=input_mask,
        atoms=atoms,
        slots=slots,
        output_edges=output_edges,
        output_layout=output_layout,
        output_mask=output_mask,
        qint_of_output=qint_of_output,
        closing_edge=closing_edge,
        closing_place=output_layout.slot[row] * slots.width + closing_edge % slots.width,
        closing_input=closing_input,
    )
