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
    cell = np.where(block.pbc[:, :, None], block.cell.astype(np.float64), 0.0)
    # Open axes get a lattice vector of their own, so that every cell can be inverted; they are never rounded over.
    full = _fill_open_axes(cell, block.pbc)
    inverse = np.linalg.inv(full)
    periodic = block.pbc.astype(np.float64)
    squares = _nearest_squares(block.positions, full @ full.transpose(0, 2, 1), inverse, periodic, block.ptr)
    nearest: Array = np.sqrt(squares)
    nearest[nearest > limit] = np.inf
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
    filled[~pbc.any(axis=1)] = np.eye(3)
    for row in np.flatnonzero(~pbc.all(axis=1) & pbc.any(axis=1)):
        known = cell[row][pbc[row]]
        # The right singular vectors beyond the rank span what the periodic vectors leave.
        filled[row, ~pbc[row]] = np.linalg.svd(known)[2][len(known) :]
    return filled


# Reassociation and no NaN let the compiler take eight pairs at once; geometry is finite here.
@njit(cache=True, nogil=True, fastmath={"reassoc", "nnan", "nsz", "contract"})
def _nearest_squares(positions: Array, metrics: Array, inverses: Array, periodic: Array, ptr: Array) -> Array:
    """(n,) smallest squared distance of each structure, Å²; infinity for a single atom.

    Args:
        positions: (N, 3), Å.
        metrics: (n, 3, 3) products of the lattice vectors, Å².
        inverses: (n, 3, 3) inverse cells, 1/Å.
        periodic: (n, 3) 1 along periodic axes, else 0.
        ptr: (n + 1,).
    """
    nearest = np.full(len(ptr) - 1, np.inf)
    most = 0
    for row in range(len(nearest)):
        most = max(most, ptr[row + 1] - ptr[row])
    u, v, w = np.empty(most), np.empty(most), np.empty(most)
    for row in range(len(nearest)):
        start, natoms = ptr[row], ptr[row + 1] - ptr[row]
        inverse, metric = inverses[row], metrics[row]
        # Factors of 0 keep the rounding out of open axes without a branch.
        along_u, along_v, along_w = periodic[row, 0], periodic[row, 1], periodic[row, 2]
        for atom in range(natoms):
            x, y, z = positions[start + atom, 0], positions[start + atom, 1], positions[start + atom, 2]
            u[atom] = x * inverse[0, 0] + y * inverse[1, 0] + z * inverse[2, 0]
            v[atom] = x * inverse[0, 1] + y * inverse[1, 1] + z * inverse[2, 1]
            w[atom] = x * inverse[0, 2] + y * inverse[1, 2] + z * inverse[2, 2]
        uu, vv, ww = metric[0, 0], metric[1, 1], metric[2, 2]
        vw, uw, uv = 2 * metric[1, 2], 2 * metric[0, 2], 2 * metric[0, 1]
        smallest = np.inf
        for first in range(natoms):
            u0, v0, w0 = u[first], v[first], w[first]
            for second in range(first + 1, natoms):
                du, dv, dw = u[second] - u0, v[second] - v0, w[second] - w0
                du -= along_u * np.rint(du)
                dv -= along_v * np.rint(dv)
                dw -= along_w * np.rint(dw)
                square = du * (uu * du + uv * dv + uw * dw) + dv * (vv * dv + vw * dw) + dw * (ww * dw)
                smallest = min(smallest, square)
        nearest[row] = max(smallest, 0.0)
    return nearest
