"""Matching our edges with stored ones: order is free, an edge is known by its source, target and cell offset."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from jmp_data.graphs import FourGraphs
from jmp_model.gemnet_oc.graphs import GRAPH_NAMES
from jmp_model.gemnet_oc.kernels import Geometry
from jmp_model.gemnet_oc.topology import TargetSorted, Topology
from jmp_model.parity.fixtures import Array, Arrays, Errors, relative_error

Order = npt.NDArray[np.intp]
DIFFERENT = 1.0
"""Error reported where edge sets are not equal."""


def edge_rows(source: Array, target: Array, cell_offsets: Array) -> Array:
    """(edges, 5) target, source, offset."""
    return np.column_stack([target, source, cell_offsets]).astype(np.int64)


def sorted_rows(edges: TargetSorted) -> Array:
    """`edge_rows` of our edges."""
    return edge_rows(edges.source.numpy(), edges.target.numpy(), edges.cell_offsets.numpy())


def stored_rows(arrays: Arrays, name: str) -> Array:
    """`edge_rows` of a stored graph; offsets are zero where a file has none."""
    index = arrays[f"{name}_edge_index"]
    offsets = arrays.get(f"{name}_cell_offset", np.zeros((index.shape[1], 3)))
    return edge_rows(index[0], index[1], offsets)


def match_edges(ours: Array, stored: Array) -> Order | None:
    """Permutation with `ours[order] == stored`; None if the sets differ."""
    if ours.shape != stored.shape:
        return None
    by_ours, by_stored = np.lexsort(ours.T[::-1]), np.lexsort(stored.T[::-1])
    if not np.array_equal(ours[by_ours], stored[by_stored]):
        return None
    order = np.empty(len(ours), np.intp)
    order[by_stored] = by_ours
    return order


def compare_built_graphs(built: FourGraphs, arrays: Arrays) -> Errors:
    """Edge sets built from positions against the stored ones."""
    errors = {}
    for name in GRAPH_NAMES:
        edges = getattr(built, name)
        ours = edge_rows(edges.edge_index[0], edges.edge_index[1], edges.cell_offsets)
        errors[f"built_{name}_edges"] = 0.0 if match_edges(ours, stored_rows(arrays, name)) is not None else DIFFERENT
    return errors


def has_ties(arrays: Arrays, limits: tuple[int, ...], *, gap: float = 1e-6) -> bool:
    """Whether a truncation limit falls inside a shell of equally distant neighbours, where any choice is as good."""
    if "a2a_distance" not in arrays:
        return False
    target, distance = arrays["a2a_edge_index"][1], arrays["a2a_distance"]
    order = np.lexsort((distance, target))
    target, distance = target[order], distance[order]
    rank = np.arange(len(target)) - np.searchsorted(target, target)
    boundary = np.isin(rank, limits) & (rank > 0)
    at = np.flatnonzero(boundary)
    return bool((distance[at] - distance[at - 1] < gap).any())


def compare_geometry(topology: Topology, geometry: Geometry, arrays: Arrays) -> tuple[Errors, dict[str, Order]]:
    """Symmetrised main graph, lengths and directions; also how to bring our edges into stored order.

    Raises nothing: an edge set that differs is reported and left out of the orders.
    """
    edge_sets: dict[str, tuple[TargetSorted | None, Any, Any]] = {
        "main_sym": (topology.main, geometry.main_distance, geometry.main_vector),
        "a2ee2a": (topology.a2ee2a, geometry.a2ee2a_distance, geometry.a2ee2a_vector),
        "qint": (topology.quads.qint if topology.quads else None, geometry.qint_distance, geometry.qint_vector),
        "a2a": (topology.a2a, geometry.a2a_distance, None),
    }
    errors: Errors = {}
    orders: dict[str, Order] = {}
    for name, (edges, distance, vector) in edge_sets.items():
        if f"{name}_edge_index" not in arrays:
            continue
        rows = sorted_rows(edges) if edges is not None else np.zeros((0, 5), np.int64)
        order = match_edges(rows, stored_rows(arrays, name))
        errors[f"{name}_edges"] = DIFFERENT if order is None else 0.0
        if order is None:
            continue
        orders[name] = order
        if f"{name}_distance" in arrays:
            errors[f"{name}_distance"] = relative_error(distance[order], arrays[f"{name}_distance"])
        if vector is not None and f"{name}_vector" in arrays:
            errors[f"{name}_vector"] = relative_error(vector[order], arrays[f"{name}_vector"])
    if "main_sym" in orders and "main_sym_id_swap" in arrays:
        order = orders["main_sym"]
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        swap = back[topology.main_swap.numpy()[order]]
        errors["main_sym_id_swap"] = 0.0 if np.array_equal(swap, arrays["main_sym_id_swap"]) else DIFFERENT
    return errors, orders
