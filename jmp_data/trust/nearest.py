"""The nearest pair of atoms of each structure, as far as it lies within a short limit; atoms on top of each other too.

A radius graph leaves out pairs without a distance, which here are the worst of all. So pairs are compared one by one,
each through the image that rounding its fractional coordinates finds. That image is the nearest one if the limit is
below half of every height of the cell; structures in thinner cells take the radius graph too, for it sees all images.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from jmp_data.graphs import batch_radius_graph
from jmp_data.schema import Block

Array = npt.NDArray[Any]


def nearest_distances(block: Block, limit: float) -> Array:
    """Distance of the nearest two atoms, or of an atom and an image of itself.

    Args:
        block: structures with finite geometry and cells of some volume.
        limit: Å; larger distances are not looked for.

    Returns:
        (n,) Å; infinite where no pair lies within the limit.
    """
    positions, cell = block.positions.astype(np.float64), block.cell.astype(np.float64)
    # Open axes get a lattice vector of their own, so that every cell can be inverted; they are never rounded over.
    full = np.where(block.pbc[:, :, None], cell, 0.0)
    full = _fill_open_axes(full, block.pbc)
    inverse = np.linalg.inv(full)
    nearest: Array = np.sqrt(_nearest_squares(positions, full, inverse, block.pbc, block.ptr, limit * limit))
    heights = 1 / np.linalg.norm(inverse, axis=1)
    thin = np.flatnonzero((block.pbc & (heights < 2 * limit)).any(axis=1))
    if len(thin):
        some = block.take(thin)
        graph = batch_radius_graph(some.positions, some.cell, some.pbc, some.natoms, cutoff=limit)
        rows = thin[np.repeat(np.arange(len(some)), some.natoms)[graph.edge_index[1]]]
        np.minimum.at(nearest, rows, graph.distances)
    return nearest


def _fill_open_axes(cell: Array, pbc: Array) -> Array:
    """Replace the zero rows of open axes by unit vectors at right angles to the others."""
    filled = cell.copy()
    for row in np.flatnonzero(~pbc.all(axis=1)):
        known = cell[row][pbc[row]]
        # The right singular vectors beyond the rank span what the periodic vectors leave.
        basis = np.linalg.svd(known)[2] if len(known) else np.eye(3)
        filled[row, ~pbc[row]] = basis[len(known) :]
    return filled


@njit(cache=True, nogil=True)
def _nearest_squares(positions: Array, cells: Array, inverses: Array, pbc: Array, ptr: Array, limit: float) -> Array:
    """(n,) smallest squared distance of each structure up to `limit`, else infinity."""
    nearest = np.full(len(ptr) - 1, np.inf)
    shift = np.empty(3)
    for row in range(len(nearest)):
        periodic = pbc[row].any()
        for first in range(ptr[row], ptr[row + 1]):
            for second in range(first + 1, ptr[row + 1]):
                x = positions[second, 0] - positions[first, 0]
                y = positions[second, 1] - positions[first, 1]
                z = positions[second, 2] - positions[first, 2]
                if periodic:
                    for axis in range(3):
                        share = x * inverses[row, 0, axis] + y * inverses[row, 1, axis] + z * inverses[row, 2, axis]
                        shift[axis] = np.rint(share) if pbc[row, axis] else 0.0
                    x -= shift[0] * cells[row, 0, 0] + shift[1] * cells[row, 1, 0] + shift[2] * cells[row, 2, 0]
                    y -= shift[0] * cells[row, 0, 1] + shift[1] * cells[row, 1, 1] + shift[2] * cells[row, 2, 1]
                    z -= shift[0] * cells[row, 0, 2] + shift[1] * cells[row, 1, 2] + shift[2] * cells[row, 2, 2]
                square = x * x + y * y + z * z
                if square <= limit and square < nearest[row]:
                    nearest[row] = square
    return nearest
