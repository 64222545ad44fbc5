"""Triplets and quadruplets: how many, which, and sums of their angles over each output edge."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from jmp_model.gemnet_oc.angular import COLLINEAR_SINE, cosines, dihedral_angles
from jmp_model.gemnet_oc.config import Collinear
from jmp_model.gemnet_oc.indices import Quadruplets, Triplets, atom_to_edge, edge_to_atom, edge_to_edge, quadruplets
from jmp_model.gemnet_oc.kernels import Geometry
from jmp_model.gemnet_oc.ragged import sum_by_group
from jmp_model.gemnet_oc.topology import Topology
from jmp_model.parity.edges import DIFFERENT, Order
from jmp_model.parity.fixtures import Array, Arrays, Errors, relative_error


def compare_angles(
    topology: Topology, geometry: Geometry, arrays: Arrays, orders: Mapping[str, Order], *, collinear: Collinear
) -> Errors:
    """Compare everything a file holds about triplets and quadruplets."""
    e2e, a2e, e2a = edge_to_edge(topology), atom_to_edge(topology), edge_to_atom(topology)
    quads = quadruplets(topology)
    main, a2ee2a, qint = geometry.main_vector, geometry.a2ee2a_vector, geometry.qint_vector
    errors = _counts(arrays, e2e, a2e, e2a, quads)
    num_main, num_a2ee2a, num_qint = len(main), len(a2ee2a), len(qint)

    def sums(values: Tensor, outer: Tensor, size: int) -> Tensor:
        return sum_by_group(values, outer, size)

    db, ba, ca = main[quads.edge_db], qint[quads.edge_ba], main[quads.edge_ca]
    normals = torch.linalg.cross(ca, ba), torch.linalg.cross(db, ba)
    dihedral = dihedral_angles(*normals)
    if collinear == "right_angle":
        dihedral = torch.where(_on_axis(normals), torch.full_like(dihedral, math.pi / 2), dihedral)
    t_in, t_out = quads.triplets_in, quads.triplets_out
    cos_abd = cosines(main[t_in.inner], qint[t_in.outer])
    cos_cab = cosines(qint[t_out.inner], main[t_out.outer])
    per_edge = {
        "sum_cos_e2e_per_edge": (cosines(main[e2e.inner], main[e2e.outer]), e2e.outer, num_main, "main_sym"),
        "sum_cos_a2e_per_edge": (cosines(a2ee2a[a2e.inner], main[a2e.outer]), a2e.outer, num_main, "main_sym"),
        "sum_cos_e2a_per_a2ee2a_edge": (cosines(main[e2a.inner], a2ee2a[e2a.outer]), e2a.outer, num_a2ee2a, "a2ee2a"),
        "sum_cos_cab_per_edge": (cos_cab, t_out.outer, num_main, "main_sym"),
        "sum_cos_abd_per_qint_edge": (cos_abd, t_in.outer, num_qint, "qint"),
        "sum_dihedral_per_edge": (dihedral, quads.edge_ca, num_main, "main_sym"),
        "num_quads_per_edge": (torch.ones_like(dihedral), quads.edge_ca, num_main, "main_sym"),
    }
    for name, (values, outer, size, edges) in per_edge.items():
        if name in arrays and edges in orders:
            errors[name] = relative_error(sums(values, outer, size)[orders[edges]], arrays[name])
    errors |= _explicit_lists(arrays, orders, {"e2e": e2e, "a2e": a2e, "e2a": e2a}, quads)
    return errors


def has_rounding_noise(topology: Topology, geometry: Geometry) -> bool:
    """Whether rounding decides the dihedral of some quadruplet whose first or last atom lies on its axis.

    Images of one atom along a lattice vector are collinear too, but exactly so: their normals vanish without rounding.
    """
    quads = quadruplets(topology)
    db, ba = geometry.main_vector[quads.edge_db], geometry.qint_vector[quads.edge_ba]
    ca = geometry.main_vector[quads.edge_ca]
    normals = torch.cat([torch.linalg.cross(ca, ba), torch.linalg.cross(db, ba)]).norm(dim=-1)
    return bool(((normals > 0) & (normals < COLLINEAR_SINE)).any())


def _on_axis(normals: tuple[Tensor, Tensor]) -> Tensor:
    near: Tensor = torch.minimum(normals[0].norm(dim=-1), normals[1].norm(dim=-1)) < COLLINEAR_SINE
    return near


def _counts(arrays: Arrays, e2e: Triplets, a2e: Triplets, e2a: Triplets, quads: Quadruplets) -> Errors:
    if "counts" not in arrays:
        return {}
    ours = {
        "trip_e2e": len(e2e.inner),
        "trip_a2e": len(a2e.inner),
        "trip_e2a": len(e2a.inner),
        "quad_triplet_in": len(quads.triplets_in.inner),
        "quad_triplet_out": len(quads.triplets_out.inner),
        "quad": len(quads.edge_db),
    }
    stored = {str(name): int(count) for name, count in zip(arrays["count_names"], arrays["counts"], strict=True)}
    return {"counts": max(relative_error(ours.get(name, -1), count) for name, count in stored.items())}


_LISTS = {
    "trip_e2e": ("main_sym", "main_sym"),
    "trip_a2e": ("a2ee2a", "main_sym"),
    "trip_e2a": ("main_sym", "a2ee2a"),
    "quad_triplet_in": ("main_sym", "qint"),
    "quad_triplet_out": ("qint", "main_sym"),
}


def _explicit_lists(
    arrays: Arrays, orders: Mapping[str, Order], triplets: Mapping[str, Triplets], quads: Quadruplets
) -> Errors:
    ours = {f"trip_{name}": value for name, value in triplets.items()}
    ours |= {"quad_triplet_in": quads.triplets_in, "quad_triplet_out": quads.triplets_out}
    errors: Errors = {}
    for name, (inner, outer) in _LISTS.items():
        if f"{name}_in" in arrays and inner in orders and outer in orders:
            found = np.column_stack([ours[name].inner.numpy(), ours[name].outer.numpy()])
            stored = np.column_stack([orders[inner][arrays[f"{name}_in"]], orders[outer][arrays[f"{name}_out"]]])
            errors[name] = _equal_sets(found, stored)
    if "quad_out" in arrays and {"main_sym", "qint"} <= orders.keys():
        t_in, t_out = arrays["quad_trip_in_to_quad"], arrays["quad_trip_out_to_quad"]
        main, qint = orders["main_sym"], orders["qint"]
        stored = np.column_stack(
            [
                main[arrays["quad_triplet_in_in"][t_in]],
                qint[arrays["quad_triplet_out_in"][t_out]],
                main[arrays["quad_out"]],
            ]
        )
        found = np.column_stack([quads.edge_db.numpy(), quads.edge_ba.numpy(), quads.edge_ca.numpy()])
        errors["quad"] = _equal_sets(found, stored)
    return errors


def _equal_sets(ours: Array, stored: Array) -> float:
    ours, stored = ours[np.lexsort(ours.T)], stored[np.lexsort(stored.T)]
    return 0.0 if np.array_equal(ours, stored) else DIFFERENT
