"""What only a whole split can tell: structures that lie far from others of their composition, and exact repeats."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numba import njit

from jmp_data.trust.gathering import CELL_ROWS, gather
from jmp_data.trust.thresholds import TrustThresholds

Array = npt.NDArray[Any]
LoadFacts = Callable[[], Array]
"""Gives the `ROW_FACTS` of one part."""

_MAD_TO_SIGMA = 1.4826  # of a normal distribution
_ROWS_IN_MEMORY: Final = 1 << 22  # 100 MB, and as much again to deal them out
_LABELS: Final = np.dtype(
    [("index", np.int64), ("composition", np.uint64), ("energy", np.float32), ("force", np.float32)]
)
_GEOMETRIES: Final = np.dtype([("index", np.int64), ("geometry", np.uint64)])


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
    parts: Sequence[LoadFacts],
    thresholds: TrustThresholds,
    *,
    total: int | None = None,
    scratch: Path | None = None,
    rows_in_memory: int = _ROWS_IN_MEMORY,
    cell_rows: int = CELL_ROWS,
) -> list[SplitFinding]:
    """Outliers of forces and energies, and repeats, ascending by index.

    Structures are taken in groups of whole compositions, then of equal geometries, so that memory holds a share of a
    large split, and the result depends neither on the shares nor on the parts.

    Args:
        parts: in their final order.
        thresholds: of the source.
        total: structures in all parts; counted by loading them if None.
        scratch: folder for temporary files, of 24 bytes a structure; the system's by default.
        rows_in_memory: about so many structures are held at once, or all of the most frequent composition.
        cell_rows: about so many are looked at together.
    """
    total = sum(len(load()) for load in parts) if total is None else total
    bundles = max(1, -(-total // rows_in_memory))

    def cells(key: str, dtype: np.dtype[Any]) -> Iterator[Array]:
        pieces = _numbered(parts, dtype)
        return gather(pieces, key, dtype=dtype, bundles=bundles, cell_rows=cell_rows, scratch=scratch)

    found = [each for rows in cells("composition", _LABELS) for each in _find_outliers(rows, thresholds)]
    if thresholds.duplicates:
        found += [each for rows in cells("geometry", _GEOMETRIES) for each in _find_repeats(rows)]
    return sorted(found, key=lambda each: each.index)


def _numbered(parts: Sequence[LoadFacts], dtype: np.dtype[Any]) -> Iterator[Array]:
    """Rows of each part: the structure's index in the split, and those of its facts that `dtype` names."""
    start = 0
    for load in parts:
        facts = load()
        rows = np.empty(len(facts), dtype)
        rows["index"] = np.arange(start, start + len(facts))
        for name in dtype.names or ():
            if name != "index":
                rows[name] = facts[name]
        start += len(facts)
        yield rows


def _find_outliers(rows: Array, thresholds: TrustThresholds) -> Iterator[SplitFinding]:
    """Largest forces and energies far from those of other structures of the same composition."""
    energy = "energy {:.6g} eV/atom, others of its composition have {:.6g}"
    force = "largest force {:.4g} eV/Å, others of its composition have {:.4g}"
    order = np.argsort(rows["composition"])
    keys = rows["composition"][order]
    for name, sigmas, floor, text in (
        ("force", thresholds.force_outlier, thresholds.min_force_deviation, force),
        ("energy", thresholds.energy_outlier, thresholds.min_energy_deviation, energy),
    ):
        if sigmas is None:
            continue
        values = rows[name][order].astype(np.float64) + 0.0  # one zero, or a median might be either
        far, medians = _far_from_median(keys, values, sigmas, floor, thresholds.min_group)
        for row, median in zip(far.tolist(), medians.tolist(), strict=True):
            index = int(rows["index"][order[row]])
            yield SplitFinding(index, f"{name}_outlier", text.format(values[row], median))


@njit(cache=True, nogil=True)
def _far_from_median(keys: Array, values: Array, sigmas: float, floor: float, min_group: int) -> tuple[Array, Array]:
    """Rows whose value lies far from the median of their group, and that median.

    Args:
        keys: (n,) group of each row, ascending.
        values: (n,), NaN or infinite where there is none.
        sigmas: robust standard deviations, from the median absolute deviation.
        floor: deviations up to this are never far.
        min_group: smaller groups are not judged.
    """
    rows, medians = [np.int64(0) for _ in range(0)], [0.0 for _ in range(0)]
    start = 0
    while start < len(keys):
        stop = start + 1
        while stop < len(keys) and keys[stop] == keys[start]:
            stop += 1
        group = values[start:stop]
        present = group[np.isfinite(group)]
        if len(present) >= min_group:
            median = np.median(present)
            limit = max(floor, sigmas * (_MAD_TO_SIGMA * np.median(np.abs(present - median))))
            for row in range(start, stop):
                if np.isfinite(values[row]) and abs(values[row] - median) > limit:
                    rows.append(np.int64(row))
                    medians.append(median)
        start = stop
    return np.array(rows, np.int64), np.array(medians, np.float64)


def _find_repeats(rows: Array) -> Iterator[SplitFinding]:
    """Structures with the atoms, positions and cell of an earlier one."""
    keys = np.sort(rows["geometry"])
    if not np.any(keys[1:] == keys[:-1]):
        return
    _, first, groups = np.unique(rows["geometry"], return_index=True, return_inverse=True)
    earlier = first[groups]  # the first of equal keys is the earliest, for indices ascend
    for row in np.flatnonzero(earlier != np.arange(len(rows))).tolist():
        yield SplitFinding(int(rows["index"][row]), "duplicate_frame", "repeats", int(rows["index"][earlier[row]]))
