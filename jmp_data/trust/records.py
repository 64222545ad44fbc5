"""Physical checks that a record fails or passes by itself: atoms too close, forces out of bounds, net forces."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from jmp_data.schema import Block
from jmp_data.trust.nearest import nearest_distances
from jmp_data.trust.row_facts import largest_forces
from jmp_data.trust.thresholds import TrustThresholds

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with one row of a block.

    Attributes:
        row: of the block.
        reason: code, for counting.
        message: evidence in words.
    """

    row: int
    reason: str
    message: str


def check_records(block: Block, thresholds: TrustThresholds) -> list[Finding]:
    """Everything that rows of a block show by themselves, rows ascending; one row may have several findings.

    Args:
        block: structures that passed `check_block`: finite geometry, finite required targets. Checks of forces are left
            out where the block has no such column; rows where they are NaN are not judged.
        thresholds: of the source.
    """
    if len(block) == 0:
        return []
    checks: tuple[Callable[[Block, TrustThresholds], Iterable[Finding]], ...] = (
        _find_close_atoms,
        _find_large_forces,
        _find_net_forces,
    )
    return sorted((each for check in checks for each in check(block, thresholds)), key=lambda each: each.row)


def _find_close_atoms(block: Block, thresholds: TrustThresholds) -> Iterable[Finding]:
    on_top, near = thresholds.on_top_distance or 0.0, thresholds.min_distance or 0.0
    if not max(on_top, near):
        return
    nearest = nearest_distances(block, max(on_top, near))
    for row in np.flatnonzero(nearest < max(on_top, near)).tolist():
        reason, limit = ("atoms_on_top", on_top) if nearest[row] < on_top else ("atoms_too_close", near)
        yield Finding(row, reason, f"two atoms are {nearest[row]:.3f} Å apart, less than {limit:g} Å")


def _find_large_forces(block: Block, thresholds: TrustThresholds) -> Iterable[Finding]:
    if thresholds.max_force is None or "forces" not in block.columns:
        return
    largest = largest_forces(block)
    for row in np.flatnonzero(largest > thresholds.max_force).tolist():
        yield Finding(row, "large_force", f"has a force of {largest[row]:.4g} eV/Å")


def _find_net_forces(block: Block, thresholds: TrustThresholds) -> Iterable[Finding]:
    """Isolated molecules only: a slab's fixed layers and a periodic cell's grid take up momentum."""
    if thresholds.max_net_force is None or "forces" not in block.columns or block.pbc.any(axis=1).all():
        return
    starts = block.ptr[:-1]
    net = np.linalg.norm(np.add.reduceat(block.forces.astype(np.float64), starts, axis=0), axis=1)
    isolated = ~block.pbc.any(axis=1) & ~np.logical_or.reduceat(block.fixed, starts)
    limit = thresholds.max_net_force * np.sqrt(block.natoms)
    for row in np.flatnonzero(isolated & (net > limit)).tolist():
        yield Finding(row, "net_force", f"forces add up to {net[row]:.4g} eV/Å on an isolated molecule")
