"""What only a whole split can tell: structures that lie far from others of their composition, and exact repeats."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from jmp_data.trust.row_facts import ROW_FACTS
from jmp_data.trust.thresholds import TrustThresholds

Array = npt.NDArray[Any]
LoadFacts = Callable[[], Array]
"""Gives the `ROW_FACTS` of one part."""

_MAD_TO_SIGMA = 1.4826  # of a normal distribution
_ROWS_IN_MEMORY: Final = 1 << 23  # 270 MB, and as much again to sort them
_SPOOLED_BYTES: Final = 1 << 25  # of a bundle before it goes to disk
_ROW: Final = np.dtype([("index", np.int64), *ROW_FACTS.descr])


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
    scratch: Path | None = None,
    rows_in_memory: int = _ROWS_IN_MEMORY,
) -> list[SplitFinding]:
    """Outliers of forces and energies, and repeats, ascending by index.

    Structures are taken in bundles of whole compositions, then of whole groups of equal geometries, so that memory
    holds a share of a large split, and the result depends neither on the bundles nor on the parts.

    Args:
        parts: in their final order.
        thresholds: of the source.
        scratch: folder for temporary files, of 32 bytes a structure; the system's by default.
        rows_in_memory: about so many structures are held at once.
    """
    total = sum(len(load()) for load in parts)
    bundles = max(1, -(-total // rows_in_memory))
    found: list[SplitFinding] = []
    for rows in _gather(parts, "composition", bundles, scratch):
        found += _find_outliers(rows, thresholds)
    if thresholds.duplicates:
        for rows in _gather(parts, "geometry", bundles, scratch):
            found += _repeats(rows["index"], rows["geometry"])
    return sorted(found, key=lambda each: each.index)


def _gather(parts: Sequence[LoadFacts], key: str, bundles: int, scratch: Path | None) -> Iterator[Array]:
    """All structures in bundles, those of equal keys in one of them, ascending by index; each part is loaded once."""
    folder = None if scratch is None else str(scratch)
    with ExitStack() as stack:
        files = [stack.enter_context(SpooledTemporaryFile(_SPOOLED_BYTES, dir=folder)) for _ in range(bundles)]
        start = 0
        for load in parts:
            facts = load()
            rows = np.empty(len(facts), _ROW)
            rows["index"] = np.arange(start, start + len(facts))
            for name in ROW_FACTS.names or ():
                rows[name] = facts[name]
            bundle = facts[key] % np.uint64(bundles)
            order = np.argsort(bundle, kind="stable")
            edges = np.searchsorted(bundle[order], np.arange(1, bundles, dtype=np.uint64))
            for file, chosen in zip(files, np.split(rows[order], edges), strict=True):
                file.write(chosen.tobytes())
            start += len(facts)
        for file in files:
            file.seek(0)
            yield np.frombuffer(file.read(), _ROW)


def _find_outliers(rows: Array, thresholds: TrustThresholds) -> Iterator[SplitFinding]:
    """Largest forces and energies far from those of other structures of the same composition."""
    energy = "energy {:.6g} eV/atom, others of its composition have {:.6g}"
    force = "largest force {:.4g} eV/Å, others of its composition have {:.4g}"
    for name, sigmas, floor, text in (
        ("force", thresholds.force_outlier, thresholds.min_force_deviation, force),
        ("energy", thresholds.energy_outlier, thresholds.min_energy_deviation, energy),
    ):
        if sigmas is None:
            continue
        values = rows[name].astype(np.float64)
        for row, median in _outliers(rows["composition"], values, sigmas, floor, thresholds.min_group):
            yield SplitFinding(int(rows["index"][row]), f"{name}_outlier", text.format(values[row], median))


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
    rows = rows[np.lexsort((values[rows], keys[rows]))]
    keys, values = keys[rows], values[rows]
    first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])[: len(keys)])
    sizes = np.diff(first, append=len(keys))
    group = np.repeat(np.arange(len(first)), sizes)
    median = _middles(values, first, sizes)[group]
    deviation = np.abs(values - median)
    spread = _MAD_TO_SIGMA * _middles(deviation[np.lexsort((deviation, group))], first, sizes)[group]
    far = np.flatnonzero((deviation > np.maximum(floor, sigmas * spread)) & (sizes[group] >= min_group))
    return zip(rows[far].tolist(), median[far].tolist(), strict=True)


def _middles(ordered: Array, first: Array, sizes: Array) -> Array:
    """(k,) medians of groups that stand one after the other, each in ascending order."""
    medians: Array = (ordered[first + (sizes - 1) // 2] + ordered[first + sizes // 2]) / 2
    return medians


def _repeats(index: Array, geometry: Array) -> Iterator[SplitFinding]:
    """Structures with the atoms, positions and cell of an earlier one."""
    _, first, groups = np.unique(geometry, return_index=True, return_inverse=True)
    earlier = first[groups]  # the first of equal keys is the earliest, for indices ascend
    for row in np.flatnonzero(earlier != np.arange(len(geometry))).tolist():
        yield SplitFinding(int(index[row]), "duplicate_frame", "repeats", int(index[earlier[row]]))
