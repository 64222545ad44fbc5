"""The radius graph of one structure: who lies within a cutoff of whom, through which periodic image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from jmp_data.graphs.backends import BackendName, choose_backend
from jmp_data.graphs.inputs import check_cutoff, check_geometry, check_max_neighbors


@dataclass(frozen=True, eq=False)
class Edges:
    """Directed edges, sorted by target, then source, then cell offset.

    Attributes:
        edge_index: (2, nedges) int64; row 0 is the source (the neighbour), row 1 the target (the centre).
        cell_offsets: (nedges, 3) int32; the source sits at `positions[source] + cell_offsets @ cell`, with positions as
            given, wrapped or not.
    """

    edge_index: npt.NDArray[np.int64]
    cell_offsets: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return int(self.edge_index.shape[1])


@dataclass(frozen=True, eq=False)
class RadiusGraph(Edges):
    """`Edges` with their lengths.

    Attributes:
        distances: (nedges,) float64, Å.
    """

    distances: npt.NDArray[np.float64]

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        """`edge_index, cell_offsets, distances = radius_graph(...)`."""
        return iter((self.edge_index, self.cell_offsets, self.distances))


def radius_graph(
    positions: Any,
    cell: Any,
    pbc: Any,
    *,
    cutoff: float,
    max_neighbors: int | None = None,
    backend: BackendName = "auto",
) -> RadiusGraph:
    """Find every edge within the cutoff, or the nearest `max_neighbors` of every target atom.

    The list is complete for any cell and any positions: atoms far outside the cell, cells far smaller than the cutoff,
    left-handed and strongly skewed cells, periodicity along some axes only. A pair is an edge if its distance is
    ≤ cutoff where any axis is periodic, < cutoff where none is, and > 0.01 Å. The truncation is strict: exactly
    `max_neighbors` edges, ties broken by source, then cell offset (see `jmp_data.graphs.truncation`).

    Args:
        positions: (natoms, 3), Å; array, list or torch tensor, of any floating type; computed in float64.
        cell: (3, 3), Å, rows are lattice vectors; None where nothing is periodic.
        pbc: (3,) bool, or one for all axes; None means periodic where a cell is given.
        cutoff: Å.
        max_neighbors: edges kept per target; None keeps all.
        backend: which search to use; "auto" is the compiled kernel.

    Returns:
        The edges in canonical order, with lengths; unpacks into edge_index, cell_offsets and distances.

    Raises:
        InvalidStructureError: non-finite or misshapen input, a periodic cell without volume, a cutoff or limit ≤ 0.
        MissingExtraError: the backend's package is not installed.
    """
    check_cutoff(cutoff)
    if max_neighbors is not None:
        check_max_neighbors(max_neighbors)
    positions, cell, pbc = check_geometry(positions, cell, pbc)
    search = choose_backend(backend, pbc)
    edge_index, cell_offsets, distances = search(
        positions, cell, pbc, float(cutoff), max_neighbors and int(max_neighbors)
    )
    return RadiusGraph(edge_index, cell_offsets, distances)
