"""The compiled search: images, nearest neighbours and the four nested graphs of a batch, in one pass on one thread.

How it works, structure by structure:

1. Cells come reduced, so that the most skewed one is compact, and atoms come wrapped (`jmp_data.graphs.lattice`).
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

import numpy as np
from numba import njit

from jmp_data.graphs.dropout import GOLDEN, KEYS, SCRAMBLE
from jmp_data.graphs.truncation import SELF_DISTANCE, TIE_RESOLUTION

_SELF = SELF_DISTANCE * SELF_DISTANCE
_TIES = 1.0 / TIE_RESOLUTION
_MARGIN = 1e-6  # Å; pruning may only ever be too generous
_LEAF_ATOMS = 32
_LEAF_EXTENT = 1.0  # of the search radius
_MAX_IMAGES = 100_000_000
_NEARBY = 1.15  # d² within which the next target probably has enough, over the last one's farthest kept
_RANKED = 128  # up to this many, comparing all pairs is faster than sorting
_FEW_TOO_MANY = 4  # up to this many beyond a limit, taking the farthest out one by one is faster than either


@njit(cache=True, nogil=True)
def _grown(array, needed):
    if needed <= len(array):
        return array
    bigger = np.empty(max(needed, 2 * len(array)), array.dtype)
    for i in range(len(array)):
        bigger[i] = array[i]
    return bigger


@njit(cache=True, nogil=True)
def _grown_rows(array, needed):
    if needed <= len(array):
        return array
    bigger = np.empty((max(needed, 2 * len(array)), array.shape[1]), array.dtype)
    for i in range(len(array)):
        for j in range(array.shape[1]):
            bigger[i, j] = array[i, j]
    return bigger


@njit(cache=True, nogil=True)
def _rounded(squared):
    """The squared distance that truncation compares, in units of `TIE_RESOLUTION`."""
    return np.floor(squared * _TIES + 0.5)


@njit(cache=True, nogil=True)
def _sort_order(keys, order):
    """Sort the permutation `order` by key, stably; a bottom-up merge, which returns or overwrites its argument."""
    n = len(order)
    merged = np.empty(n, np.int64)
    width = 1
    while width < n:
        for begin in range(0, n, 2 * width):
            middle, end = min(begin + width, n), min(begin + 2 * width, n)
            left, right = begin, middle
            for i in range(begin, end):
                if left < middle and (right >= end or keys[order[left]] <= keys[order[right]]):
                    merged[i] = order[left]
                    left += 1
                else:
                    merged[i] = order[right]
                    right += 1
        order, merged = merged, order
        width *= 2
    return order


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
    identity = transform[0, 0] == 1 and transform[1, 1] == 1 and transform[2, 2] == 1
    for x in range(3):
        identity = identity and transform[x, (x + 1) % 3] == 0 and transform[x, (x + 2) % 3] == 0
    if identity:
        return offsets, shifts
    order = np.arange(size)
    for axis in range(2, -1, -1):
        order = _sort_order(offsets[:, axis], order)
    sorted_offsets, sorted_shifts = np.empty_like(offsets), np.empty_like(shifts)
    for i in range(size):
        for x in range(3):
            sorted_offsets[i, x], sorted_shifts[i, x] = offsets[order[i], x], shifts[order[i], x]
    return sorted_offsets, sorted_shifts


@njit(cache=True, nogil=True)
def _outside(x, y, z, box):
    """Squared distance of a point from a box, (2, 3) low and high corner; zero inside."""
    dx = max(box[0, 0] - x, max(x - box[1, 0], 0.0))
    dy = max(box[0, 1] - y, max(y - box[1, 1], 0.0))
    dz = max(box[0, 2] - z, max(z - box[1, 2], 0.0))
    return dx * dx + dy * dy + dz * dz


@njit(cache=True, nogil=True)
def _list_images(images, places, count, base, wrap, wrapped, offsets, shifts, box, radius):
    """Append every image within `radius` of the box. Rows of `images`: source atom, cell offset."""
    reach = (radius + _MARGIN) * (radius + _MARGIN)
    room = count + len(wrapped) * len(shifts)
    images, places = _grown_rows(images, room), _grown_rows(places, room)
    for source in range(len(wrapped)):
        for j in range(len(shifts)):
            x, y = wrapped[source, 0] + shifts[j, 0], wrapped[source, 1] + shifts[j, 1]
            z = wrapped[source, 2] + shifts[j, 2]
            if _outside(x, y, z, box) <= reach:
                places[count, 0], places[count, 1], places[count, 2] = x, y, z
                images[count, 0] = base + source
                for axis in range(3):
                    images[count, axis + 1] = offsets[j, axis] - wrap[source, axis]
                count += 1
    return images, places, count


@njit(cache=True, nogil=True)
def _bounding_box(points, chosen):
    """(2, 3) low and high corner of the chosen points."""
    box = np.empty((2, 3))
    for axis in range(3):
        low, high = np.inf, -np.inf
        for n in chosen:
            low, high = min(low, points[n, axis]), max(high, points[n, axis])
        box[0, axis], box[1, axis] = low, high
    return box


@njit(cache=True, nogil=True)
def _longest_axis(box):
    axis = 0
    for i in range(1, 3):
        if box[1, i] - box[0, i] > box[1, axis] - box[0, axis]:
            axis = i
    return axis


@njit(cache=True, nogil=True)
def _split(points, chosen, box, axis):
    """Partition `chosen` in place at the middle of an axis of its box; returns the size of the first part."""
    middle = 0.5 * (box[0, axis] + box[1, axis])
    first = 0
    for i in range(len(chosen)):
        if points[chosen[i], axis] < middle:
            chosen[first], chosen[i] = chosen[i], chosen[first]
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
def _rank(rounded, count, rank):
    """Rank of each of the first entries, first come first among equals; comparing all pairs needs no branch."""
    if count > _RANKED:
        order = _sort_order(rounded, np.arange(count))
        for i in range(count):
            rank[order[i]] = i
        return
    for i in range(count):
        rank[i] = 0
    whole = count - count % 4
    for i in range(0, whole, 4):
        a, b, c, d = rounded[i], rounded[i + 1], rounded[i + 2], rounded[i + 3]
        for j in range(count):
            value = rounded[j]
            rank[j] += np.int64(value > a) + np.int64(value > b) + np.int64(value > c) + np.int64(value > d)
    for i in range(whole, count):
        for j in range(count):
            rank[j] += rounded[j] > rounded[i]
    distinct = 0
    for i in range(count):
        distinct += rank[i]
    if distinct < count * (count - 1) // 2:
        for i in range(count):
            for j in range(i + 1, count):
                rank[j] += rounded[i] == rounded[j]


@njit(cache=True, nogil=True)
def _rank_farthest(rounded, count, first, rank):
    """The same for ranks from `first` on, which must be few, and zero instead of lower ones; overwrites `rounded`."""
    for i in range(count):
        rank[i] = 0
    for place in range(count - 1, first - 1, -1):
        farthest = 0
        for i in range(1, count):
            farthest = i if rounded[i] >= rounded[farthest] else farthest
        rank[farthest] = place
        rounded[farthest] = -1.0


@njit(cache=True, nogil=True)
def _scramble(x):
    x = (x ^ (x >> np.uint64(30))) * np.uint64(SCRAMBLE[0])
    x = (x ^ (x >> np.uint64(27))) * np.uint64(SCRAMBLE[1])
    return x ^ (x >> np.uint64(31))


@njit(cache=True, nogil=True)
def _drop(picked, count, dropout, stream, identity):
    """Drop edges by the rule of `jmp_data.graphs.dropout`; `stream` knows the target, `identity` the image."""
    threshold = np.uint64(dropout * 2.0**53)
    kept = 0
    for i in range(count):
        draw = _scramble(np.uint64(stream + identity[picked[i]])) >> np.uint64(11)
        picked[kept] = picked[i]
        kept += draw >= threshold
    return kept


@njit(cache=True, nogil=True)
def _search_leaf(
    targets, candidates, images, positions, cell, base, wrap, limit, complete, limits, tagged, seed, dropout,
    codes, used, starts, counts, floats, ints,
):  # fmt: skip
    """Find and truncate the edges of all targets of one leaf; appends image numbers to `codes`."""
    m = len(candidates)
    px, py, pz, ox, oy, oz = floats[0], floats[1], floats[2], floats[3], floats[4], floats[5]
    sx, sy, sz, squared, rounded = floats[6], floats[7], floats[8], floats[9], floats[10]
    work = floats[11]
    hit, near, rank, identity = ints[0], ints[1], ints[2], ints[3]
    for i in range(m):
        source = images[candidates[i], 0]
        px[i], py[i], pz[i] = positions[source, 0], positions[source, 1], positions[source, 2]
        ox[i], oy[i], oz[i] = images[candidates[i], 1], images[candidates[i], 2], images[candidates[i], 3]
        if dropout > 0.0:
            identity[i] = (source - base) * KEYS[0] + images[candidates[i], 1] * KEYS[1]
            identity[i] += images[candidates[i], 2] * KEYS[2] + images[candidates[i], 3] * KEYS[3]
    graphs = len(limits)
    widest, smallest = 0, limits[graphs - 1]
    for g in range(1, graphs):
        widest, smallest = max(widest, limits[g]), min(smallest, limits[g])
    nearby = limit / 4.0
    shifted = False
    w0, w1, w2 = 0, 0, 0
    for t in targets:
        if not shifted or w0 != wrap[t, 0] or w1 != wrap[t, 1] or w2 != wrap[t, 2]:
            w0, w1, w2 = wrap[t, 0], wrap[t, 1], wrap[t, 2]
            for i in range(m):
                a, b, c = ox[i] + w0, oy[i] + w1, oz[i] + w2
                sx[i] = (a * cell[0, 0] + b * cell[1, 0]) + c * cell[2, 0]
                sy[i] = (a * cell[0, 1] + b * cell[1, 1]) + c * cell[2, 1]
                sz[i] = (a * cell[0, 2] + b * cell[1, 2]) + c * cell[2, 2]
            shifted = True
        x, y, z = positions[base + t, 0], positions[base + t, 1], positions[base + t, 2]
        for i in range(m):
            dx, dy, dz = (px[i] - x) + sx[i], (py[i] - y) + sy[i], (pz[i] - z) + sz[i]
            squared[i] = (dx * dx + dy * dy) + dz * dz
        n = 0
        for i in range(m):
            hit[n] = i
            n += (squared[i] <= limit) & (squared[i] > _SELF)
        if not complete and n <= limits[0]:
            counts[base + t, 0] = -1
            continue
        if n > limits[0]:
            for i in range(n):
                rounded[i] = _rounded(squared[hit[i]])
            n, largest = _keep_nearest(hit, rounded, n, limits[0], work)
            if not complete and largest >= _rounded(limit):
                counts[base + t, 0] = -1
                continue
        if dropout > 0.0:
            stream = np.int64(_scramble(np.uint64(seed + (t + 1) * GOLDEN)))
            stream += w0 * KEYS[1] + w1 * KEYS[2] + w2 * KEYS[3]
            n = _drop(hit, n, dropout, stream, identity)
        codes = _grown(codes, used + n * graphs)
        starts[base + t, 0], counts[base + t, 0] = used, n
        for i in range(n):
            codes[used + i] = candidates[hit[i]]
        used += n
        if graphs == 1:
            continue
        if n <= smallest and tagged[base + t]:
            for g in range(1, graphs):
                starts[base + t, g], counts[base + t, g] = starts[base + t, 0], n
            continue
        few = 0
        if smallest < n <= widest:
            few = n
            for i in range(n):
                near[i] = hit[i]
        while few < min(widest, n) and smallest < n:
            few = 0
            # Halfway between two multiples of the resolution, so that neighbours that tie are in or out together.
            within = (np.floor(nearby * _TIES) + 0.5) / _TIES if nearby < limit else np.inf
            for i in range(n):
                near[few] = hit[i]
                few += squared[hit[i]] < within
            nearby *= 1.5
        for i in range(few):
            rounded[i] = _rounded(squared[near[i]])
        if few < widest and few <= smallest + _FEW_TOO_MANY:
            _rank_farthest(rounded, few, smallest, rank)
        else:
            _rank(rounded, few, rank)
        for i in range(few):
            if rank[i] == widest - 1:
                nearby = rounded[i] * (_NEARBY / _TIES)
        for g in range(1, graphs):
            filtered = g == graphs - 1 and not tagged[base + t]
            if n <= limits[g] and not filtered:
                starts[base + t, g], counts[base + t, g] = starts[base + t, 0], n
                continue
            starts[base + t, g] = used
            if n <= limits[g]:
                for i in range(n):
                    code = candidates[hit[i]]
                    codes[used] = code
                    used += tagged[images[code, 0]]
            else:
                for i in range(few):
                    code = candidates[near[i]]
                    codes[used] = code
                    used += rank[i] < limits[g] and (not filtered or tagged[images[code, 0]])
            counts[base + t, g] = used - starts[base + t, g]
    return codes, used


@njit(cache=True, nogil=True)
def _search_targets(
    targets, first_image, last_image, images, places, positions, cell, base, wrap, wrapped, radius, limit, complete,
    limits, tagged, seed, dropout, codes, used, starts, counts,
):  # fmt: skip
    """Bisect the targets until a leaf is small, narrowing the images that each half can reach."""
    total = last_image - first_image
    floats, ints = np.empty((12, total)), np.empty((4, total), np.int64)
    arena = np.empty(3 * total + 1, np.int32)
    for i in range(total):
        arena[i] = first_image + i
    stack = [(0, len(targets), 0, total)]
    reach = (radius + _MARGIN) * (radius + _MARGIN)
    while stack:
        begin, end, list_begin, list_end = stack.pop()
        part = targets[begin:end]
        box = _bounding_box(wrapped, part)
        if end - begin < len(targets):
            arena = _grown(arena, 2 * list_end - list_begin)
            kept = list_end
            for i in range(list_begin, list_end):
                image = arena[i]
                arena[kept] = image
                kept += _outside(places[image, 0], places[image, 1], places[image, 2], box) <= reach
            list_begin, list_end = list_end, kept
        axis = _longest_axis(box)
        if end - begin <= _LEAF_ATOMS or box[1, axis] - box[0, axis] <= _LEAF_EXTENT * radius:
            codes, used = _search_leaf(
                part, arena[list_begin:list_end], images, positions, cell, base, wrap, limit, complete, limits, tagged,
                seed, dropout, codes, used, starts, counts, floats, ints,
            )  # fmt: skip
        else:
            middle = begin + _split(wrapped, part, box, axis)
            stack.append((middle, end, list_begin, list_end))
            stack.append((begin, middle, list_begin, list_end))
    return codes, used


@njit(cache=True, nogil=True)
def search_batch(
    positions, cells, pbc, ptr, frames, radii, cutoffs, limits, tagged, seeds, dropout, images, places, codes
):  # fmt: skip
    """Search a batch. Edges are kept as image numbers until all are known; `expand` turns them into arrays.

    Args:
        positions: (N, 3) float64, Å.
        cells: (B, 3, 3) float64, Å, open rows zero.
        pbc: (B, 3) bool.
        ptr: (B + 1,) int64, first atom of each structure.
        frames: reduced cells and wrapped atoms, see `jmp_data.graphs.lattice`.
        radii: (B,) Å, at most the cutoff; the search widens it for atoms that find too few.
        cutoffs: (B,) Å.
        limits: (B, G) int64; column 0 limits the search, the others keep the nearest of what it kept. The last of
            several is filtered by tag.
        tagged: (N,) bool; an edge of the last graph needs one tagged end.
        seeds: (B,) int64 of the dropout.
        dropout: probability of dropping an edge of the search, before the subsets are taken.
        images: (any, 4) int32 work space, grown as needed; fresh memory would cost more than the search.
        places: (any, 3) float64, the same.
        codes: (any,) int32, the same.

    Returns:
        The first structure whose cutoff spans too many images, or -1; then images, places, codes, starts (N, G),
        counts (N, G) and their totals (G,).
    """
    graphs, natoms = limits.shape[1], len(positions)
    starts, counts = np.zeros((natoms, graphs), np.int64), np.zeros((natoms, graphs), np.int64)
    totals = np.zeros(graphs, np.int64)
    count = used = 0
    for b in range(len(ptr) - 1):
        begin, end = ptr[b], ptr[b + 1]
        if end == begin:
            continue
        wrap, wrapped = frames.wraps[begin:end], frames.wrapped[begin:end]
        targets = np.arange(end - begin)
        radius = radii[b]
        while len(targets):
            reach = np.zeros(3, np.int64)
            tests = float(end - begin)
            for axis in range(3):
                if pbc[b, axis]:
                    cells_reached = frames.spreads[b, axis] + radius * frames.densities[b, axis]
                    reach[axis] = np.int64(min(cells_reached + _MARGIN, 1e6))
                tests *= 2.0 * reach[axis] + 1.0
            if tests > _MAX_IMAGES:
                return b, images, places, codes, starts, counts, totals
            offsets, shifts = _offset_table(frames.reduced[b], frames.transforms[b], reach)
            box = _bounding_box(wrapped, targets)
            first = count
            images, places, count = _list_images(
                images, places, count, begin, wrap, wrapped, offsets, shifts, box, radius
            )
            complete = radius >= cutoffs[b]
            limit = radius * radius
            if not (pbc[b, 0] or pbc[b, 1] or pbc[b, 2]):
                limit = np.nextafter(limit, 0.0)
            codes, used = _search_targets(
                targets, first, count, images, places, positions, cells[b], begin, wrap, wrapped, radius, limit,
                complete, limits[b], tagged, seeds[b], dropout, codes, used, starts, counts,
            )  # fmt: skip
            if complete:
                break
            left = 0
            for t in range(end - begin):
                targets[left] = t
                left += counts[begin + t, 0] < 0
            targets = targets[:left]
            radius = min(cutoffs[b], 1.5 * radius)
    for t in range(natoms):
        for g in range(graphs):
            totals[g] += counts[t, g]
    return -1, images, places, codes, starts, counts, totals
