"""Integer structure of a batch: sorted edges, the symmetrised main graph and its reverse map, who excludes whom.

Nothing here depends on positions or needs a gradient, so it can be built once for many forward passes.
Atoms get rows, those with most main edges first, and runs of rows with about as many edges become blocks. All edges are
brought into an order of our own (sorted by the target's row); the order of the input does not matter.

Shapes: N atoms; E main edges after symmetrisation; D, D2 largest number of main, a2ee2a edges at one target of a block,
Dq of qint edges at one target; Q qint edges; Na atoms that have a qint edge.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from jmp_data.errors import InvalidStructureError
from jmp_model.gemnet_oc.config import Symmetrization
from jmp_model.gemnet_oc.graphs import GRAPH_NAMES, EdgeSet, Graphs
from jmp_model.gemnet_oc.ragged import (
    BlockedLayout,
    GroupCounts,
    PaddedLayout,
    chosen,
    group_counts,
    runs_of_like_size,
)

# Offsets and their differences pack into 3 × 10 bits below the atom index of one int64 key.
_OFFSET_LIMIT = 256
_BITS = 10

_RUN_COST: dict[str, float] = {"cpu": 8_000, "cuda": 200_000}
"""What one more block costs in operations, as a number of pairs of places: see `runs_of_like_size`. Measured on a CPU,
where it hardly matters (docs/model-speed.md); for a GPU an estimate."""


@dataclass(frozen=True)
class AtomRows:
    """Rows of atoms, those with most main edges first, in blocks.

    Attributes:
        row: (N,) int64 row of each atom.
        sizes: number of rows in each block.
        main, a2ee2a, qint_in, pairs: numbers of main edges, a2ee2a edges, qint edges and different sources of
            atom-atom messages that end in each row.
        qint_out: number of qint edges that start in each row.
    """

    row: Tensor
    sizes: tuple[int, ...]
    main: GroupCounts
    a2ee2a: GroupCounts
    qint_in: GroupCounts
    qint_out: GroupCounts
    pairs: GroupCounts


@dataclass(frozen=True)
class TargetSorted:
    """Edges sorted by the row of their target atom.

    Attributes:
        source, target: (E,) int64.
        cell_offsets: (E, 3) int64.
    """

    source: Tensor
    target: Tensor
    cell_offsets: Tensor

    @property
    def num_edges(self) -> int:
        """Number of directed edges."""
        return self.source.shape[0]

    @classmethod
    def of(cls, edges: EdgeSet, row: Tensor) -> tuple[TargetSorted, Tensor]:
        """Sort an edge set; also returns the (E,) permutation, sorted edge i being input edge order[i]."""
        source, target = edges.edge_index.long()
        order = torch.argsort(row[target], stable=True)
        return cls(source[order], target[order], edges.cell_offsets[order].long()), order

    def image_keys(self) -> Tensor:
        """(E,) int64, equal for two edges exactly if source atom and cell offset are."""
        return (self.source << 3 * _BITS) + pack_offsets(self.cell_offsets)


@dataclass(frozen=True)
class QuadrupletTopology:
    """Index structure of d→b→a←c, with b→a a qint edge; lists are padded per atom instead of enumerated.

    Attributes:
        qint: the qint edges, sorted by target a.
        source_row: (Q,) which of the Nb atoms that are source b of a qint edge is that of each.
        input_edges: (Ei,) main edges d→b of those atoms, sorted as main edges are.
        input_layout: places of those in (Nb, D_in).
        input_mask: (Q, D_in) bool, false where there is no edge or d→b is b→a reversed.
        slots: places of qint edges in (Na, Dq).
        output_edges: (Eo,) main edges c→a of the Na atoms, sorted as main edges are.
        output_row: (Eo,) which of the Na atoms is the target of each.
        output_layout: places of those in blocks of (some of Na, D_out).
        output_mask: (Eo, Dq) bool, true where slot q holds a qint edge other than c→a itself.
        qint_of_output: (Eo, Dq) qint edge of each place, 0 where there is none.
        closing_edge: (Pc,) flat places (output edge, slot) where a main edge c→b closes the triangle a, b, c.
        closing_place: (Pc,) the same in the padded layout, flat (place of the output edge, Dq).
        closing_input: (Pc,) flat place (qint edge, input slot) of that edge c→b: it is no quadruplet of c→a.
    """

    qint: TargetSorted
    source_row: Tensor
    input_edges: Tensor
    input_layout: PaddedLayout
    input_mask: Tensor
    slots: PaddedLayout
    output_edges: Tensor
    output_row: Tensor
    output_layout: BlockedLayout
    output_mask: Tensor
    qint_of_output: Tensor
    closing_edge: Tensor
    closing_place: Tensor
    closing_input: Tensor


@dataclass(frozen=True)
class Topology:
    """Index structure of a whole batch.

    Attributes:
        atom_row: (N,) row of each atom in the blocks.
        main: symmetrised main graph; main_swap: (E,) reverse of each edge; main_blocks: their places at their targets.
        a2ee2a: atom-edge interaction graph; a2ee2a_blocks: their places.
        same_image: for each block (atoms, D, D2) bool, true where a main and an a2ee2a edge of one target have the same
            source image.
        a2a: atom-atom edges; pair_of_a2a: (edges,) index of each edge's (source, target) pair.
        pair_source: (pairs,) source atom; pair_blocks: their places.
        quads: None if there is no qint edge.
    """

    num_atoms: int
    atom_row: Tensor
    main: TargetSorted
    main_swap: Tensor
    main_blocks: BlockedLayout
    a2ee2a: TargetSorted
    a2ee2a_blocks: BlockedLayout
    same_image: tuple[Tensor, ...]
    a2a: TargetSorted
    pair_of_a2a: Tensor
    pair_source: Tensor
    pair_blocks: BlockedLayout
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
    forward = _points_forward(edges)
    return _symmetric(edges, forward, int(forward.sum()), rule)


def _points_forward(edges: EdgeSet) -> Tensor:
    """(E0,) bool, false for the edges that are another's reverse by the rule of the reference."""
    source, target = edges.edge_index
    forward: Tensor = (source < target) | ((source == target) & (pack_offsets(edges.cell_offsets.long()) < 0))
    return forward


def _symmetric(edges: EdgeSet, forward: Tensor, num_forward: int, rule: Symmetrization) -> tuple[EdgeSet, Tensor]:
    offsets = edges.cell_offsets.long()
    source, target = edges.edge_index.long()
    if rule == "symmetric":
        flip = ~forward
        source, target = torch.where(flip, target, source), torch.where(flip, source, target)
        offsets = torch.where(flip[:, None], -offsets, offsets)
        table = torch.stack([target, source, *offsets.unbind(1)], dim=1)
        table = torch.unique(table, dim=0) if len(table) else table
        target, source, offsets = table[:, 0], table[:, 1], table[:, 2:]
    else:
        kept_edges = chosen(forward, num_forward)
        source, target, offsets = source[kept_edges], target[kept_edges], offsets[kept_edges]
    kept = source.shape[0]
    both = EdgeSet(
        torch.stack([torch.cat([source, target]), torch.cat([target, source])]), torch.cat([offsets, -offsets])
    )
    index = torch.arange(2 * kept, device=source.device)
    return both, torch.where(index < kept, index + kept, index - kept)


def build_topology(
    graphs: Graphs, num_atoms: int, *, symmetrization: Symmetrization = "reference", one_block: bool = False
) -> Topology:
    """Derive all index structure of a batch.

    Args:
        graphs: the four edge sets, in any edge order.
        num_atoms: N, atoms in the batch.
        symmetrization: rule for the main graph.
        one_block: pad all atoms to the largest, so that the number of blocks does not depend on the batch.

    Raises:
        InvalidStructureError: an edge names an atom that is not there, or a cell offset is absurdly large.
    """
    forward = _points_forward(graphs.main)
    num_forward = _check_edges(graphs, num_atoms, forward)
    symmetric, swap = _symmetric(graphs.main, forward, num_forward, symmetrization)
    by_degree = torch.argsort(group_counts(symmetric.edge_index[1], num_atoms), descending=True, stable=True)
    row = torch.empty_like(by_degree).scatter_(0, by_degree, torch.arange(num_atoms, device=by_degree.device))
    main, order = TargetSorted.of(symmetric, row)
    position = torch.empty_like(order).scatter_(0, order, torch.arange(order.shape[0], device=order.device))
    a2a, pair_of_a2a, is_new_pair = _group_pairs(graphs.a2a, row)
    rows = _count_edges(row, main, graphs, a2a, is_new_pair, one_block=one_block)
    main_blocks = BlockedLayout.of(row[main.target], rows.main, rows.sizes)
    a2ee2a, _ = TargetSorted.of(graphs.a2ee2a, row)
    a2ee2a_blocks = BlockedLayout.of(row[a2ee2a.target], rows.a2ee2a, rows.sizes)
    first_of_pair = chosen(is_new_pair, int(rows.pairs.on_host.sum()))
    return Topology(
        num_atoms=num_atoms,
        atom_row=row,
        main=main,
        main_swap=position[swap[order]],
        main_blocks=main_blocks,
        a2ee2a=a2ee2a,
        a2ee2a_blocks=a2ee2a_blocks,
        same_image=_same_image(main, main_blocks, a2ee2a, a2ee2a_blocks),
        a2a=a2a,
        pair_of_a2a=pair_of_a2a,
        pair_source=a2a.source[first_of_pair],
        pair_blocks=BlockedLayout.of(row[a2a.target[first_of_pair]], rows.pairs, rows.sizes),
        quads=_build_quadruplets(graphs.qint, main, rows) if graphs.qint.num_edges else None,
    )


def _check_edges(graphs: Graphs, num_atoms: int, forward: Tensor) -> int:
    """Check all four edge sets, with one transfer to the host; returns the number of `forward` edges too."""
    named = [(name, edges) for name in GRAPH_NAMES if (edges := getattr(graphs, name)).num_edges]
    bounds = [(*edges.edge_index.aminmax(), edges.cell_offsets.abs().max()) for _, edges in named]
    num_forward, *flat = torch.stack([forward.sum(), *(bound.long() for bound in itertools.chain(*bounds))]).tolist()
    for (name, _), low, high, offset in zip(named, flat[::3], flat[1::3], flat[2::3], strict=True):
        if low < 0 or high >= num_atoms:
            raise InvalidStructureError(f"{name} edges name atom {high} (or {low}), the batch has {num_atoms} atoms")
        if offset >= _OFFSET_LIMIT:
            raise InvalidStructureError(
                f"{name} edges have cell offsets of {_OFFSET_LIMIT} or more: wrap the positions first"
            )
    return int(num_forward)


def _group_pairs(edges: EdgeSet, row: Tensor) -> tuple[TargetSorted, Tensor, Tensor]:
    """Sort atom-atom edges by target and source; number their pairs of atoms and mark the first edge of each."""
    source, target = edges.edge_index.long()
    keys, order = torch.sort(row[target] * row.shape[0] + source, stable=True)
    is_new = torch.ones_like(keys, dtype=torch.bool)
    is_new[1:] = keys[1:] != keys[:-1]
    a2a = TargetSorted(source[order], target[order], edges.cell_offsets[order].long())
    return a2a, torch.cumsum(is_new, 0) - 1, is_new


def _count_edges(
    row: Tensor, main: TargetSorted, graphs: Graphs, a2a: TargetSorted, is_new_pair: Tensor, *, one_block: bool
) -> AtomRows:
    """Cut rows into blocks by their numbers of edges; all numbers come in one transfer to the host."""
    num_atoms = row.shape[0]
    ends = main.target, graphs.a2ee2a.edge_index[1], graphs.qint.edge_index[1], graphs.qint.edge_index[0]
    numbers = [group_counts(row[end.long()], num_atoms) for end in ends]
    pairs = torch.zeros_like(row).index_add_(0, row[a2a.target], is_new_pair.long())
    table = torch.stack([*numbers, pairs])
    counts = [GroupCounts(*both) for both in zip(table, table.cpu().numpy(), strict=True)]
    cost = _RUN_COST.get(row.device.type, _RUN_COST["cuda"])
    whole = one_block or not num_atoms
    sizes = (num_atoms,) if whole else tuple(runs_of_like_size(counts[0].on_host, cost))
    return AtomRows(row, sizes, *counts)


def _same_image(
    main: TargetSorted, main_blocks: BlockedLayout, other: TargetSorted, other_blocks: BlockedLayout
) -> tuple[Tensor, ...]:
    first = main_blocks.blocks(_keys_at(main.image_keys(), main_blocks.slot, main_blocks.num_slots))
    second = other_blocks.blocks(_keys_at(other.image_keys(), other_blocks.slot, other_blocks.num_slots, fill=-2))
    return tuple(ours[:, :, None] == theirs[:, None, :] for ours, theirs in zip(first, second, strict=True))


def _keys_at(keys: Tensor, slot: Tensor, num_slots: int, fill: int = -1) -> Tensor:
    """(num_slots,) image keys at their places; `fill`, which no real key equals, where there is no edge."""
    # A source of index 0 with a negative offset has a small negative key, far from both fill values.
    empty = torch.full((num_slots,), fill * (1 << 62), dtype=torch.long, device=keys.device)
    return empty.index_copy_(0, slot, keys)


@dataclass(frozen=True)
class _Ends:
    """Those rows of atoms where qint edges end (or start), and the main edges of their atoms.

    Attributes:
        number: (N,) running number of each such row, −1 for the others.
        per_block: how many of them each block holds.
        edges: (edges,) main edges that end in them.
        of_edge: (edges,) the number of the row of each.
        main: numbers of those edges.
        qint: numbers of qint edges.
    """

    number: Tensor
    per_block: list[int]
    edges: Tensor
    of_edge: Tensor
    main: GroupCounts
    qint: GroupCounts

    @classmethod
    def of(cls, rows: AtomRows, main_row: Tensor, qint: GroupCounts) -> _Ends:
        """Of rows with a positive number of qint edges; `main_row` is the row of each main edge's target."""
        here, on_host = qint.on_device > 0, qint.on_host > 0
        number = torch.where(here, torch.cumsum(here, 0) - 1, -1)
        index = chosen(here, int(on_host.sum()))
        main = GroupCounts(rows.main.on_device[index], rows.main.on_host[on_host])
        edges = chosen(here[main_row], int(main.on_host.sum()))
        return cls(
            number=number,
            per_block=[int(part.sum()) for part in np.split(on_host, np.cumsum(rows.sizes)[:-1])],
            edges=edges,
            of_edge=number[main_row[edges]],
            main=main,
            qint=GroupCounts(qint.on_device[index], qint.on_host[on_host]),
        )


def _build_quadruplets(edges: EdgeSet, main: TargetSorted, rows: AtomRows) -> QuadrupletTopology:
    qint, _ = TargetSorted.of(edges, rows.row)
    packed = pack_offsets(qint.cell_offsets)
    main_row, main_keys = rows.row[main.target], main.image_keys()

    sources = _Ends.of(rows, main_row, rows.qint_out)
    source_row = sources.number[rows.row[qint.source]]
    input_layout = PaddedLayout.of(sources.of_edge, sources.main)
    num_inputs = input_layout.num_groups * input_layout.width
    input_keys = _keys_at(main_keys[sources.edges], input_layout.slot, num_inputs).view(-1, input_layout.width)
    reverse_keys = (qint.target << 3 * _BITS) - packed
    input_mask = input_layout.mask()[source_row] & (input_keys[source_row] != reverse_keys[:, None])

    targets = _Ends.of(rows, main_row, rows.qint_in)
    slots = PaddedLayout.of(targets.number[rows.row[qint.target]], targets.qint)
    filled = [size for size in targets.per_block if size]
    output_layout = BlockedLayout.of(targets.of_edge, targets.main, filled)
    qint_slots = torch.zeros(slots.num_groups * slots.width, dtype=torch.long, device=packed.device)
    qint_slots.index_copy_(0, slots.slot, torch.arange(qint.num_edges, device=packed.device))
    qint_of_output = qint_slots.view(slots.num_groups, slots.width)[targets.of_edge]
    own_keys = main_keys[targets.edges]
    output_mask = slots.mask()[targets.of_edge] & (qint.image_keys()[qint_of_output] != own_keys[:, None])

    # d→b closes the triangle with c→a if d is c and its offset relative to b is o_ca − o_ba.
    closing_keys = own_keys[:, None] - packed[qint_of_output]
    matches = input_keys[source_row[qint_of_output]] == closing_keys[..., None]
    found, slot = matches.max(dim=-1)
    closing_edge = torch.nonzero((found & output_mask).view(-1)).view(-1)
    closing_input = (qint_of_output * input_layout.width + slot).view(-1)[closing_edge]
    row = torch.div(closing_edge, slots.width, rounding_mode="floor")
    return QuadrupletTopology(
        qint=qint,
        source_row=source_row,
        input_edges=sources.edges,
        input_layout=input_layout,
        input_mask=input_mask,
        slots=slots,
        output_edges=targets.edges,
        output_row=targets.of_edge,
        output_layout=output_layout,
        output_mask=output_mask,
        qint_of_output=qint_of_output,
        closing_edge=closing_edge,
        closing_place=output_layout.slot[row] * slots.width + closing_edge % slots.width,
        closing_input=closing_input,
    )
