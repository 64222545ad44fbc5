"""Batched graphs in plain torch operations on the device of the batch, equal to the NumPy ones to the last edge.

Made for a training step on a GPU: nothing is copied to the host but a handful of counts, which size the arrays.
Every operation is elementwise, a scan or a stable sort in float64 and int64, so the bits do not depend on the device.

Shapes: N atoms, B structures, I images, P pairs of a target and an image, E edges.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from jmp_data.errors import InvalidStructureError
from jmp_data.graphs.dropout import surviving_edges
from jmp_data.graphs.inputs import check_cutoff, check_max_neighbors
from jmp_data.graphs.settings import SEARCH_ORDER, GraphSettings, tabulate_settings
from jmp_data.graphs.truncation import SELF_DISTANCE, TIE_RESOLUTION

MAX_IMAGES: Final = 100_000_000
PAIRS_AT_ONCE: Final = 32_000_000
_MARGIN: Final = 1e-6  # Å; pruning may only ever be too generous
_FLAT: Final = 1e-12


@dataclass(frozen=True, eq=False)
class TensorEdges:
    """Directed edges of a batch, sorted by target, then source, then cell offset.

    Attributes:
        edge_index: (2, E) int64; row 0 source, row 1 target, batch-global.
        cell_offsets: (E, 3) int32.
    """

    edge_index: Tensor
    cell_offsets: Tensor


@dataclass(frozen=True, eq=False)
class _Batch:
    """Checked inputs in float64: open rows of `cell` are zero; `reciprocal` rows give fractional coordinates."""

    positions: Tensor
    cell: Tensor
    pbc: Tensor
    natoms: Tensor
    structure: Tensor
    cutoff: Tensor
    reciprocal: Tensor


@dataclass(frozen=True, eq=False)
class _Images:
    """What targets may see, and how atoms were wrapped.

    Attributes:
        source: (I,) atom.
        offsets: (I, 3) int64 cell offset, seen from a target that needed no wrapping.
        places: (3, I) wrapped coordinates, Å.
        count: (B,) images of each structure.
        wrap: (N, 3) int64 cells by which each atom was moved.
        wrapped: (3, N) wrapped coordinates, Å.
    """

    source: Tensor
    offsets: Tensor
    places: Tensor
    count: Tensor
    wrap: Tensor
    wrapped: Tensor


def batch_radius_graph(
    positions: Tensor, cell: Tensor, pbc: Tensor, natoms: Tensor, *, cutoff: float, max_neighbors: int | None = None
) -> tuple[TensorEdges, Tensor]:
    """Radius graph of B concatenated structures; see `jmp_data.graphs.radius_graph` for the rules.

    Args:
        positions: (N, 3), Å, any floating type.
        cell: (B, 3, 3), Å.
        pbc: (B, 3) bool.
        natoms: (B,) integer.
        cutoff: Å.
        max_neighbors: edges kept per target; None keeps all.

    Returns:
        The edges, and their lengths (E,) float64 in Å (no gradient).

    Raises:
        InvalidStructureError: a periodic cell without volume, or one far too small for the cutoff.
    """
    check_cutoff(cutoff)
    if max_neighbors is not None:
        check_max_neighbors(max_neighbors)
    batch = _prepare(positions, cell, pbc, natoms, torch.full((len(pbc),), cutoff, dtype=torch.float64))
    source, target, offsets, squared = _search(batch)
    if max_neighbors is not None:
        order, rank, _ = _by_distance(squared, target, len(batch.positions))
        keep = torch.empty_like(rank, dtype=torch.bool).scatter_(0, order, rank < max_neighbors)
        source, target, offsets, squared = source[keep], target[keep], offsets[keep], squared[keep]
    return TensorEdges(torch.stack([source, target]), offsets.to(torch.int32)), squared.sqrt()


def batch_four_graphs(
    positions: Tensor,
    cell: Tensor,
    pbc: Tensor,
    natoms: Tensor,
    tags: Tensor,
    settings: GraphSettings | Sequence[GraphSettings],
    *,
    edge_dropout: float = 0.0,
    seeds: Tensor | None = None,
) -> dict[str, TensorEdges]:
    """The four nested graphs of B concatenated structures; see `jmp_data.graphs.batch_four_graphs` for the rules.

    Args:
        positions: (N, 3), Å, any floating type.
        cell: (B, 3, 3), Å.
        pbc: (B, 3) bool.
        natoms: (B,) integer.
        tags: (N,) integer.
        settings: for all structures, or one for each.
        edge_dropout: probability, 0 to 1.
        seeds: (B,) int64, required with dropout; the same seeds drop the same edges on every device.

    Returns:
        Edges by graph name.

    Raises:
        InvalidStructureError: a flat periodic cell, one far too small for the cutoff, settings that do not fit.
    """
    table = tabulate_settings(settings, len(pbc))
    batch = _prepare(positions, cell, pbc, natoms, torch.from_numpy(table.cutoffs))
    tagged = (torch.from_numpy(table.tag_masks).to(tags.device)[batch.structure] >> tags) & 1 == 1
    limits = torch.from_numpy(table.limits).to(positions.device)
    source, target, offsets, squared = _search(batch)
    order, rank, first = _by_distance(squared, target, len(batch.positions))
    limit = limits[batch.structure[target]]
    surviving = rank < limit[:, 0]
    if edge_dropout > 0.0:
        if seeds is None:
            raise InvalidStructureError("edge_dropout needs seeds, one for each structure", "graph_settings")
        surviving &= _survives_dropout(batch, source, target, offsets, edge_dropout, seeds)[order]
        before = torch.cumsum(surviving, 0) - surviving.long()
        rank = before - before[first]
    keep = torch.stack([surviving, *(surviving & (rank < limit[:, g]) for g in (1, 2, 3))])
    keep = torch.empty_like(keep).scatter_(1, order.expand(4, -1), keep)
    keep[3] &= tagged[source] | tagged[target]
    return _select(keep, source, target, offsets)


def _by_distance(squared: Tensor, target: Tensor, natoms: int) -> tuple[Tensor, Tensor, Tensor]:
    """Edges sorted by target, then rounded distance, ties in canonical order.

    Returns:
        For each sorted place: the edge, its rank at its target, and the place where that target begins. As edges come
        sorted by target, place and edge have the same target.
    """
    nearest_first = torch.argsort(torch.floor(squared / TIE_RESOLUTION + 0.5), stable=True)
    order = nearest_first[torch.argsort(target[nearest_first], stable=True)]
    atoms = torch.arange(natoms, device=target.device)
    first = torch.searchsorted(target, atoms)[target]
    return order, torch.arange(len(target), device=target.device) - first, first


def _survives_dropout(
    batch: _Batch, source: Tensor, target: Tensor, offsets: Tensor, edge_dropout: float, seeds: Tensor
) -> Tensor:
    structure = batch.structure[target]
    begin = (torch.cumsum(batch.natoms, 0) - batch.natoms)[structure]
    seed = seeds.to(source.device)[structure]
    survives: Tensor = surviving_edges(seed, source - begin, target - begin, offsets, edge_dropout)
    return survives


def _select(keep: Tensor, source: Tensor, target: Tensor, offsets: Tensor) -> dict[str, TensorEdges]:
    """Gather the edges of each row of `keep` with one look at the counts."""
    counts = keep.sum(1).tolist()
    graphs = {}
    for name, mask, count in zip(SEARCH_ORDER, keep, counts, strict=True):
        slot = torch.where(mask, torch.cumsum(mask, 0) - 1, count)
        edge = torch.empty(count + 1, dtype=torch.int64, device=mask.device)
        edge = edge.scatter_(0, slot, torch.arange(len(mask), device=mask.device))[:count]
        graphs[name] = TensorEdges(torch.stack([source[edge], target[edge]]), offsets[edge].to(torch.int32))
    return graphs


def _prepare(positions: Tensor, cell: Tensor, pbc: Tensor, natoms: Tensor, cutoff: Tensor) -> _Batch:
    device = positions.device
    positions, pbc, natoms = positions.detach().double(), pbc.bool(), natoms.to(device).long()
    cell = torch.where(pbc[:, :, None], cell.detach().double(), 0.0)
    structure = torch.repeat_interleave(natoms, output_size=len(positions))
    full = _complete_cells(cell, pbc)
    crosses = torch.stack([torch.linalg.cross(full[:, i - 2], full[:, i - 1]) for i in range(3)], 1)
    volume = (full[:, 0] * crosses[:, 0]).sum(1)
    lengths = full.norm(dim=2).prod(1)
    reciprocal = crosses / torch.where(volume.abs() > _FLAT * lengths, volume, torch.nan)[:, None, None]
    return _Batch(positions, cell, pbc, natoms, structure, cutoff.to(device), reciprocal)


def _complete_cells(cell: Tensor, pbc: Tensor) -> Tensor:
    """Open rows become unit vectors normal to the periodic ones."""
    count = pbc.sum(1)[:, None, None]
    missing = ~pbc[:, :, None]
    axis = pbc.long().argmax(1)
    only = cell.gather(1, axis[:, None, None].expand(-1, 1, 3)).squeeze(1)
    helper = torch.nn.functional.one_hot(only.abs().argmin(1), 3).to(cell.dtype)
    first = torch.nn.functional.normalize(torch.linalg.cross(only, helper), dim=1)
    second = torch.nn.functional.normalize(torch.linalg.cross(only, first), dim=1)
    rows = torch.arange(3, device=cell.device)
    pair = torch.where(((rows - axis[:, None]) % 3 == 1)[:, :, None], first[:, None], second[:, None])
    crosses = torch.stack([torch.linalg.cross(cell[:, i - 2], cell[:, i - 1]) for i in range(3)], 1)
    normal = torch.nn.functional.normalize(crosses, dim=2)
    eye = torch.eye(3, dtype=cell.dtype, device=cell.device)
    filler = torch.where(count == 2, normal, torch.where(count == 1, pair, eye))
    return torch.where(missing, filler, cell)


def _search(batch: _Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Every edge in canonical order: source, target, cell_offsets (E, 3) int64, squared distance in Å²."""
    images = _list_images(batch)
    per_target = images.count[batch.structure]
    last = torch.cumsum(per_target, 0)
    first_image = (torch.cumsum(images.count, 0) - images.count)[batch.structure]
    pair_to_image = first_image - (last - per_target)
    reach = (batch.cutoff + _MARGIN).square()[batch.structure]
    parts = [(per_target[:0], per_target[:0], images.offsets[:0], reach[:0])]
    for begin, end, first, pairs in _chunks(last):
        targets = torch.arange(begin, end, device=last.device)
        target = torch.repeat_interleave(targets, per_target[begin:end], output_size=pairs)
        image = torch.arange(first, first + pairs, device=last.device) + pair_to_image[target]
        squared = torch.zeros_like(target, dtype=reach.dtype)
        for places, wrapped in zip(images.places, images.wrapped, strict=True):
            squared += (places[image] - wrapped[target]).square_()
        near = torch.nonzero(squared <= reach[target]).squeeze(1)
        parts.append(_exact_edges(batch, images, image[near], target[near]))
    source, target, offsets, squared = (torch.cat(column) for column in zip(*parts, strict=True))
    return source, target, offsets, squared


def _exact_edges(
    batch: _Batch, images: _Images, image: Tensor, target: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The pairs that are edges by the squared distance that every backend computes alike."""
    source, structure = images.source[image], batch.structure[target]
    offsets = images.offsets[image] + images.wrap[target]
    x = offsets.double()
    a, b, c = batch.cell[structure].unbind(1)
    shift = (x[:, 0:1] * a + x[:, 1:2] * b) + x[:, 2:3] * c
    delta = (batch.positions[source] - batch.positions[target]) + shift
    delta = delta * delta
    squared = (delta[:, 0] + delta[:, 1]) + delta[:, 2]
    cutoff = batch.cutoff * batch.cutoff
    limit = torch.where(batch.pbc.any(1), cutoff, torch.nextafter(cutoff, torch.zeros_like(cutoff)))
    inside = torch.nonzero((squared <= limit[structure]) & (squared > SELF_DISTANCE * SELF_DISTANCE)).squeeze(1)
    return source[inside], target[inside], offsets[inside], squared[inside]


def _chunks(last: Tensor) -> Iterator[tuple[int, int, int, int]]:
    """Split the targets so that no chunk has many more than `PAIRS_AT_ONCE` pairs.

    Args:
        last: (N,) pairs of each target and all before it.

    Yields:
        First target, end of the targets, first pair and number of pairs of each chunk.
    """
    total = int(last[-1]) if len(last) else 0
    if total <= PAIRS_AT_ONCE:
        yield 0, len(last), 0, total
        return
    ends = last.cpu()
    begin, done = 0, 0
    while begin < len(last):
        end = max(begin + 1, int(torch.searchsorted(ends, done + PAIRS_AT_ONCE, right=True)))
        yield begin, end, done, int(ends[end - 1]) - done
        begin, done = end, int(ends[end - 1])


def _list_images(batch: _Batch) -> _Images:
    """Images within the cutoff of the box around the wrapped atoms of their structure, by source, then cell offset."""
    structure = batch.structure
    fractional = (batch.positions[:, None] * batch.reciprocal[structure]).sum(2)
    wrap = torch.where(batch.pbc[structure], fractional.floor(), 0.0)
    low, high = _bounds(fractional - wrap, structure, len(batch.pbc))
    heights = batch.cutoff[:, None] * batch.reciprocal.norm(dim=2)
    reach = torch.where(batch.pbc, (high - low).clamp(min=0.0) + heights + _MARGIN, 0.0).clamp(max=1e6).long()
    sizes = 2 * reach + 1
    total = _checked_total(batch, wrap, sizes)
    per_atom = sizes.prod(1)[structure]
    atom = torch.repeat_interleave(per_atom, output_size=total)
    rest = torch.arange(total, device=atom.device) - (torch.cumsum(per_atom, 0) - per_atom)[atom]
    of_image = structure[atom]
    size = sizes[of_image]
    planes = rest // size[:, 2]
    offset = torch.stack([planes // size[:, 1], planes % size[:, 1], rest % size[:, 2]], 1) - reach[of_image]
    cell = batch.cell[structure]
    wrapped = batch.positions - (wrap[:, :, None] * cell).sum(1)
    places = wrapped[atom] + (offset.double()[:, :, None] * cell[atom]).sum(1)
    low, high = _bounds(wrapped, structure, len(batch.pbc))
    outside = torch.maximum(low[of_image] - places, places - high[of_image]).clamp(min=0.0)
    kept = torch.nonzero(outside.square().sum(1) <= (batch.cutoff[of_image] + _MARGIN).square()).squeeze(1)
    source, wrap = atom[kept], wrap.long()
    count = torch.zeros_like(batch.natoms).scatter_add_(0, structure[source], torch.ones_like(source))
    return _Images(
        source, offset[kept] - wrap[source], places[kept].T.contiguous(), count, wrap, wrapped.T.contiguous()
    )


def _bounds(points: Tensor, structure: Tensor, nstructures: int) -> tuple[Tensor, Tensor]:
    """(B, 3) smallest and largest coordinates of each structure."""
    index = structure[:, None].expand(-1, 3)
    low = points.new_full((nstructures, 3), torch.inf).scatter_reduce_(0, index, points, "amin")
    high = points.new_full((nstructures, 3), -torch.inf).scatter_reduce_(0, index, points, "amax")
    return low, high


def _checked_total(batch: _Batch, wrap: Tensor, sizes: Tensor) -> int:
    """Number of images to look at, after the checks that share its trip to the host."""
    flat = ~torch.isfinite(batch.reciprocal).all(2).all(1)
    lost = ~(torch.isfinite(batch.positions) & (wrap.abs() < 2.0**30)).all()
    total = (sizes.double().prod(1) * batch.natoms).sum()
    first_flat, any_flat, any_lost, images = torch.stack(
        [flat.long().argmax().double(), flat.any().double(), lost.double(), total]
    ).tolist()
    if any_flat:
        raise InvalidStructureError(
            f"structure {int(first_flat)}: periodic cell spans no volume; check cell and pbc", "flat_cell"
        )
    if any_lost:
        raise InvalidStructureError("positions hold NaN, infinity or an atom over 1e9 cells away", "far_atom")
    if images > MAX_IMAGES:
        raise InvalidStructureError(
            f"cutoff spans {images:.0f} periodic images; check the units of cell and positions", "tiny_cell"
        )
    return int(images)
