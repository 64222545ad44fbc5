"""Graphs of a batch from those stored with its data sets: which can be served, and where they go.

A layer serves a structure if it was built for exactly the graphs that are asked for. A batch may mix such structures
with others, whose graphs are searched; the outcome is the same to the last edge. With edge dropout everything is
searched: dropped edges change the narrower graphs, and finding these anew costs more than the search.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from jmp_data.graphs import Edges, GraphSettings, PackedFourGraphs, batch_four_graphs
from jmp_data.graphs.codec import MEMBERSHIP_BITS, unpack_edges
from jmp_data.mixture import Mixture
from jmp_data.shards.graph_layer import RULE, LayerBlock, LayerSettings
from jmp_data.shards.graph_layer.joining import join_edges
from jmp_data.shards.graph_layer.layer_block import empty_edges
from jmp_data.stream.dataset_order import Ints, Window
from jmp_data.stream.epoch_order import Samples
from jmp_data.stream.gather import by_block

if TYPE_CHECKING:
    from jmp_data.stream.edges import GraphBuilder

Array = npt.NDArray[Any]
LayerOf = Callable[[Window, int], LayerBlock | None]

STORED = "stored"
"""Key of the (B,) bool that says which structures of a batch are served, beside the columns of their edges."""

BYTES_AT_ONCE = 1 << 28
"""Edges, as stored columns, that are taken out of their blocks at a time: as many batches as give about this much."""

_COLUMNS = ("source", "neighbor_counts", "cell_offsets", "membership")
_EDGE_BYTES = 6


@dataclass(frozen=True, eq=False)
class StoredGraphs:
    """Which structures are served.

    Attributes:
        matches: (num_datasets, 2) bool: whether molecules and whether periodic structures of a data set are.
    """

    matches: npt.NDArray[np.bool_]

    @classmethod
    def for_mixture(cls, mixture: Mixture, builder: GraphBuilder) -> StoredGraphs | None:
        """What the layers of a mixture's data sets can serve; None for nothing."""
        if builder.edge_dropout:
            return None
        layers = [getattr(member.dataset, "graph_layer", None) for member in mixture]
        matches = np.array(
            [
                [False, False] if layer is None else _matches(layer.settings, builder, *builder.settings_for(number))
                for number, layer in enumerate(layers)
            ]
        )
        return cls(matches) if matches.any() else None

    @cached_property
    def datasets(self) -> npt.NDArray[np.bool_]:
        """(num_datasets,) which layers are read."""
        found: npt.NDArray[np.bool_] = np.any(self.matches, axis=1)
        return found

    def of_batches(
        self, samples: Samples, counts: Ints, periodic: npt.NDArray[np.bool_], layer_of: LayerOf
    ) -> Iterator[dict[str, Array]]:
        """Stored edges of consecutive batches.

        Args:
            samples: the structures of all batches.
            counts: (num_batches,) structures of each batch.
            periodic: (n,) whether each structure is periodic along any axis.
            layer_of: (window, visit) → stored edges of its block; None where they are not read.

        Returns:
            For each batch the arrays that `GraphBuilder.build` takes beside the geometry; none if nothing is served.
        """
        served, nedges = self._served(samples, periodic, layer_of)
        firsts = np.concatenate([[0], np.cumsum(counts)])
        before = np.concatenate([[0], np.cumsum(nedges)])[firsts] * _EDGE_BYTES
        batch = 0
        while batch < len(counts):
            stop = max(batch + 1, int(np.searchsorted(before, before[batch] + BYTES_AT_ONCE, "right")) - 1)
            part = slice(int(firsts[batch]), int(firsts[stop]))
            packed = _collect(samples.take(part), served[part], nedges[part], layer_of)
            yield from _cut(packed, served[part], nedges[part], samples.natoms[part], counts[batch:stop])
            batch = stop

    def _served(
        self, samples: Samples, periodic: npt.NDArray[np.bool_], layer_of: LayerOf
    ) -> tuple[npt.NDArray[np.bool_], Ints]:
        """(n,) which samples are served, and (n,) their edges."""
        served, nedges = np.zeros(len(samples), np.bool_), np.zeros(len(samples), np.int64)
        for window, visit, chosen in by_block(samples):
            layer = layer_of(window, visit) if self.datasets[window.dataset] else None
            if layer is not None:
                rows = samples.row[chosen]
                fits = self.matches[window.dataset][periodic[chosen].astype(np.int64)] & (layer.nedges[rows] >= 0)
                served[chosen], nedges[chosen] = fits, np.where(fits, layer.edge_counts[rows], 0)
        return served, nedges


def _matches(
    layer: LayerSettings, builder: GraphBuilder, molecule: GraphSettings, periodic: GraphSettings
) -> list[bool]:
    if layer.rule != RULE or not set(builder.names) <= set(layer.names):
        return [False, False]
    return [_plain(molecule) == _plain(layer.molecule), _plain(periodic) == _plain(layer.periodic)]


def _plain(settings: GraphSettings) -> GraphSettings:
    """The same graphs, spelled in one way."""
    return replace(settings, qint_tags=tuple(sorted(set(settings.qint_tags))))


def _collect(samples: Samples, served: npt.NDArray[np.bool_], nedges: Ints, layer_of: LayerOf) -> PackedFourGraphs:
    """Edges of the samples that are served, in their order."""
    natoms = np.where(served, samples.natoms, 0)
    packed = empty_edges(int(natoms.sum()), int(nedges.sum()))
    atoms, edges = np.cumsum(natoms) - natoms, np.cumsum(nedges) - nedges
    for window, visit, group in by_block(samples):
        chosen = group[served[group]]
        layer = layer_of(window, visit) if len(chosen) else None
        if layer is not None:
            layer.copy_to(packed, samples.row[chosen], atoms[chosen], edges[chosen])
    return packed


def _cut(
    packed: PackedFourGraphs, served: npt.NDArray[np.bool_], nedges: Ints, natoms: Ints, counts: Ints
) -> Iterator[dict[str, Array]]:
    atoms_before = np.concatenate([[0], np.cumsum(np.where(served, natoms, 0))])
    edges_before = np.concatenate([[0], np.cumsum(nedges)])
    start = 0
    for stop in np.cumsum(counts).tolist():
        if served[start:stop].any():
            atoms = slice(int(atoms_before[start]), int(atoms_before[stop]))
            edges = slice(int(edges_before[start]), int(edges_before[stop]))
            columns = {n: getattr(packed, n)[atoms if n == "neighbor_counts" else edges] for n in _COLUMNS}
            yield {STORED: served[start:stop], **{f"{STORED}_{name}": column for name, column in columns.items()}}
        else:
            yield {}
        start = stop


def serve(
    arrays: Mapping[str, Array], settings: GraphSettings | Sequence[GraphSettings], names: Sequence[str]
) -> dict[str, Edges]:
    """The graphs of a batch that comes with stored edges.

    Args:
        arrays: geometry of the batch, and what `StoredGraphs.of_batches` gave for it.
        settings: for all structures, or one for each.
        names: which graphs.

    Returns:
        What a search returns.
    """
    stored, natoms = arrays[STORED], arrays["natoms"]
    packed = PackedFourGraphs(**{name: arrays[f"{STORED}_{name}"] for name in _COLUMNS})
    found = _unpack(packed, natoms[stored], names)
    if stored.all():
        return found
    others, atoms = ~stored, np.repeat(~stored, natoms)
    each = settings if isinstance(settings, GraphSettings) else [s for s, n in zip(settings, others, strict=True) if n]
    searched = batch_four_graphs(
        arrays["pos"][atoms], arrays["cell"][others], arrays["pbc"][others], natoms[others], arrays["tags"][atoms], each
    )
    return {name: join_edges(found[name], getattr(searched, name), stored, natoms) for name in names}


def _unpack(packed: PackedFourGraphs, natoms: Array, names: Sequence[str]) -> dict[str, Edges]:
    """The graphs of these names, each in memory of its own."""
    from jmp_data.graphs.expansion import choose_members, count_members

    widest = unpack_edges(packed, natoms)
    bits = np.array([MEMBERSHIP_BITS.get(name, 0) for name in names], np.uint8)
    counts = count_members(packed.membership, bits).tolist()
    whole = "a2a" if "a2a" in names else next((n for n, c in zip(names, counts, strict=True) if c == len(widest)), "")
    graphs = {}
    for name, bit, count in zip(names, bits, counts, strict=True):
        graphs[name] = widest
        if name != whole:
            graphs[name] = Edges(np.empty((2, count), np.int64), np.empty((count, 3), np.int32))
            some = graphs[name].edge_index, graphs[name].cell_offsets
            choose_members(widest.edge_index, widest.cell_offsets, packed.membership, bit, *some)
    return graphs
