"""Physical checks on a block: atoms too close, forces and energies out of line, net forces, repeats.

Each works on whole columns. Statistics are those of the block, which sources fill in the order of their files, so the
result depends on nothing but the raw files and the thresholds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from jmp_data.references.accumulate import composition_matrix
from jmp_data.schema import Block
from jmp_data.schema.validate import Rejection
from jmp_data.trust.nearest import nearest_distances
from jmp_data.trust.thresholds import TrustThresholds

Array = npt.NDArray[Any]
Finding = tuple[int, str]
"""Row and what is wrong with it."""

_MAD_TO_SIGMA = 1.4826  # of a normal distribution
_HASH_SEED = 20_231_016


def check_trust(block: Block, thresholds: TrustThresholds) -> list[Rejection]:
    """Rows that should not be believed, each with the first check that it fails, rows ascending.

    Args:
        block: structures that passed `check_block`: finite geometry, finite required targets. Checks of energies and
            forces are left out where the block has no such column; rows where they are NaN are not judged.
        thresholds: of the source.

    Returns:
        Rejections with the reasons `atoms_too_close`, `large_force`, `net_force`, `force_outlier`, `energy_outlier` and
        `duplicate_frame`.
    """
    checks: list[tuple[str, Callable[[Block, TrustThresholds], list[Finding]]]] = [
        ("atoms_too_close", _find_close_atoms),
        ("large_force", _find_large_forces),
        ("net_force", _find_net_forces),
        ("force_outlier", _find_force_outliers),
        ("energy_outlier", _find_energy_outliers),
        ("duplicate_frame", _find_duplicates),
    ]
    rejected: dict[int, Rejection] = {}
    if len(block):
        for reason, check in checks:
            for row, text in check(block, thresholds):
                rejected.setdefault(row, Rejection(row, reason, f"{_name(block, row)}: {text}"))
    return [rejected[row] for row in sorted(rejected)]


def _name(block: Block, row: int) -> str:
    return block.source_ids[row].decode(errors="replace") if len(block.source_ids) else f"row {row}"


def _find_close_atoms(block: Block, thresholds: TrustThresholds) -> list[Finding]:
    if thresholds.min_distance is None:
        return []
    nearest = nearest_distances(block, thresholds.min_distance)
    found = np.flatnonzero(np.isfinite(nearest))
    limit = thresholds.min_distance
    return [(row, f"two atoms are {nearest[row]:.3f} Å apart, less than {limit:g} Å") for row in found.tolist()]


def _largest_forces(block: Block) -> Array:
    """(n,) length of the largest force of each structure; NaN where one is missing."""
    lengths = np.linalg.norm(block.forces.astype(np.float64), axis=1)
    largest: Array = np.maximum.reduceat(lengths, block.ptr[:-1])
    return largest


def _find_large_forces(block: Block, thresholds: TrustThresholds) -> list[Finding]:
    if thresholds.max_force is None or "forces" not in block.columns:
        return []
    largest = _largest_forces(block)
    found = np.flatnonzero(largest > thresholds.max_force)
    return [(row, f"has a force of {largest[row]:.4g} eV/Å") for row in found.tolist()]


def _find_net_forces(block: Block, thresholds: TrustThresholds) -> list[Finding]:
    """Isolated molecules only: a slab's fixed layers and a periodic cell's grid take up momentum."""
    if thresholds.max_net_force is None or "forces" not in block.columns:
        return []
    starts = block.ptr[:-1]
    net = np.linalg.norm(np.add.reduceat(block.forces.astype(np.float64), starts, axis=0), axis=1)
    isolated = ~block.pbc.any(axis=1) & ~np.logical_or.reduceat(block.fixed, starts)
    limit = thresholds.max_net_force * np.sqrt(block.natoms)
    found = np.flatnonzero(isolated & (net > limit))
    return [(row, f"forces add up to {net[row]:.4g} eV/Å on an isolated molecule") for row in found.tolist()]


def _find_force_outliers(block: Block, thresholds: TrustThresholds) -> list[Finding]:
    if thresholds.force_outlier is None or "forces" not in block.columns:
        return []
    largest = _largest_forces(block)
    found = _outliers(block, largest, thresholds.force_outlier, thresholds.min_force_deviation, thresholds.min_group)
    return [
        (row, f"largest force {largest[row]:.4g} eV/Å, others of its composition have {median:.4g}")
        for row, median in found
    ]


def _find_energy_outliers(block: Block, thresholds: TrustThresholds) -> list[Finding]:
    if thresholds.energy_outlier is None or "energy" not in block.columns:
        return []
    energy = block.energy / block.natoms
    found = _outliers(block, energy, thresholds.energy_outlier, thresholds.min_energy_deviation, thresholds.min_group)
    return [
        (row, f"energy {energy[row]:.6g} eV/atom, others of its composition have {median:.6g}") for row, median in found
    ]


def _outliers(block: Block, values: Array, sigmas: float, floor: float, min_group: int) -> list[tuple[int, float]]:
    """Rows whose value lies far from the median of their composition, and that median.

    Args:
        block: structures.
        values: (n,), NaN where there is none.
        sigmas: robust standard deviations, from the median absolute deviation.
        floor: deviations up to this are never far.
        min_group: smaller compositions are not judged.
    """
    found = []
    for rows in _same_composition(block, min_group):
        rows = rows[np.isfinite(values[rows])]
        if len(rows) < min_group:
            continue
        median = float(np.median(values[rows]))
        deviations = np.abs(values[rows] - median)
        limit = max(floor, sigmas * _MAD_TO_SIGMA * float(np.median(deviations)))
        found += [(row, median) for row in rows[deviations > limit].tolist()]
    return found


def _same_composition(block: Block, min_group: int) -> list[Array]:
    """Rows of each composition that has at least `min_group` of them."""
    random = np.random.default_rng(_HASH_SEED)
    counts = composition_matrix(block).astype(np.int64)
    # A random weight for each element makes one 64-bit number of a composition; overflow wraps around, as it should.
    keys = counts @ random.integers(1, 2**62, counts.shape[1])
    return [rows for rows in _group(keys) if len(rows) >= min_group]


def _group(keys: Array) -> list[Array]:
    """Rows of each key, rows ascending."""
    order = np.argsort(keys, kind="stable")
    _, first = np.unique(keys[order], return_index=True)
    return np.split(order, first[1:])


def _find_duplicates(block: Block, thresholds: TrustThresholds) -> list[Finding]:
    """Structures with the atoms, positions and cell of an earlier one, in the same order and to the last bit."""
    if not thresholds.duplicates:
        return []
    found: list[Finding] = []
    for rows in _group(_geometry_keys(block)):
        kept: list[int] = []
        for row in rows.tolist() if len(rows) > 1 else []:
            earlier = next((each for each in kept if _same_geometry(block, each, row)), None)
            if earlier is None:
                kept.append(row)
            else:
                found.append((row, f"repeats {_name(block, earlier)}"))
    return found


def _geometry_keys(block: Block) -> Array:
    """(n,) one number a structure; equal geometries have equal ones, and different ones nearly never."""
    random = np.random.default_rng(_HASH_SEED)
    places = np.arange(block.num_atoms) - np.repeat(block.ptr[:-1], block.natoms)
    weights = random.integers(1, 2**62, (int(block.natoms.max()), 4))
    words = np.concatenate([block.positions.view(np.int32), block.atomic_numbers[:, None].astype(np.int32)], axis=1)
    per_atom = np.einsum("ij,ij->i", words.astype(np.int64), weights[places])
    keys: Array = np.add.reduceat(per_atom, block.ptr[:-1])
    return keys


def _same_geometry(block: Block, first: int, second: int) -> bool:
    ptr = block.ptr
    one, other = slice(ptr[first], ptr[first + 1]), slice(ptr[second], ptr[second + 1])
    return (
        block.natoms[first] == block.natoms[second]
        and np.array_equal(block.atomic_numbers[one], block.atomic_numbers[other])
        and np.array_equal(block.positions[one], block.positions[other])
        and np.array_equal(block.cell[first], block.cell[second])
        and np.array_equal(block.pbc[first], block.pbc[second])
    )
