"""The four graphs of one structure or of a whole batch of concatenated structures, from one search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from jmp_data.errors import InvalidStructureError
from jmp_data.graphs.radius_graph import Edges
from jmp_data.graphs.settings import GraphSettings
from jmp_data.graphs.truncation import check_geometry

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class FourGraphs:
    """The nested graphs of GemNet-OC, before the main graph is symmetrised (the model does that).

    Attributes:
        main: edges that carry embeddings.
        a2a: atom-to-atom messages; the widest search.
        a2ee2a: atom-to-edge and edge-to-atom messages.
        qint: middle edges of quadruplets, after the tag filter.
    """

    main: Edges
    a2a: Edges
    a2ee2a: Edges
    qint: Edges


def four_graphs(
    positions: Any,
    cell: Any,
    pbc: Any,
    tags: Any,
    settings: GraphSettings,
    *,
    edge_dropout: float = 0.0,
    rng: np.random.Generator | None = None,
) -> FourGraphs:
    """All four graphs of one structure.

    The a2a graph is searched and truncated; then, in training, each of its directed edges is dropped with probability
    `edge_dropout`; the others keep the nearest of what is left, and qint loses the edges without a tagged end.

    Args:
        positions: (natoms, 3), Å.
        cell: (3, 3), Å, or None where nothing is periodic.
        pbc: (3,) bool.
        tags: (natoms,) integer.
        settings: cutoff, limits and qint tags.
        edge_dropout: probability, 0 to 1.
        rng: source of the dropout; required with it.

    Returns:
        Edges in canonical order. Graphs may be empty.

    Raises:
        InvalidStructureError: see `radius_graph`; also tags of another length.
    """
    positions, cell, pbc = check_geometry(positions, cell, pbc)
    return batch_four_graphs(
        positions, cell[None], pbc[None], [len(positions)], tags, settings, edge_dropout=edge_dropout, rng=rng
    )


def batch_four_graphs(
    positions: Any,
    cell: Any,
    pbc: Any,
    natoms: Any,
    tags: Any,
    settings: GraphSettings | Sequence[GraphSettings],
    *,
    edge_dropout: float = 0.0,
    rng: np.random.Generator | None = None,
) -> FourGraphs:
    """All four graphs of B concatenated structures with N atoms in all; releases the GIL while it searches.

    Args:
        positions: (N, 3), Å.
        cell: (B, 3, 3), Å; the cell of a structure without periodicity is not looked at.
        pbc: (B, 3) bool.
        natoms: (B,) integer.
        tags: (N,) integer.
        settings: for all structures, or one for each.
        edge_dropout: probability, 0 to 1.
        rng: source of the dropout; required with it. One number is drawn for each structure.

    Returns:
        Edges with batch-global atom indices, in canonical order.

    Raises:
        InvalidStructureError: misshapen or non-finite arrays, a flat periodic cell; the message says which structure.
    """
    from jmp_data.graphs.kernel import expand, search_batch

    positions, cell, pbc, ptr = _check_batch(positions, cell, pbc, natoms)
    each = [settings] * len(pbc) if isinstance(settings, GraphSettings) else list(settings)
    if len(each) != len(pbc):
        raise InvalidStructureError(f"{len(each)} graph settings for {len(pbc)} structures", "shape")
    status, structure, *found = search_batch(
        positions,
        cell,
        pbc,
        ptr,
        np.array([s.cutoff for s in each], np.float64),
        neighbor_limits(each),
        tagged_atoms(tags, ptr, each),
        dropout_seeds(len(pbc), edge_dropout, rng),
        float(edge_dropout),
    )
    raise_for_status(status, structure)
    edges = {name: Edges(*expand(g, *found)) for g, name in enumerate(_SEARCH_ORDER)}
    return FourGraphs(**edges)


_SEARCH_ORDER = ("a2a", "main", "a2ee2a", "qint")


def neighbor_limits(settings: Sequence[GraphSettings]) -> npt.NDArray[np.int64]:
    """(B, 4) neighbour limits in the order a2a, main, a2ee2a, qint."""
    return np.array([[getattr(s, name) for name in _SEARCH_ORDER] for s in settings], np.int64).reshape(-1, 4)


def tagged_atoms(tags: Any, ptr: Array, settings: Sequence[GraphSettings]) -> npt.NDArray[np.bool_]:
    """(N,) whether each atom has one of the qint tags of its structure."""
    tags = np.asarray(tags)
    if tags.shape != (ptr[-1],):
        raise InvalidStructureError(f"tags have shape {tags.shape}, expected ({ptr[-1]},)", "shape")
    if len(tags) and not 0 <= tags.min() <= tags.max() <= 63:
        raise InvalidStructureError(f"tags run from {tags.min()} to {tags.max()}; graphs know 0 to 63", "tags")
    masks = np.array([sum(1 << tag for tag in set(s.qint_tags)) for s in settings], np.uint64)
    of_atom = np.repeat(masks, np.diff(ptr))
    tagged: npt.NDArray[np.bool_] = (of_atom >> tags.astype(np.uint64)) & np.uint64(1) == 1
    return tagged


def dropout_seeds(count: int, edge_dropout: float, rng: np.random.Generator | None) -> npt.NDArray[np.uint64]:
    """(count,) seeds, zero without dropout."""
    if not 0.0 <= edge_dropout <= 1.0:
        raise InvalidStructureError(f"edge_dropout is {edge_dropout}; it is a probability", "graph_settings")
    if edge_dropout == 0.0:
        return np.zeros(count, np.uint64)
    if rng is None:
        raise InvalidStructureError("edge_dropout needs rng, a numpy Generator", "graph_settings")
    return rng.integers(0, 2**63, size=count, dtype=np.uint64)


def raise_for_status(status: int, structure: int) -> None:
    """Turn the kernel's status into an error that names the structure of the batch."""
    from jmp_data.graphs.kernel import FLAT_CELL, OK, TOO_MANY_IMAGES

    if status == OK:
        return
    if status == FLAT_CELL:
        message, code = "periodic cell spans no volume; check cell and pbc", "flat_cell"
    elif status == TOO_MANY_IMAGES:
        message, code = "cutoff spans over 1e8 periodic images; check the units of cell and positions", "tiny_cell"
    else:
        message, code = "an atom lies over 1e9 cells away; check the units of positions", "far_atom"
    raise InvalidStructureError(f"structure {structure}: {message}", code)


def _check_batch(positions: Any, cell: Any, pbc: Any, natoms: Any) -> tuple[Array, Array, Array, Array]:
    natoms = np.asarray(natoms, np.int64)
    positions = np.ascontiguousarray(positions, np.float64)
    pbc = np.ascontiguousarray(pbc, np.bool_)
    cell = np.array(cell, np.float64)
    ptr = np.zeros(len(natoms) + 1, np.int64)
    np.cumsum(natoms, out=ptr[1:])
    expected = {"positions": (ptr[-1], 3), "cell": (len(natoms), 3, 3), "pbc": (len(natoms), 3)}
    for name, array in (("positions", positions), ("cell", cell), ("pbc", pbc)):
        if array.shape != expected[name]:
            raise InvalidStructureError(f"{name} has shape {array.shape}, expected {expected[name]}", "shape")
    cell[~pbc] = 0.0
    finite = np.isfinite(positions).all(axis=1)
    if not finite.all():
        atom = int(np.argmin(finite))
        structure = int(np.searchsorted(ptr, atom, "right")) - 1
        raise InvalidStructureError(f"structure {structure}: positions hold NaN or infinity", "nonfinite_positions")
    if not np.isfinite(cell).all():
        raise InvalidStructureError("cell holds NaN or infinity", "nonfinite_cell")
    return positions, cell, pbc, ptr
