"""Turn what the compiled search found into edge arrays of the right size."""

# mypy: disable-error-code="no-untyped-def"
# Numba infers the types.

from __future__ import annotations

import math

from numba import njit


@njit(cache=True, nogil=True)
def expand(graph, images, codes, starts, counts, wraps, edge_index, cell_offsets):
    """Fill edge_index (2, nedges) and cell_offsets (nedges, 3) with the edges of one graph in canonical order."""
    source, target = edge_index[0], edge_index[1]
    e = 0
    for t in range(counts.shape[1]):
        begin = starts[graph, t]
        w0, w1, w2 = wraps[t, 0], wraps[t, 1], wraps[t, 2]
        for i in range(begin, begin + counts[graph, t]):
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
