"""The RMSD of two molecules under the best proper rotation and the best pairing of equal elements.

Least squares gives the rotation for a pairing, and a pairing follows from a rotation; what is hard is the start. Both
molecules are centred, so the centroid is one point that is known to match. Two more atoms fix a rotation: for a pair of
atoms of the first molecule, every pair of the second with the same elements is tried that lies at nearly the same
distances. If the RMSD is at most `near`, fewer than a ninth of the atoms are farther than 3 · near from their partner,
so with one pair of atoms more than n/9, none used twice, one of them is sound. From each start, pairing and rotation
are improved in turn until nothing changes.

Rotations are proper: a molecule and its mirror image are different molecules.
"""

# mypy: disable-error-code="no-untyped-def"
# Numba infers the types.

from __future__ import annotations

import math

import numpy as np
from numba import njit

_ROUNDS = 10
_ODDS = 9  # (3 · near)² / near²
_LEVER = 0.3  # of the longest lever; shorter ones turn small displacements into large angles


@njit(cache=True, nogil=True)
def _centred(positions):
    n = len(positions)
    out = np.empty((n, 3))
    for k in range(3):
        mean = 0.0
        for i in range(n):
            mean += positions[i, k]
        for i in range(n):
            out[i, k] = positions[i, k] - mean / n
    return out


@njit(cache=True, nogil=True)
def _fit(a, b, pairing, rotation):
    """Best rotation of a onto b[pairing] (Horn's quaternion), written to `rotation`; returns the RMSD."""
    h = np.zeros((3, 3))
    square = 0.0
    for i in range(len(a)):
        j = pairing[i]
        for p in range(3):
            square += a[i, p] * a[i, p] + b[j, p] * b[j, p]
            for q in range(3):
                h[p, q] += a[i, p] * b[j, q]
    k = np.empty((4, 4))
    k[0, 0] = h[0, 0] + h[1, 1] + h[2, 2]
    k[0, 1], k[0, 2], k[0, 3] = h[1, 2] - h[2, 1], h[2, 0] - h[0, 2], h[0, 1] - h[1, 0]
    k[1, 1] = h[0, 0] - h[1, 1] - h[2, 2]
    k[1, 2], k[1, 3] = h[0, 1] + h[1, 0], h[2, 0] + h[0, 2]
    k[2, 2] = -h[0, 0] + h[1, 1] - h[2, 2]
    k[2, 3] = h[1, 2] + h[2, 1]
    k[3, 3] = -h[0, 0] - h[1, 1] + h[2, 2]
    for p in range(4):
        for q in range(p):
            k[p, q] = k[q, p]
    w, x, y, z = np.linalg.eigh(k)[1][:, 3]
    rotation[0, 0], rotation[0, 1], rotation[0, 2] = 1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)
    rotation[1, 0], rotation[1, 1], rotation[1, 2] = 2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)
    rotation[2, 0], rotation[2, 1], rotation[2, 2] = 2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)
    # Summed from the displacements: the difference of large squares loses half of the digits.
    total = 0.0
    for i in range(len(a)):
        j = pairing[i]
        for p in range(3):
            turned = rotation[p, 0] * a[i, 0] + rotation[p, 1] * a[i, 1] + rotation[p, 2] * a[i, 2]
            total += (turned - b[j, p]) ** 2
    return math.sqrt(total / len(a))


@njit(cache=True, nogil=True)
def _assign(cost, pairing):
    """The pairing of least total cost (Hungarian method with potentials, cubic in n)."""
    n = len(cost)
    u, v = np.zeros(n + 1), np.zeros(n + 1)
    owner, way = np.zeros(n + 1, np.int64), np.zeros(n + 1, np.int64)
    for i in range(1, n + 1):
        owner[0] = i
        column = 0
        least = np.full(n + 1, np.inf)
        used = np.zeros(n + 1, np.bool_)
        while owner[column] != 0:
            used[column] = True
            row, delta, following = owner[column], np.inf, 0
            for j in range(1, n + 1):
                if not used[j]:
                    reduced = cost[row - 1, j - 1] - u[row] - v[j]
                    if reduced < least[j]:
                        least[j], way[j] = reduced, column
                    if least[j] < delta:
                        delta, following = least[j], j
            for j in range(n + 1):
                if used[j]:
                    u[owner[j]] += delta
                    v[j] -= delta
                else:
                    least[j] -= delta
            column = following
        while column != 0:
            owner[column] = owner[way[column]]
            column = way[column]
    for j in range(1, n + 1):
        pairing[owner[j] - 1] = j - 1


@njit(cache=True, nogil=True)
def _pair(numbers_a, a, numbers_b, b, rotation, limit, pairing):
    """Pair the turned atoms with the nearest of their element; False if their squares add up to more than the limit."""
    n = len(a)
    taken = np.zeros(n, np.bool_)
    total, clash = 0.0, False
    for i in range(n):
        x = rotation[0, 0] * a[i, 0] + rotation[0, 1] * a[i, 1] + rotation[0, 2] * a[i, 2]
        y = rotation[1, 0] * a[i, 0] + rotation[1, 1] * a[i, 1] + rotation[1, 2] * a[i, 2]
        z = rotation[2, 0] * a[i, 0] + rotation[2, 1] * a[i, 1] + rotation[2, 2] * a[i, 2]
        nearest, place = np.inf, -1
        for j in range(n):
            if numbers_b[j] == numbers_a[i]:
                square = (x - b[j, 0]) ** 2 + (y - b[j, 1]) ** 2 + (z - b[j, 2]) ** 2
                if square < nearest:
                    nearest, place = square, j
        total += nearest
        if not total <= limit:
            return False
        clash |= taken[place]
        taken[place] = True
        pairing[i] = place
    if clash:
        cost = np.full((n, n), 1e12)
        for i in range(n):
            for j in range(n):
                if numbers_a[i] == numbers_b[j]:
                    square = 0.0
                    for p in range(3):
                        turned = rotation[p, 0] * a[i, 0] + rotation[p, 1] * a[i, 1] + rotation[p, 2] * a[i, 2]
                        square += (turned - b[j, p]) ** 2
                    cost[i, j] = square
        _assign(cost, pairing)
    return True


@njit(cache=True, nogil=True)
def _refine(numbers_a, a, numbers_b, b, rotation, limit):
    """Pair and turn until the pairing stays; the RMSD, or infinity where nothing close comes of it."""
    pairing, previous = np.empty(len(a), np.int64), np.full(len(a), -1)
    rmsd = np.inf
    for _ in range(_ROUNDS):
        if not _pair(numbers_a, a, numbers_b, b, rotation, limit, pairing):
            return rmsd
        same = True
        for i in range(len(a)):
            same &= pairing[i] == previous[i]
            previous[i] = pairing[i]
        if same:
            return rmsd
        rmsd = min(rmsd, _fit(a, b, pairing, rotation))
    return rmsd


@njit(cache=True, nogil=True)
def _frame(first, second, out):
    """Rows: the direction of first, that of second across it, and their cross product."""
    length = math.sqrt(first[0] ** 2 + first[1] ** 2 + first[2] ** 2)
    for p in range(3):
        out[0, p] = first[p] / length if length > 1e-9 else (1.0 if p == 0 else 0.0)
    along = second[0] * out[0, 0] + second[1] * out[0, 1] + second[2] * out[0, 2]
    across = np.empty(3)
    for p in range(3):
        across[p] = second[p] - along * out[0, p]
    length = math.sqrt(across[0] ** 2 + across[1] ** 2 + across[2] ** 2)
    if length < 1e-9:
        smallest = 0
        for p in range(1, 3):
            smallest = p if abs(out[0, p]) < abs(out[0, smallest]) else smallest
        for p in range(3):
            across[p] = (1.0 if p == smallest else 0.0) - out[0, smallest] * out[0, p]
        length = math.sqrt(across[0] ** 2 + across[1] ** 2 + across[2] ** 2)
    for p in range(3):
        out[1, p] = across[p] / length
    out[2, 0] = out[0, 1] * out[1, 2] - out[0, 2] * out[1, 1]
    out[2, 1] = out[0, 2] * out[1, 0] - out[0, 0] * out[1, 2]
    out[2, 2] = out[0, 0] * out[1, 1] - out[0, 1] * out[1, 0]


@njit(cache=True, nogil=True)
def _distances(x):
    n = len(x)
    out = np.zeros((n, n))
    for i in range(n):
        for j in range(i):
            out[i, j] = math.sqrt((x[i, 0] - x[j, 0]) ** 2 + (x[i, 1] - x[j, 1]) ** 2 + (x[i, 2] - x[j, 2]) ** 2)
            out[j, i] = out[i, j]
    return out


@njit(cache=True, nogil=True)
def _norms(x):
    out = np.empty(len(x))
    for i in range(len(x)):
        out[i] = math.sqrt(x[i, 0] ** 2 + x[i, 1] ** 2 + x[i, 2] ** 2)
    return out


@njit(cache=True, nogil=True)
def _choose_anchors(a, radii, options, used):
    """The unused pair of atoms with the fewest options among those with long levers; (-1, -1) if there is none."""
    n = len(a)
    longest, widest = 0.0, 0.0
    for i in range(n):
        longest = max(longest, radii[i])
        for j in range(i):
            widest = max(widest, _area(a[i], a[j]))
    best, first, second = np.inf, -1, -1
    for i in range(n):
        if used[i] or options[i] == 0 or radii[i] < _LEVER * longest:
            continue
        for j in range(n):
            if j != i and not used[j] and options[j] > 0 and _area(a[i], a[j]) >= _LEVER * widest:
                cost = options[i] * options[j]
                if cost < best:
                    best, first, second = cost, i, j
    return first, second


@njit(cache=True, nogil=True)
def _area(p, q):
    x, y, z = p[1] * q[2] - p[2] * q[1], p[2] * q[0] - p[0] * q[2], p[0] * q[1] - p[1] * q[0]
    return math.sqrt(x * x + y * y + z * z)


@njit(cache=True, nogil=True)
def _same_composition(numbers_a, numbers_b):
    difference = np.zeros(256, np.int64)
    for number in numbers_a:
        difference[number] += 1
    for number in numbers_b:
        difference[number] -= 1
    different = np.int64(0)
    for excess in difference:
        different += abs(excess)
    return bool(different == 0)


@njit(cache=True, nogil=True)
def aligned_rmsd(numbers_a, positions_a, numbers_b, positions_b, near, exact):
    """The smallest RMSD found; complete up to `near`, and any larger value only means "not near".

    Args:
        numbers_a: (n,) atomic numbers.
        positions_a: (n, 3), Å.
        numbers_b: (n,) the same composition.
        positions_b: (n, 3), Å.
        near: Å; what must be found.
        exact: Å; the search ends as soon as it is this good.

    Returns:
        Å; infinity where the compositions differ or no alignment comes close.
    """
    n = len(numbers_a)
    if not _same_composition(numbers_a, numbers_b):
        return np.inf
    a, b = _centred(positions_a), _centred(positions_b)
    best = np.inf
    same_order = True
    for i in range(n):
        same_order &= numbers_a[i] == numbers_b[i]
    if same_order:
        best = _fit(a, b, np.arange(n), np.empty((3, 3)))
        if best <= exact:
            return best
    return min(best, _search(numbers_a, a, numbers_b, b, near, exact))


@njit(cache=True, nogil=True)
def _search(numbers_a, a, numbers_b, b, near, exact):
    n = len(a)
    apart = 3.0 * near + 1e-6
    radii_a, radii_b, between_a, between_b = _norms(a), _norms(b), _distances(a), _distances(b)
    reach_a, reach_b = np.zeros(n), np.zeros(n)
    for i in range(n):
        for j in range(n):
            reach_a[i] += between_a[i, j]
            reach_b[i] += between_b[i, j]
    fits = np.zeros((n, n), np.bool_)
    options = np.zeros(n, np.int64)
    for i in range(n):
        for j in range(n):
            if numbers_a[i] == numbers_b[j] and abs(radii_a[i] - radii_b[j]) <= apart:
                fits[i, j] = abs(reach_a[i] - reach_b[j]) <= n * (apart + near)
                options[i] += fits[i, j]
    used = np.zeros(n, np.bool_)
    frame_a, frame_b, rotation = np.empty((3, 3)), np.empty((3, 3)), np.empty((3, 3))
    square = 0.0
    for radius in radii_a:
        square += radius * radius / n
    spread = math.sqrt(square)
    best = np.inf
    for _ in range(n // _ODDS + 1):
        first, second = _choose_anchors(a, radii_a, options, used)
        if first < 0:
            break
        used[first] = used[second] = True
        lever = radii_a[first]
        across = _area(a[first], a[second]) / max(lever, 1e-9)
        loose = 1.2 * (near + spread * apart * (1 / max(lever, apart) + 1 / max(across, apart)))
        _frame(a[first], a[second], frame_a)
        for j in range(n):
            for k in range(n):
                if j == k or not fits[first, j] or not fits[second, k]:
                    continue
                if abs(between_a[first, second] - between_b[j, k]) > 2 * apart:
                    continue
                _frame(b[j], b[k], frame_b)
                for p in range(3):
                    for q in range(3):
                        rotation[p, q] = 0.0
                        for r in range(3):
                            rotation[p, q] += frame_b[r, p] * frame_a[r, q]
                best = min(best, _refine(numbers_a, a, numbers_b, b, rotation, n * loose * loose))
                if best <= exact:
                    return best
        if best <= near:
            break
    return best
