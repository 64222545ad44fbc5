"""Structures that try a neighbour search, and a brute force that shares no code with the package.

Coordinates, cells and cutoffs are multiples of 1/16 Å. Squared distances are then exact in float64 however they are
computed, so equal distances are equal and an atom at the cutoff is exactly there, for every search.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st
from scipy.spatial import cKDTree

GRID = 1.0 / 16.0
KINDS = (
    "molecule", "one_atom", "tiny", "skewed", "slab", "wire", "unwrapped", "far", "left_handed", "lattice", "sparse",
)  # fmt: skip
MAX_IMAGES = 20_000


@dataclass(frozen=True, eq=False)
class Case:
    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    cutoff: float
    max_neighbors: int | None

    def __repr__(self) -> str:
        return (
            f"Case(np.array({self.positions.tolist()}), np.array({self.cell.tolist()}), "
            f"np.array({self.pbc.tolist()}), {self.cutoff}, {self.max_neighbors})"
        )


def grid(low: float, high: float) -> st.SearchStrategy[float]:
    return st.integers(int(low / GRID), int(high / GRID)).map(lambda steps: steps * GRID)


@st.composite
def cases(draw: st.DrawFn, kinds: tuple[str, ...] = KINDS, max_atoms: int = 7) -> Case:
    kind = draw(st.sampled_from(kinds))
    natoms = 1 if kind == "one_atom" else draw(st.integers(1, max_atoms))
    edge = {"tiny": (1.0, 2.0), "sparse": (20.0, 40.0)}.get(kind, (2.0, 7.0))
    cell = np.diag([draw(grid(*edge)) for _ in range(3)])
    slant = {"skewed": 30.0, "lattice": 0.0, "tiny": 1.0}.get(kind, 3.0)
    for row, column in itertools.permutations(range(3), 2) if kind != "skewed" else ((1, 0), (2, 0), (2, 1)):
        cell[row, column] = draw(grid(-slant, slant))
    pbc = np.array(
        {
            "molecule": (False, False, False),
            "slab": draw(st.permutations((True, True, False))),
            "wire": draw(st.permutations((True, False, False))),
        }.get(kind, (True, True, True) if kind != "far" else draw(st.tuples(*[st.booleans()] * 3)))
    )
    span = {"unwrapped": 20.0, "molecule": 10.0, "sparse": 60.0}.get(kind, 6.0)
    step = 16 if kind == "lattice" else 1
    coordinates = st.integers(int(-span / GRID) // step, int(span / GRID) // step).map(lambda n: n * step * GRID)
    positions = np.array([[draw(coordinates) for _ in range(3)] for _ in range(natoms)])
    if kind == "lattice":
        cell = np.ceil(cell)
    if kind == "far":
        shifts = np.array([[draw(st.integers(-40, 40)) for _ in range(3)] for _ in range(natoms)])
        positions = positions + (shifts * pbc) @ cell
    if kind == "left_handed":
        cell[0] *= -np.sign(np.linalg.det(cell)) or 1.0
    cutoff = draw(st.sampled_from((1.0, 2.0, 3.0, 5.0)) | grid(1.0, 6.0))
    max_neighbors = draw(st.none() | st.integers(1, 12) | st.just(30))
    case = Case(positions, cell, pbc, cutoff, max_neighbors)
    assume(spans_volume(case) and count_images(case) * natoms * natoms < MAX_IMAGES * 20)
    return case


def rotated(case: Case, seed: int) -> Case:
    """The same case off the grid: turned at random, and its cutoff moved off any distance."""
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    return replace(case, positions=case.positions @ rotation, cell=case.cell @ rotation, cutoff=case.cutoff + 1e-5)


def spans_volume(case: Case) -> bool:
    rows = case.cell[case.pbc]
    return len(rows) == 0 or bool(np.sqrt(abs(np.linalg.det(rows @ rows.T))) > 0.2 ** len(rows))


def reciprocals(case: Case) -> np.ndarray:
    """(3, 3) columns; column i times a vector is its coordinate along periodic axis i, zero along open axes."""
    result = np.zeros((3, 3))
    if case.pbc.any():
        result[:, case.pbc] = np.linalg.pinv(case.cell[case.pbc])
    return result


def count_images(case: Case) -> float:
    reach = case.cutoff * np.linalg.norm(reciprocals(case), axis=0)
    return float(np.prod(2 * reach + 1))


def nearness(edge: tuple[int, int, tuple[int, ...], float]) -> tuple[int, int, tuple[int, ...]]:
    """What truncation sorts by; squared distances are multiples of 2⁻⁸, so rounding to 2⁻¹⁴ never parts equal ones."""
    return round(edge[3] * 2**14), edge[1], edge[2]


def brute_force(case: Case) -> list[tuple[int, int, tuple[int, ...], float]]:
    """(target, source, cell offset, squared distance) of every edge, in canonical order, truncated."""
    cell = np.where(case.pbc[:, None], case.cell, 0.0)
    dual = reciprocals(case)
    reach = case.cutoff * np.linalg.norm(dual, axis=0) + 1e-6
    edges = []
    for target, source in itertools.product(range(len(case.positions)), repeat=2):
        separation = case.positions[source] - case.positions[target]
        fractional = separation @ dual
        ranges = [
            range(int(np.ceil(-r - f)), int(np.floor(r - f)) + 1) if periodic else range(1)
            for r, f, periodic in zip(reach, fractional, case.pbc, strict=True)
        ]
        offsets = np.array(list(itertools.product(*ranges)), float).reshape(-1, 3)
        squared = ((separation + offsets @ cell) ** 2).sum(axis=1)
        inside = squared <= case.cutoff**2 if case.pbc.any() else squared < case.cutoff**2
        inside &= squared > 1e-4
        found = [
            (target, source, tuple(int(o) for o in offset), float(d2))
            for offset, d2 in zip(offsets[inside], squared[inside], strict=True)
        ]
        edges += found
    if case.max_neighbors is None:
        return edges
    kept = []
    for target in range(len(case.positions)):
        own = sorted((e for e in edges if e[0] == target), key=nearness)
        kept += sorted(own[: case.max_neighbors])
    return kept


@st.composite
def large_cases(draw: st.DrawFn, max_atoms: int = 5000) -> Case:
    """Up to thousands of atoms, 0.05 / Å³, of any periodicity, in boxes from flat to long, on the same grid."""
    natoms = draw(st.integers(1, max_atoms))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = np.exp(rng.uniform(-1, 1, 3))
    edges = shape * np.cbrt(natoms / 0.05 / shape.prod())
    slants = rng.uniform(-1.5, 1.5, (3, 3)) * draw(st.sampled_from((0.0, 0.2, 1.0))) * edges.min()
    cell = np.round((np.diag(edges) + np.tril(slants, -1)) / GRID) * GRID
    cell[2] *= draw(st.sampled_from((1.0, -1.0)))
    pbc = np.array(draw(st.tuples(*[st.booleans()] * 3)))
    shifts = rng.integers(-3, 4, (natoms, 3)) * pbc * draw(st.sampled_from((0, 1)))
    positions = np.round((rng.random((natoms, 3)) @ cell) / GRID) * GRID + shifts @ cell
    return Case(positions, cell, pbc, draw(grid(2.0, 6.0)), draw(st.none() | st.integers(1, 40)))


def kd_tree_search(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Edges as rows of (target, source, cell offset), and squared distances, by a k-d tree over explicit images."""
    cell = np.where(case.pbc[:, None], case.cell, 0.0)
    wraps = np.where(case.pbc, np.floor(case.positions @ reciprocals(case)), 0.0)
    wrapped = case.positions - wraps @ cell
    reach = np.where(case.pbc, np.ceil(case.cutoff * np.linalg.norm(reciprocals(case), axis=0)) + 1, 0).astype(int)
    images = np.array(list(itertools.product(*(range(-r, r + 1) for r in reach))), float)
    places = (wrapped[None] + (images @ cell)[:, None]).reshape(-1, 3)
    low, high = wrapped.min(axis=0) - case.cutoff, wrapped.max(axis=0) + case.cutoff
    near = np.flatnonzero(((places >= low) & (places <= high)).all(axis=1))
    image, source = np.divmod(near, len(wrapped))
    found = cKDTree(wrapped).query_ball_tree(cKDTree(places[near]), case.cutoff + 1e-6)
    target = np.repeat(np.arange(len(wrapped)), [len(each) for each in found])
    chosen = np.array(list(itertools.chain.from_iterable(found)), int)
    source, offsets = source[chosen], images[image[chosen]]
    offsets = offsets - wraps[source] + wraps[target]
    squared = ((case.positions[source] - case.positions[target] + offsets @ cell) ** 2).sum(axis=1)
    limit = case.cutoff**2
    inside = (squared > 1e-4) & (squared <= limit if case.pbc.any() else squared < limit)
    rows = np.column_stack([target, source, offsets])[inside].astype(int)
    squared = squared[inside]
    if case.max_neighbors is not None:
        order = np.lexsort((*rows[:, :0:-1].T, squared, rows[:, 0]))
        first = np.searchsorted(rows[order, 0], np.arange(len(wrapped)))
        rank = np.arange(len(rows)) - first[rows[order, 0]]
        order = order[rank < case.max_neighbors]
        rows, squared = rows[order], squared[order]
    order = np.lexsort(rows[:, ::-1].T)
    return rows[order], squared[order]
