"""pymatgen's compiled `find_points_in_spheres`."""

from __future__ import annotations

import numpy as np
from pymatgen.optimization.neighbors import find_points_in_spheres

from jmp_data.graphs.backends import Array
from jmp_data.graphs.backends.proposals import graph_of_proposals


def _points_in_spheres(wrapped: Array, cell: Array, pbc: Array, cutoff: float) -> tuple[Array, Array, Array]:
    target, source, offsets, _ = find_points_in_spheres(
        all_coords=wrapped,
        center_coords=wrapped,
        r=cutoff,
        pbc=pbc.astype(np.int64),
        lattice=np.ascontiguousarray(cell),
        tol=1e-8,
    )
    return source, target, offsets


search = graph_of_proposals(_points_in_spheres)
