"""torch_cluster's `radius`: open boundaries only, and deprecated upstream since June 2026.

Its own neighbour limit keeps arbitrary neighbours, so it is set beyond reach here and the truncation is ours.
"""

from __future__ import annotations

import numpy as np

from jmp_data.errors import MissingExtraError
from jmp_data.graphs.backends import Array
from jmp_data.graphs.backends.proposals import graph_of_proposals

try:
    import torch
    from torch_cluster import radius
except ImportError as error:
    raise MissingExtraError("backend 'torch_cluster' needs: pip install 'jmp-data[torch-cluster]'") from error


def _radius(positions: Array, _cell: Array, _pbc: Array, cutoff: float) -> tuple[Array, Array, Array]:
    points = torch.from_numpy(positions)
    target, source = radius(points, points, cutoff, max_num_neighbors=len(points)).numpy()
    return source, target, np.zeros((len(source), 3), np.int64)


search = graph_of_proposals(_radius)
