"""What only a whole split can tell: structures that lie far from others of their composition, and exact repeats."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from jmp_data.trust.thresholds import TrustThresholds

Array = npt.NDArray[Any]
LoadFacts = Callable[[], Array]
"""Gives the `ROW_FACTS` of one part."""

_MAD_TO_SIGMA = 1.4826  # of a normal distribution
_ROWS_IN_MEMORY: Final = 1 << 24  # 400 MB of facts


@dataclass(frozen=True, slots=True)
class SplitFinding:
    """What is remarkable about one structure of a split.

    Attributes:
        index: of the structure in the split.
        reason: code, for counting.
        message: evidence in words.
        earlier: index of the structure that it repeats, for a `duplicate_frame`.
    """

    index: int
    reason: str
    message: str
    earlier: int | None = None


def check_split(
    parts: Sequence[LoadFacts], thresholds: TrustThresholds, *, rows_in_memory: int = _ROWS_IN_MEMORY
) -> list[SplitFinding]:
    """Outliers of forces and energies, and repeats, ascending by index.

    Structures are taken in bundles of whole compositions (or whole groups of equal geometries), so that memory holds a
    share of a large split, and the result depends neither on the bundles nor on the parts.

    Args:
        parts: in their final order.
        thresholds: of the source.
        rows_in_memory: about so many structures are held at once.
    """
    counts = [len(load()) for load in parts]
    bundles = -(-sum(counts) // rows_in_memory)
    starts = np.cumsum([0, *counts[:-1]]).tolist() if counts else []
    found: list[SplitFinding] = []
    for number in range(bundles):
        index, facts = _gather(parts, starts, "composition", number, bundles)
        found += _force_outliers(index, facts, thresholds)
        found += _energy_outliers(index, facts, thresholds)
        if thresholds.duplicates:
            if bundles > 1:
                index, facts = _gather(parts, starts, "geometry", number, bundles)
            found += _repeats(index, facts["geometry"])
    return sorted(found, key=lambda each: each.index)


def _gather(
    parts: Sequence[LoadFacts], starts: Sequence[int], key: str, number: int, bundles: int
) -> tuple[Array, Array]:
    """Indices and facts of all structures whose key falls into one bundle, ascending by index."""
    indices, chosen = [], []
    for start, load in zip(starts, parts, strict=True):
        facts = load()
        rows = np.flatnonzero(facts[key] % np.uint64(bundles) == number)
        indices.append(start + rows)
        chosen.append(facts[rows])
    return np.concatenate(indices), np.concatenate(chosen)


def _force_outliers(index: Array, facts: Array, thresholds: TrustThresholds) -> Iterator[SplitFinding]:
    if thresholds.force_outlier is None:
        return
    values, floor = facts["force"].astype(np.float64), thresholds.min_force_deviation
    for row, median in _outliers(facts["composition"], values, thresholds.force_outlier, floor, thresholds.min_group):
        text = f"largest force {values[row]:.4g} eV/Å, others of its composition have {median:.4g}"
        yield SplitFinding(int(index[row]), "force_outlier", text)


def _energy_outliers(index: Array, facts: Array, thresholds: TrustThresholds) -> Iterator[SplitFinding]:
    if thresholds.energy_outlier is None:
        return
    values, floor = facts["energy"].astype(np.float64), thresholds.min_energy_deviation
    for row, median in _outliers(facts["composition"], values, thresholds.energy_outlier, floor, thresholds.min_group):
        text = f"energy {values[row]:.6g} eV/atom, others of its composition have {median:.6g}"
        yield SplitFinding(int(index[row]), "energy_outlier", text)


def _outliers(keys: Array, values: Array, sigmas: float, floor: float, min_group: int) -> Iterable[tuple[int, float]]:
    """Rows whose value lies far from the median of their group, and that median.

    Args:
        keys: (n,) group of each row.
        values: (n,), NaN where there is none.
        sigmas: robust standard deviations, from the median absolute deviation.
        floor: deviations up to this are never far.
        min_group: smaller groups are not judged.
    """
    rows = np.flatnonzero(np.isfinite(values))
    _, groups, sizes = np.unique(keys[rows], return_inverse=True, return_counts=True)
    kept = sizes[groups] >= min_group
    rows = rows[kept]
    if len(rows) == 0:
        return []
    _, groups, sizes = np.unique(groups[kept], return_inverse=True, return_counts=True)
    median = _medians(groups, sizes, values[rows])[groups]
    deviation = np.abs(values[rows] - median)
    spread = _MAD_TO_SIGMA * _medians(groups, sizes, deviation)[groups]
    far = np.flatnonzero(deviation > np.maximum(floor, sigmas * spread))
    return zip(rows[far].tolist(), median[far].tolist(), strict=True)


def _medians(groups: Array, sizes: Array, values: Array) -> Array:
    """(k,) median of each group, without a loop over groups."""
    ordered = values[np.lexsort((values, groups))]
    first = np.cumsum(sizes) - sizes
    medians: Array = (ordered[first + (sizes - 1) // 2] + ordered[first + sizes // 2]) / 2
    return medians


def _repeats(index: Array, geometry: Array) -> Iterator[SplitFinding]:
    """Structures with the atoms, positions and cell of an earlier one."""
    _, first, groups = np.unique(geometry, return_index=True, return_inverse=True)
    earlier = first[groups]  # the first of equal keys is the earliest, for indices ascend
    for row in np.flatnonzero(earlier != np.arange(len(geometry))).tolist():
        yield SplitFinding(int(index[row]), "duplicate_frame", "repeats", int(index[earlier[row]]))
