"""Edge dropout on stored a2a graphs: drop edges, then find the narrower graphs among those that are left.

The outcome is that of a search with dropout, to the last edge: the same edges fall for the same seeds, and distances
and ties follow `jmp_data.graphs.truncation`. Only the search itself is saved.
"""

# mypy: disable-error-code="no-untyped-def"
# Numba infers the types.

from __future__ import annotations

import math

import numpy as np
from numba import njit

from jmp_data.graphs.dropout import GOLDEN, KEYS, SCRAMBLE
from jmp_data.graphs.truncation import TIE_RESOLUTION

_TIES = 1.0 / TIE_RESOLUTION
_GRAPHS = 3


@njit(cache=True, nogil=True)
def _scramble(x):
    x = (x ^ (x >> np.uint64(30))) * np.uint64(SCRAMBLE[0])
    x = (x ^ (x >> np.uint64(27))) * np.uint64(SCRAMBLE[1])
    return x ^ (x >> np.uint64(31))


@njit(cache=True, nogil=True)
def _nearest(rounded, candidates, count, limit, chosen):
    """Write the `limit` nearest of `candidates[:count]` to `chosen`, in order, first come first among equals."""
    if count <= limit:
        chosen[:count] = candidates[:count]
        return count
    values = np.empty(count)
    for i in range(count):
        values[i] = rounded[candidates[i]]
    largest = np.partition(values, limit - 1)[limit - 1]
    ties = limit
    for i in range(count):
        ties -= values[i] < largest
    found = 0
    for i in range(count):
        tied = values[i] == largest and ties > 0
        ties -= tied
        if tied or values[i] < largest:
            chosen[found] = candidates[i]
            found += 1
    return found


@njit(cache=True, nogil=True)
def _fit(source, counts, ptr):
    """Whether the counts add up and every source is an atom of its structure."""
    e = 0
    for b in range(len(ptr) - 1):
        for t in range(ptr[b], ptr[b + 1]):
            end = e + np.int64(counts[t])
            if counts[t] < 0 or end > len(source):
                return False
            while e < end:
                if source[e] < 0 or source[e] >= ptr[b + 1] - ptr[b]:
                    return False
                e += 1
    return e == len(source)


@njit(cache=True, nogil=True)
def thin(
    source, counts, offsets, ptr, positions, cells, limits, tagged, seeds, dropout, kept, kept_counts, membership
):  # fmt: skip
    """Mark which stored edges survive, and which of these are in main, a2ee2a and qint (bits 1, 2 and 4).

    Args:
        source: (nedges,) source atoms, counted within their structure.
        counts: (N,) edges of each target.
        offsets: (nedges, 3) cell offsets.
        ptr: (B + 1,) first atom of each structure.
        positions: (N, 3) float64, Å.
        cells: (B, 3, 3) float64, Å, open rows zero.
        limits: (B, 4) neighbour limits of a2a, which the edges keep already, main, a2ee2a and qint.
        tagged: (N,) bool; an edge of qint needs one tagged end.
        seeds: (B,) int64.
        dropout: probability.
        kept: (nedges,) bool, to be filled.
        kept_counts: (N,) to be filled.
        membership: (nedges,) uint8 zeros, to be filled.

    Returns:
        False, with nothing filled, where the edges do not fit the structures.
    """
    if not _fit(source, counts, ptr):
        return False
    threshold = np.uint64(dropout * 2.0**53)
    most = 0
    for count in counts:
        most = max(most, int(count))
    rounded, edge, everything = np.empty(most), np.empty(most, np.int64), np.arange(most)
    chosen = np.empty((_GRAPHS, most), np.int64)
    e = 0
    for b in range(len(ptr) - 1):
        cell, first = cells[b], ptr[b]
        for t in range(first, ptr[b + 1]):
            stream = np.int64(_scramble(np.uint64(seeds[b] + (t - first + 1) * GOLDEN)))
            n = 0
            for _ in range(counts[t]):
                s = first + np.int64(source[e])
                x, y, z = np.int64(offsets[e, 0]), np.int64(offsets[e, 1]), np.int64(offsets[e, 2])
                identity = (s - first) * KEYS[0] + x * KEYS[1] + y * KEYS[2] + z * KEYS[3]
                kept[e] = _scramble(np.uint64(stream + identity)) >> np.uint64(11) >= threshold
                if kept[e]:
                    squared = 0.0
                    for axis in range(3):
                        shift = (x * cell[0, axis] + y * cell[1, axis]) + z * cell[2, axis]
                        delta = (positions[s, axis] - positions[t, axis]) + shift
                        squared += delta * delta
                    rounded[n], edge[n] = math.floor(squared * _TIES + 0.5), e
                    n += 1
                e += 1
            kept_counts[t] = n
            main = _nearest(rounded, everything, n, limits[b, 1], chosen[0])
            for g in range(_GRAPHS):
                found = main
                if g > 0 and limits[b, g + 1] <= limits[b, 1]:
                    found = _nearest(rounded, chosen[0], main, limits[b, g + 1], chosen[g])
                elif g > 0:
                    found = _nearest(rounded, everything, n, limits[b, g + 1], chosen[g])
                for i in range(found):
                    k = edge[chosen[g, i]]
                    if g < _GRAPHS - 1 or tagged[t] or tagged[first + np.int64(source[k])]:
                        membership[k] |= np.uint8(1 << g)
    return True
