"""The oracle: every pair of atoms through every image that could matter, in plain NumPy. Clear rather than fast."""

from __future__ import annotations

from typing import Final

import numpy as np

from jmp_data.graphs.backends import Array
from jmp_data.graphs.backends.proposals import graph_of_proposals

_PAIRS_AT_ONCE: Final = 2_000_000


def _all_pairs(wrapped: Array, cell: Array, pbc: Array, cutoff: float) -> tuple[Array, Array, Array]:
    natoms = len(wrapped)
    images = _images(cell, pbc, cutoff)
    shifts = images @ cell
    at_once = max(1, _PAIRS_AT_ONCE // (natoms * len(images)))
    parts = []
    for first in range(0, natoms, at_once):
        targets = wrapped[first : first + at_once]
        vectors = wrapped[None, :, None] + shifts[None, None] - targets[:, None, None]
        target, source, image = np.nonzero((vectors * vectors).sum(axis=-1) <= cutoff * cutoff)
        parts.append((source, target + first, images[image]))
    source, target, offsets = (np.concatenate(column) for column in zip(*parts, strict=True))
    return source, target, offsets


def _images(cell: Array, pbc: Array, cutoff: float) -> Array:
    """Cell offsets that can matter between wrapped atoms, which are less than one cell apart along every axis."""
    cells_in_cutoff = cutoff * np.linalg.norm(np.linalg.inv(cell), axis=0)
    reach = np.where(pbc, np.floor(cells_in_cutoff) + 1, 0).astype(int)
    axes = [np.arange(-r, r + 1) for r in reach]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)


search = graph_of_proposals(_all_pairs)
