"""NVIDIA's nvalchemi-toolkit-ops: Warp kernels, on the GPU where there is one, on the CPU otherwise."""

from __future__ import annotations

from typing import Final

from jmp_data.errors import MissingExtraError
from jmp_data.graphs.backends import Array
from jmp_data.graphs.backends.proposals import graph_of_proposals

try:
    import torch
    from nvalchemiops.torch.neighbors import naive_neighbor_list
except ImportError as error:
    raise MissingExtraError("backend 'nvalchemi' needs: pip install 'jmp-data[nvalchemi]'") from error


_FIRST_ROOM: Final = 256


def _warp_kernel(wrapped: Array, cell: Array, pbc: Array, cutoff: float) -> tuple[Array, Array, Array]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    points, box = torch.from_numpy(wrapped).to(device), torch.from_numpy(cell)[None].to(device)
    periodic = torch.from_numpy(pbc)[None].to(device)
    room = _FIRST_ROOM
    while True:
        # Rows that are too short are filled with arbitrary neighbours; the counts tell.
        source, count, offsets = naive_neighbor_list(points, cutoff, cell=box, pbc=periodic, max_neighbors=room)
        most = int(count.max())
        if most <= room:
            break
        room = most
    filled = torch.arange(room, device=device) < count[:, None]
    target = torch.nonzero(filled)[:, 0]
    return source[filled].cpu().numpy().astype("int64"), target.cpu().numpy(), offsets[filled].cpu().numpy()


search = graph_of_proposals(_warp_kernel)
