"""The compiled search: images, nearest neighbours and the four nested graphs of a batch, in one pass on one thread.

How it works, structure by structure:

1. The periodic lattice vectors are reduced, so that the most skewed cell becomes a compact one, and atoms are wrapped.
2. Every image that can reach a target is listed once, by source and then by cell offset. Scanning that list in order
   finds the edges of a target already sorted, which is why nothing is sorted afterwards.
3. Targets are bisected in space; each half keeps only the images that its bounding box can reach. Small structures are
   one leaf, large ones cost N log N.
4. In a leaf, all squared distances of a target are computed in one vectorised loop and compacted without branches.
5. Truncation finds the k-th smallest rounded distance by quickselect among the few nearest, never a full sort. A search
   that keeps few neighbours starts with a smaller radius and widens it for the atoms that found too few.

Distances and ties follow `jmp_data.graphs.truncation`, bit for bit. All functions live in one file because Numba's
cache notices a change of this file only. They release the GIL.
"""

# mypy: disable-error-code="no-untyped-def, call-overload"
# Numba infers the types.

from __future__ import annotations

import math

import numpy as np
from numba import njit

from jmp_data.graphs.truncation import SELF_DISTANCE, TIE_RESOLUTION

OK, FLAT_CELL, TOO_MANY_IMAGES, TOO_FAR = 0, 1, 2, 3

_SELF = SELF_DISTANCE * SELF_DISTANCE
_TIES = 1.0 / TIE_RESOLUTION
_MARGIN = 1e-6  # Å; pruning may only ever be too generous
_LEAF_ATOMS = 16
_LEAF_EXTENT = 0.5  # of the search radius
_MAX_IMAGES = 100_000_000
_MAX_WRAP = 2.0**30
_GUESS = 1.8  # neighbours expected within the first radius, over those wanted
_VACUUM = 2.5  # Å added to the extent of the atoms when their density is estimated
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@njit(cache=True, nogil=True)
def _grown(array, needed):
    if needed <= array.shape[0]:
        return array
    bigger = np.empty((max(needed, 2 * array.shape[0]), *array.shape[1:]), array.dtype)
    bigger[: array.shape[0]] = array
    return bigger


@njit(cache=True, nogil=True)
def _dot(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@njit(cache=True, nogil=True)
def _cross(a, b):
    return np.array([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]])


@njit(cache=True, nogil=True)
def _reduced_cell(cell, pbc):
    """Short vectors of the same lattice, `transform @ cell`; open rows become unit vectors normal to the rest."""
    reduced = cell.copy()
    transform = np.eye(3, dtype=np.int64)
    for _ in range(1000):
        changed = False
        for i in range(3):
            for j in range(3):
                if i == j or not (pbc[i] and pbc[j]):
                    continue
                multiple = np.rint(_dot(reduced[i], reduced[j]) / _dot(reduced[j], reduced[j]))
                changed |= _subtract(reduced, transform, i, j, multiple)
        if pbc.all() and not changed:
            for i in range(3):
                j, k = (i + 1) % 3, (i + 2) % 3
                side = -1.0 if _dot(reduced[j], reduced[k]) > 0 else 1.0
                both = reduced[j] + side * reduced[k]
                multiple = np.rint(_dot(reduced[i], both) / max(_dot(both, both), 1e-300))
                trial = reduced[i] - multiple * both
                if multiple != 0 and _dot(trial, trial) < _dot(reduced[i], reduced[i]) * (1 - 1e-9):
                    reduced[i] = trial
                    transform[i] -= np.int64(multiple) * (transform[j] + np.int64(side) * transform[k])
                    changed = True
        if not changed:
            break
    _fill_open_rows(reduced, pbc)
    return reduced, transform


@njit(cache=True, nogil=True)
def _subtract(reduced, transform, i, j, multiple):
    if multiple == 0 or not abs(multiple) < 2.0**40:
        return False
    trial = reduced[i] - multiple * reduced[j]
    if not _dot(trial, trial) < _dot(reduced[i], reduced[i]) * (1 - 1e-9):
        return False
    reduced[i] = trial
    transform[i] -= np.int64(multiple) * transform[j]
    return True


@njit(cache=True, nogil=True)
def _fill_open_rows(cell, pbc):
    periodic = pbc.sum()
    if periodic == 0:
        cell[:] = np.eye(3)
    elif periodic == 1:
        row = 0 if pbc[0] else (1 if pbc[1] else 2)
        helper = np.zeros(3)
        helper[np.argmin(np.abs(cell[row]))] = 1.0
        first = _cross(cell[row], helper)
        first /= math.sqrt(max(_dot(first, first), 1e-300))
        second = _cross(cell[row], first)
        cell[(row + 1) % 3] = first
        cell[(row + 2) % 3] = second / math.sqrt(max(_dot(second, second), 1e-300))
    elif periodic == 2:
        row = 2 if not pbc[2] else (1 if not pbc[1] else 0)
        normal = _cross(cell[(row + 1) % 3], cell[(row + 2) % 3])
        cell[row] = normal / math.sqrt(max(_dot(normal, normal), 1e-300))


@njit(cache=True, nogil=True)
def _reciprocal(cell):
    """Rows are reciprocal vectors: fractional coordinate i of r is `reciprocal[i] · r`. Also the volume."""
    reciprocal = np.empty((3, 3))
    reciprocal[0] = _cross(cell[1], cell[2])
    reciprocal[1] = _cross(cell[2], cell[0])
    reciprocal[2] = _cross(cell[0], cell[1])
    volume = _dot(cell[0], reciprocal[0])
    return reciprocal / volume if volume != 0 else reciprocal, abs(volume)


@njit(cache=True, nogil=True)
def _wrap(positions, cell, pbc, transform, reciprocal, wrap, wrapped, fractional):
    """Fill `wrap` (in the given cell), `wrapped` Å and `fractional` (in the reduced cell); False if out of range."""
    for n in range(positions.shape[0]):
        wrap[n] = 0
        for i in range(3):
            f = _dot(positions[n], reciprocal[i])
            whole = math.floor(f) if pbc[i] else 0.0
            if abs(whole) > _MAX_WRAP:
                return False
            fractional[n, i] = f - whole
            for j in range(3):
                wrap[n, j] += np.int64(whole) * transform[i, j]
        for j in range(3):
            shift = wrap[n, 0] * cell[0, j] + wrap[n, 1] * cell[1, j] + wrap[n, 2] * cell[2, j]
            wrapped[n, j] = positions[n, j] - shift
    return True


@njit(cache=True, nogil=True)
def _offset_table(reduced, transform, reach):
    """All offsets up to `reach` per reduced axis, sorted in terms of the given cell: (m, 3) offsets and shifts in Å."""
    size = (2 * reach[0] + 1) * (2 * reach[1] + 1) * (2 * reach[2] + 1)
    offsets = np.empty((size, 3), np.int64)
    shifts = np.empty((size, 3))
    m = 0
    for i in range(-reach[0], reach[0] + 1):
        for j in range(-reach[1], reach[1] + 1):
            for k in range(-reach[2], reach[2] + 1):
                for x in range(3):
                    offsets[m, x] = i * transform[0, x] + j * transform[1, x] + k * transform[2, x]
                    shifts[m, x] = i * reduced[0, x] + j * reduced[1, x] + k * reduced[2, x]
                m += 1
    if (transform != np.eye(3, dtype=np.int64)).any():
        for axis in range(2, -1, -1):
            order = np.argsort(offsets[:, axis].copy(), kind="mergesort")
            offsets, shifts = offsets[order], shifts[order]
    return offsets, shifts


@njit(cache=True, nogil=True)
def _list_images(images, places, count, base, wrap, wrapped, offsets, shifts, low, high, radius):
    """Append every image within `radius` of the box low..high. Rows of `images`: source atom, cell offset."""
    reach = (radius + _MARGIN) ** 2
    room = count + wrapped.shape[0] * shifts.shape[0]
    images, places = _grown(images, room), _grown(places, room)
    for source in range(wrapped.shape[0]):
        for j in range(shifts.shape[0]):
            outside = 0.0
            for axis in range(3):
                x = wrapped[source, axis] + shifts[j, axis]
                places[count, axis] = x
                beyond = max(low[axis] - x, x - high[axis], 0.0)
                outside += beyond * beyond
            if outside <= reach:
                images[count, 0] = base + source
                for axis in range(3):
                    images[count, axis + 1] = offsets[j, axis] - wrap[source, axis]
                count += 1
    return images, places, count


@njit(cache=True, nogil=True)
def _bounds(wrapped, targets):
    low, high = np.full(3, np.inf), np.full(3, -np.inf)
    for n in targets:
        for axis in range(3):
            low[axis] = min(low[axis], wrapped[n, axis])
            high[axis] = max(high[axis], wrapped[n, axis])
    return low, high


@njit(cache=True, nogil=True)
def _split(wrapped, targets, low, high):
    """Partition `targets` in place at the middle of the longest axis; returns the size of the first part."""
    axis = np.argmax(high - low)
    middle = 0.5 * (low[axis] + high[axis])
    first = 0
    for i in range(len(targets)):
        if wrapped[targets[i], axis] < middle:
            targets[first], targets[i] = targets[i], targets[first]
            first += 1
    return first


@njit(cache=True, nogil=True)
def _quickselect(values, count, k):
    """Partially sort values[:count] so that values[:k] are the k smallest; returns values[k - 1]."""
    left, right, wanted = 0, count - 1, k - 1
    while left < right:
        middle = (left + right) // 2
        if values[middle] < values[left]:
            values[left], values[middle] = values[middle], values[left]
        if values[right] < values[left]:
            values[left], values[right] = values[right], values[left]
        if values[right] < values[middle]:
            values[middle], values[right] = values[right], values[middle]
        pivot = values[middle]
        i, j = left, right
        while i <= j:
            while values[i] < pivot:
                i += 1
            while pivot < values[j]:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if wanted <= j:
            right = j
        elif wanted >= i:
            left = i
        else:
            break
    return values[wanted]


@njit(cache=True, nogil=True)
def _keep_nearest(picked, rounded, count, k, work):
    """Keep the k smallest of `rounded`, first come first among equals, in order. Returns how many and the largest."""
    if count <= k:
        return count, np.inf
    for i in range(count):
        work[i] = rounded[i]
    largest = _quickselect(work, count, k)
    ties = k
    for i in range(k):
        ties -= work[i] < largest
    kept = 0
    for i in range(count):
        value = rounded[i]
        tied = value == largest and ties > 0
        ties -= tied
        picked[kept], rounded[kept] = picked[i], value
        kept += tied or value < largest
    return kept, largest


@njit(cache=True, nogil=True)
def _scramble(x):
    """SplitMix64 finaliser."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@njit(cache=True, nogil=True)
def _drop(picked, rounded, count, dropout, seed, target, base, wrap, candidates, images):
    """Drop each edge with probability `dropout`, decided by the seed and the edge alone."""
    stream = _scramble(seed + np.uint64(target + 1) * _GOLDEN)
    kept = 0
    for i in range(count):
        image = images[candidates[picked[i]]]
        x = stream + np.uint64(image[0] - base) * np.uint64(0xD1B54A32D192ED03)
        x += np.uint64(np.int64(image[1] + wrap[0])) * np.uint64(0xABC98388FB8FAC03)
        x += np.uint64(np.int64(image[2] + wrap[1])) * np.uint64(0x8CB92BA72F3D8DD7)
        x += np.uint64(np.int64(image[3] + wrap[2])) * _GOLDEN
        picked[kept], rounded[kept] = picked[i], rounded[i]
        kept += np.float64(_scramble(x) >> np.uint64(11)) * 2.0**-53 >= dropout
    return kept


@njit(cache=True, nogil=True)
def _search_leaf(
    targets, candidates, images, positions, cell, base, wrap, limit, complete, limits, tagged, seed, dropout,
    codes, used, starts, counts, floats, ints,
):  # fmt: skip
    """Find and truncate the edges of all targets of one leaf; appends image numbers to `codes`."""
    m = len(candidates)
    px, py, pz, ox, oy, oz, sx, sy, sz, squared, rounded, near_rounded, some_rounded, work = floats[:, :m]
    hit, near, some = ints[:, :m]
    for i in range(m):
        source = images[candidates[i], 0]
        px[i], py[i], pz[i] = positions[source, 0], positions[source, 1], positions[source, 2]
        ox[i], oy[i], oz[i] = images[candidates[i], 1], images[candidates[i], 2], images[candidates[i], 3]
    widest = limits[1:].max() if len(limits) > 1 else 0
    nearby = np.inf
    shifted = False
    w = np.zeros(3, np.int64)
    for t in targets:
        if not shifted or w[0] != wrap[t, 0] or w[1] != wrap[t, 1] or w[2] != wrap[t, 2]:
            w[:] = wrap[t]
            for i in range(m):
                a, b, c = ox[i] + w[0], oy[i] + w[1], oz[i] + w[2]
                sx[i] = (a * cell[0, 0] + b * cell[1, 0]) + c * cell[2, 0]
                sy[i] = (a * cell[0, 1] + b * cell[1, 1]) + c * cell[2, 1]
                sz[i] = (a * cell[0, 2] + b * cell[1, 2]) + c * cell[2, 2]
            shifted = True
        x, y, z = positions[base + t]
        for i in range(m):
            dx, dy, dz = (px[i] - x) + sx[i], (py[i] - y) + sy[i], (pz[i] - z) + sz[i]
            squared[i] = (dx * dx + dy * dy) + dz * dz
        n = 0
        for i in range(m):
            hit[n] = i
            n += (squared[i] <= limit) & (squared[i] > _SELF)
        if not complete and n <= limits[0]:
            counts[:, base + t] = -1
            continue
        for i in range(n):
            rounded[i] = np.rint(squared[hit[i]] * _TIES)
        n, largest = _keep_nearest(hit, rounded, n, limits[0], work)
        if not complete and largest >= np.rint(limit * _TIES):
            counts[:, base + t] = -1
            continue
        if dropout > 0.0:
            n = _drop(hit, rounded, n, dropout, seed, t, base, w, candidates, images)
        codes = _grown(codes, used + n + limits[1:].sum())
        starts[0, base + t], counts[0, base + t] = used, n
        for i in range(n):
            codes[used + i] = candidates[hit[i]]
        used += n
        if len(limits) == 1:
            continue
        few = 0
        for i in range(n):
            near[few], near_rounded[few] = hit[i], rounded[i]
            few += rounded[i] <= nearby
        if few < widest and few < n:
            few = n
            near[:n], near_rounded[:n] = hit[:n], rounded[:n]
        few, largest = _keep_nearest(near, near_rounded, few, widest, work)
        nearby = 1.3 * largest
        for g in range(1, len(limits)):
            some[:few], some_rounded[:few] = near[:few], near_rounded[:few]
            kept, _ = _keep_nearest(some, some_rounded, few, limits[g], work)
            starts[g, base + t] = used
            for i in range(kept):
                code = candidates[some[i]]
                codes[used] = code
                used += g < len(limits) - 1 or tagged[base + t] or tagged[images[code, 0]]
            counts[g, base + t] = used - starts[g, base + t]
    return codes, used


@njit(cache=True, nogil=True)
def _search_targets(
    targets, first_image, last_image, images, places, positions, cell, base, wrap, wrapped, radius, limit, complete,
    limits, tagged, seed, dropout, codes, used, starts, counts,
):  # fmt: skip
    """Bisect the targets until a leaf is small, narrowing the images that each half can reach."""
    total = last_image - first_image
    floats, ints = np.empty((14, total)), np.empty((3, total), np.int32)
    arena = np.empty(3 * total + 1, np.int32)
    for i in range(total):
        arena[i] = first_image + i
    stack = [(0, len(targets), 0, total)]
    reach = (radius + _MARGIN) ** 2
    while stack:
        begin, end, list_begin, list_end = stack.pop()
        part = targets[begin:end]
        low, high = _bounds(wrapped, part)
        if end - begin < len(targets):
            arena = _grown(arena, 2 * list_end - list_begin)
            kept = list_end
            for i in range(list_begin, list_end):
                outside = 0.0
                for axis in range(3):
                    x = places[arena[i], axis]
                    beyond = max(low[axis] - x, x - high[axis], 0.0)
                    outside += beyond * beyond
                arena[kept] = arena[i]
                kept += outside <= reach
            list_begin, list_end = list_end, kept
        if end - begin <= _LEAF_ATOMS or (high - low).max() <= _LEAF_EXTENT * radius:
            codes, used = _search_leaf(
                part, arena[list_begin:list_end], images, positions, cell, base, wrap, limit, complete, limits, tagged,
                seed, dropout, codes, used, starts, counts, floats, ints,
            )  # fmt: skip
        else:
            middle = begin + _split(wrapped, part, low, high)
            stack.append((middle, end, list_begin, list_end))
            stack.append((begin, middle, list_begin, list_end))
    return codes, used


@njit(cache=True, nogil=True)
def _first_radius(fractional, reciprocal, volume, pbc, cutoff, limits):
    """A radius that most atoms find enough neighbours in; the cutoff itself where that saves nothing."""
    if len(limits) > 1 or fractional.shape[0] == 0:
        return cutoff
    filled = volume
    for axis in range(3):
        height = 1.0 / math.sqrt(_dot(reciprocal[axis], reciprocal[axis]))
        extent = fractional[:, axis].max() - fractional[:, axis].min()
        length = extent * height + _VACUUM
        filled *= min(length, height) / height if pbc[axis] else length
    density = fractional.shape[0] / filled
    radius = (_GUESS * limits[0] / density * 0.75 / math.pi) ** (1.0 / 3.0)
    return radius if radius < 0.8 * cutoff else cutoff


@njit(cache=True, nogil=True)
def search_batch(positions, cells, pbc, ptr, cutoffs, limits, tagged, seeds, dropout):
    """Search a batch. Edges are kept as image numbers until all are known; `expand` turns them into arrays.

    Args:
        positions: (N, 3) float64, Å.
        cells: (B, 3, 3) float64, Å, open rows zero.
        pbc: (B, 3) bool.
        ptr: (B + 1,) int64, first atom of each structure.
        cutoffs: (B,) Å.
        limits: (B, G) int64; column 0 limits the search, the others keep the nearest of what it kept. The last of
            several is filtered by tag.
        tagged: (N,) bool; an edge of the last graph needs one tagged end.
        seeds: (B,) uint64 of the dropout.
        dropout: probability of dropping an edge of the search, before the subsets are taken.

    Returns:
        status, structure it happened in, images (m, 4) int32, codes, starts (G, N), counts (G, N), wraps (N, 3).
    """
    natoms = positions.shape[0]
    images, places = np.empty((max(16, 4 * natoms), 4), np.int32), np.empty((max(16, 4 * natoms), 3))
    codes = np.empty(max(16, 64 * natoms), np.int32)
    starts, counts = np.zeros((limits.shape[1], natoms), np.int64), np.zeros((limits.shape[1], natoms), np.int64)
    wraps = np.zeros((natoms, 3), np.int64)
    wrapped_all, fractional_all = np.empty((natoms, 3)), np.empty((natoms, 3))
    count = used = 0
    status = OK
    b = 0
    for b in range(len(ptr) - 1):
        begin, end = ptr[b], ptr[b + 1]
        wrap, wrapped, fractional = wraps[begin:end], wrapped_all[begin:end], fractional_all[begin:end]
        reduced, transform = _reduced_cell(cells[b], pbc[b])
        reciprocal, volume = _reciprocal(reduced)
        lengths = math.sqrt(_dot(reduced[0], reduced[0]) * _dot(reduced[1], reduced[1]) * _dot(reduced[2], reduced[2]))
        if not volume > 1e-8 * lengths:
            return FLAT_CELL, b, images, codes, starts, counts, wraps
        if not _wrap(positions[begin:end], cells[b], pbc[b], transform, reciprocal, wrap, wrapped, fractional):
            return TOO_FAR, b, images, codes, starts, counts, wraps
        targets = np.arange(end - begin)
        radius = _first_radius(fractional, reciprocal, volume, pbc[b], cutoffs[b], limits[b])
        while len(targets):
            reach = np.zeros(3, np.int64)
            for axis in range(3):
                if pbc[b, axis]:
                    span = fractional[:, axis].max() - fractional[:, axis].min()
                    radius_span = radius * math.sqrt(_dot(reciprocal[axis], reciprocal[axis]))
                    reach[axis] = min(np.int64(span + radius_span + _MARGIN), 1_000_000)
            if (2.0 * reach + 1.0).prod() * (end - begin) > _MAX_IMAGES:
                return TOO_MANY_IMAGES, b, images, codes, starts, counts, wraps
            offsets, shifts = _offset_table(reduced, transform, reach)
            low, high = _bounds(wrapped, targets)
            first = count
            images, places, count = _list_images(
                images, places, count, begin, wrap, wrapped, offsets, shifts, low, high, radius
            )
            complete = radius >= cutoffs[b]
            limit = radius * radius
            if not pbc[b].any():
                limit = np.nextafter(limit, 0.0)
            codes, used = _search_targets(
                targets, first, count, images, places, positions, cells[b], begin, wrap, wrapped, radius, limit,
                complete, limits[b], tagged, seeds[b], dropout, codes, used, starts, counts,
            )  # fmt: skip
            if complete:
                break
            targets = np.nonzero(counts[0, begin:end] < 0)[0]
            radius = min(cutoffs[b], 1.5 * radius)
    return status, b, images, codes, starts, counts, wraps


@njit(cache=True, nogil=True)
def expand(graph, images, codes, starts, counts, wraps):
    """The edges of one graph in canonical order: edge_index (2, nedges) int64 and cell_offsets (nedges, 3) int32."""
    edge_index = np.empty((2, counts[graph].sum()), np.int64)
    cell_offsets = np.empty((edge_index.shape[1], 3), np.int32)
    e = 0
    for t in range(counts.shape[1]):
        begin = starts[graph, t]
        for i in range(begin, begin + counts[graph, t]):
            image = images[codes[i]]
            edge_index[0, e], edge_index[1, e] = image[0], t
            for axis in range(3):
                cell_offsets[e, axis] = image[axis + 1] + wraps[t, axis]
            e += 1
    return edge_index, cell_offsets


@njit(cache=True, nogil=True)
def edge_lengths(positions, cell, edge_index, cell_offsets):
    """(nedges,) float64 Å, from the squared distance that the search compared."""
    lengths = np.empty(edge_index.shape[1])
    for e in range(len(lengths)):
        squared = 0.0
        for axis in range(3):
            shift = (cell_offsets[e, 0] * cell[0, axis] + cell_offsets[e, 1] * cell[1, axis]) + (
                cell_offsets[e, 2] * cell[2, axis]
            )
            delta = (positions[edge_index[0, e], axis] - positions[edge_index[1, e], axis]) + shift
            squared += delta * delta
        lengths[e] = math.sqrt(squared)
    return lengths
