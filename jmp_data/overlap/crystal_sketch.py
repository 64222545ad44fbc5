"""Fingerprints of periodic structures that do not know which cell was chosen.

For each pair of elements a, b: the distance from an atom of a to its k-th nearest atom of b, averaged over the atoms of
a. This is the average minimum distance of Widdowson et al. (MATCH Commun. Math. Comput. Chem. 87, 529, 2022) with
elements told apart: it is the same for every cell of a crystal, supercells included, for every rotation, translation,
mirror image and order of atoms, and moves by at most twice the largest displacement of an atom. Distances are cut at a
radius, and atoms beyond it count as lying on it, which changes none of this. Averages of several entries shorten the
list to a fixed length and keep the bound.
"""

# mypy: disable-error-code="no-untyped-def"
# Numba infers the types.

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numba import njit

from jmp_data.graphs import batch_radius_graph

CUTOFF: Final = 6.0
"""Å; neighbours farther away count as lying here."""

NEIGHBORS: Final = 8
"""Nearest atoms of each element around each atom."""

DISTANCES: Final = 32
"""Entries of a fingerprint."""

_BATCH_ATOMS = 4096  # about 300 edges an atom at most, 36 bytes an edge


@njit(cache=True, nogil=True)
def _insert(nearest, distance):
    """Keep the smallest distances, sorted."""
    place = len(nearest) - 1
    if distance >= nearest[place]:
        return
    while place > 0 and nearest[place - 1] > distance:
        nearest[place] = nearest[place - 1]
        place -= 1
    nearest[place] = distance


@njit(cache=True, nogil=True)
def _average_into(sums, members, elements, out):
    """Means over the atoms of each element, in the order of elements, averaged in runs to the length of `out`."""
    total = elements * elements * sums.shape[2]
    chunks = len(out)
    for chunk in range(chunks):
        begin, end = chunk * total // chunks, (chunk + 1) * total // chunks
        end = max(end, begin + 1)
        mean = 0.0
        for flat in range(begin, end):
            pair, k = flat // sums.shape[2], flat % sums.shape[2]
            mean += sums[pair // elements, pair % elements, k] / members[pair // elements]
        out[chunk] = mean / (end - begin)


@njit(cache=True, nogil=True)
def _sketch_batch(numbers, ptr, sources, targets, distances, cutoff, neighbors, out):
    edge = 0
    for b in range(len(ptr) - 1):
        first, last = ptr[b], ptr[b + 1]
        kind = np.zeros(256, np.int64)
        for atom in range(first, last):
            kind[numbers[atom]] = 1
        elements = 0
        for z in range(256):
            kind[z], elements = elements, elements + kind[z]
        members = np.zeros(elements)
        sums = np.zeros((elements, elements, neighbors))
        nearest = np.empty((elements, neighbors))
        for atom in range(first, last):
            for e in range(elements):
                for k in range(neighbors):
                    nearest[e, k] = cutoff
            while edge < len(targets) and targets[edge] == atom:
                _insert(nearest[kind[numbers[sources[edge]]]], distances[edge])
                edge += 1
            centre = kind[numbers[atom]]
            members[centre] += 1
            for e in range(elements):
                for k in range(neighbors):
                    sums[centre, e, k] += nearest[e, k]
        _average_into(sums, members, elements, out[b])


def sketch_crystals(numbers: Any, positions: Any, cell: Any, pbc: Any, natoms: Any) -> npt.NDArray[np.float64]:
    """Fingerprints of B periodic structures with N atoms in all.

    Args:
        numbers: (N,) uint8 atomic numbers.
        positions: (N, 3), Å.
        cell: (B, 3, 3), Å.
        pbc: (B, 3) bool.
        natoms: (B,) integer.

    Returns:
        (B, 1 + DISTANCES) float64: the cube root of the volume per atom, and mean neighbour distances, all in Å. The
        volume of a structure that is not periodic along all axes is not defined and counts as 1 Å³.
    """
    natoms = np.asarray(natoms, np.int64)
    out = np.empty((len(natoms), 1 + DISTANCES))
    volumes = np.abs(np.linalg.det(np.asarray(cell, np.float64)))
    out[:, 0] = np.where(np.asarray(pbc).all(axis=1), np.cbrt(volumes / natoms), 1.0)
    ptr = np.concatenate([[0], np.cumsum(natoms)])
    begin = 0
    while begin < len(natoms):
        end = max(begin + 1, int(np.searchsorted(ptr, ptr[begin] + _BATCH_ATOMS, "right")) - 1)
        atoms = slice(int(ptr[begin]), int(ptr[end]))
        graph = batch_radius_graph(positions[atoms], cell[begin:end], pbc[begin:end], natoms[begin:end], cutoff=CUTOFF)
        sources, targets = graph.edge_index
        local = ptr[begin : end + 1] - ptr[begin]
        _sketch_batch(numbers[atoms], local, sources, targets, graph.distances, CUTOFF, NEIGHBORS, out[begin:end, 1:])
        begin = end
    return out
