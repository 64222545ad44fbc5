"""Compiled loops over edge arrays: from what the search found, and from and to stored columns."""

# mypy: disable-error-code="no-untyped-def"
# Numba infers the types.

from __future__ import annotations

import math

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def expand(graph, images, codes, starts, counts, wraps, edge_index, cell_offsets):
    """Fill edge_index (2, nedges) and cell_offsets (nedges, 3) with the edges of one graph in canonical order."""
    source, target = edge_index[0], edge_index[1]
    e = 0
    for t in range(len(counts)):
        begin = starts[t, graph]
        w0, w1, w2 = wraps[t, 0], wraps[t, 1], wraps[t, 2]
        for i in range(begin, begin + counts[t, graph]):
            image = codes[i]
            source[e], target[e] = images[image, 0], t
            cell_offsets[e, 0], cell_offsets[e, 1] = images[image, 1] + w0, images[image, 2] + w1
            cell_offsets[e, 2] = images[image, 3] + w2
            e += 1


@njit(cache=True, nogil=True)
def edge_lengths(positions, cells, ptr, edge_index, cell_offsets, lengths):
    """Fill lengths (nedges,) in Å from the squared distance that the search compared."""
    source, target = edge_index[0], edge_index[1]
    b = 0
    for e in range(len(lengths)):
        s, t = source[e], target[e]
        while t >= ptr[b + 1]:
            b += 1
        squared = 0.0
        for axis in range(3):
            shift = (cell_offsets[e, 0] * cells[b, 0, axis] + cell_offsets[e, 1] * cells[b, 1, axis]) + (
                cell_offsets[e, 2] * cells[b, 2, axis]
            )
            delta = (positions[s, axis] - positions[t, axis]) + shift
            squared += delta * delta
        lengths[e] = math.sqrt(squared)


@njit(cache=True, nogil=True)
def unpack(local_source, neighbor_counts, offsets, ptr, edge_index, cell_offsets):
    """Fill edge_index and cell_offsets from packed columns; False where the counts do not add up."""
    source, target = edge_index[0], edge_index[1]
    e = 0
    for b in range(len(ptr) - 1):
        for t in range(ptr[b], ptr[b + 1]):
            end = e + np.int64(neighbor_counts[t])
            if end > len(local_source):
                return False
            while e < end:
                source[e], target[e] = ptr[b] + np.int64(local_source[e]), t
                if source[e] >= ptr[b + 1]:
                    return False
                cell_offsets[e, 0], cell_offsets[e, 1], cell_offsets[e, 2] = offsets[e, 0], offsets[e, 1], offsets[e, 2]
                e += 1
    return e == len(local_source)


@njit(cache=True, nogil=True)
def mark_members(edge_index, cell_offsets, some_edge_index, some_cell_offsets, bit, membership):
    """Set a bit of `membership` (nedges,) for each edge that is also in the shorter list, both in the same order.

    Returns:
        How many edges of the shorter list were found.
    """
    found, wanted = 0, some_edge_index.shape[1]
    for e in range(len(membership)):
        if found == wanted:
            break
        if (
            edge_index[0, e] == some_edge_index[0, found]
            and edge_index[1, e] == some_edge_index[1, found]
            and cell_offsets[e, 0] == some_cell_offsets[found, 0]
            and cell_offsets[e, 1] == some_cell_offsets[found, 1]
            and cell_offsets[e, 2] == some_cell_offsets[found, 2]
        ):
            membership[e] |= bit
            found += 1
    return found


@njit(cache=True, nogil=True)
def count_members(membership, bits):
    """(len(bits),) how many bytes have each bit."""
    counts = np.zeros(len(bits), np.int64)
    for e in range(len(membership)):
        for g in range(len(bits)):
            counts[g] += membership[e] & bits[g] != 0
    return counts


@njit(cache=True, nogil=True)
def choose_members(edge_index, cell_offsets, membership, bit, some_edge_index, some_cell_offsets):
    """Fill the shorter list with the edges that have the bit."""
    found = 0
    for e in range(len(membership)):
        if membership[e] & bit:
            some_edge_index[0, found], some_edge_index[1, found] = edge_index[0, e], edge_index[1, e]
            for axis in range(3):
                some_cell_offsets[found, axis] = cell_offsets[e, axis]
            found += 1
