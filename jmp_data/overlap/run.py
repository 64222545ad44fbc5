"""The search: the first side streams past an index of the second; what stays in memory is one slab and the matches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from jmp_data.errors import ManifestError
from jmp_data.overlap.geometry import Geometry
from jmp_data.overlap.settings import OverlapSettings
from jmp_data.overlap.slabs import Queries, Slab, load_slabs, read_queries
from jmp_data.overlap.verify_match import verified_rmsd
from jmp_data.shards import ShardDataset

Rows = npt.NDArray[np.int64]

MATCH: Final = np.dtype([("row", np.int64), ("partner", np.int64), ("rmsd", np.float64), ("exact", np.bool_)])
"""One structure of the first side, and its closest partner on the second."""

NEAR_MARK, EXACT_MARK = 1, 2


@dataclass(frozen=True, eq=False)
class PairResult:
    """What two data sets have in common.

    Attributes:
        left: number of the data set on the first side.
        right: number on the second side.
        matches: (m,) of `MATCH`, by row; one for each structure of the left data set that has a partner.
        touched: (structures of the right data set,) 0, 1 for a near and 2 for an exact partner on the left.
        verified: pairs whose RMSD was worked out.
        unresolved: rows of the left data set that were given up: too many similar fingerprints, no match among those
            that were tried.
    """

    left: int
    right: int
    matches: npt.NDArray[Any]
    touched: npt.NDArray[np.uint8]
    verified: int
    unresolved: Rows

    @property
    def exact(self) -> int:
        """Structures of the left data set with an exact partner."""
        return int(self.matches["exact"].sum())

    @property
    def near(self) -> int:
        """Structures of the left data set with a near partner and no exact one."""
        return len(self.matches) - self.exact


@dataclass(eq=False)
class _Findings:
    """What is known about two data sets so far."""

    left: int
    right: int
    touched: npt.NDArray[np.uint8]
    matches: list[npt.NDArray[Any]] = field(default_factory=list)
    unresolved: list[int] = field(default_factory=list)
    verified: int = 0

    def finish(self) -> PairResult:
        """Keep the closest partner of each structure; one slab may have found what another gave up."""
        every = np.concatenate([np.zeros(0, MATCH), *self.matches])
        every = every[np.lexsort((every["partner"], every["rmsd"], every["row"]))]
        matches = every[np.unique(every["row"], return_index=True)[1]]
        unresolved = np.setdiff1d(np.array(self.unresolved, np.int64), matches["row"])
        return PairResult(self.left, self.right, matches, self.touched, self.verified, unresolved)


@dataclass(frozen=True, eq=False)
class Overlap:
    """Everything that a search found.

    Attributes:
        settings: thresholds.
        left: first side, usually pre-training data.
        right: second side, usually what a model is tested on.
        pairs: one for each data set of the left and each of the right, in this order.
    """

    settings: OverlapSettings
    left: tuple[ShardDataset, ...]
    right: tuple[ShardDataset, ...]
    pairs: tuple[PairResult, ...]

    def rows_with_partner(self, left: int) -> Rows:
        """(m,) structures of a data set on the left with a partner anywhere on the right, sorted."""
        rows = [pair.matches["row"] for pair in self.pairs if pair.left == left]
        return np.unique(np.concatenate(rows)) if rows else np.zeros(0, np.int64)


def find_overlap(
    left: Sequence[ShardDataset],
    right: Sequence[ShardDataset],
    settings: OverlapSettings | None = None,
    *,
    progress: Callable[[int, str], None] = lambda count, note: None,
) -> Overlap:
    """Find structures of the left data sets that are exact or near duplicates of structures on the right.

    Args:
        left: data sets that stream, usually pre-training data; any size.
        right: data sets that are indexed, usually downstream data.
        settings: thresholds.
        progress: called with the number of structures read and what is being done.

    Raises:
        ManifestError: a side is empty, or a data set is on both.
        ShardError: a block is damaged.
    """
    settings = settings or OverlapSettings()
    if not left or not right:
        raise ManifestError("overlap needs at least one data set on each side")
    shared = {dataset.fingerprint for dataset in left} & {dataset.fingerprint for dataset in right}
    for dataset in left:
        if dataset.fingerprint in shared:
            raise ManifestError(f"{dataset.path}: is on both sides; a data set repeats itself entirely")
    pairs = [_Findings(i, j, np.zeros(len(other), np.uint8)) for i in range(len(left)) for j, other in enumerate(right)]
    for slabs in load_slabs(right, settings, lambda count: progress(count, "indexing")):
        for number, dataset in enumerate(left):
            for block in range(dataset.num_blocks):
                queries = read_queries(dataset, block, slabs)
                for slab in slabs:
                    if slab.kind in queries:
                        pair = pairs[number * len(right) + slab.dataset]
                        _compare(queries[slab.kind], slab, pair, settings)
                progress(int(dataset.block_structures[block]), f"{dataset.name}/{dataset.split}")
    return Overlap(settings, tuple(left), tuple(right), tuple(pair.finish() for pair in pairs))


def _compare(queries: Queries, slab: Slab, pair: _Findings, settings: OverlapSettings) -> None:
    """Verify the candidates of a block and note what matches."""
    known = np.flatnonzero(slab.index.known(queries.keys))
    candidates = slab.index.nearest(queries.keys[known], queries.features[known], settings.nearest)
    limit = settings.molecule_limit if slab.kind == "molecule" else settings.crystal_limit
    matches: list[tuple[int, int, float, bool]] = []
    for place in np.flatnonzero((candidates.rows[:, 0] >= 0) | candidates.crowded):
        query = int(known[place])
        nearest = candidates.rows[place][candidates.rows[place] >= 0]
        search = _Verification(queries, query, slab, pair, settings)
        search.try_all(nearest)
        if candidates.crowded[place] and search.best is None:
            rest = slab.index.all_near(queries.keys[query], queries.features[query], skip=nearest)
            search.try_until_found(rest[: limit - len(nearest)])
            if search.best is None and len(rest) > limit - len(nearest):
                pair.unresolved.append(int(queries.rows[query]))
        if search.best is not None:
            matches.append(search.best)
    pair.matches.append(np.array(matches, MATCH))


class _Verification:
    """One structure of the left against some of a slab."""

    def __init__(self, queries: Queries, query: int, slab: Slab, pair: _Findings, settings: OverlapSettings) -> None:
        self._row = int(queries.rows[query])
        self._geometry = Geometry.of(queries.geometry, query, queries.ptr)
        self._features = queries.features[query]
        self._slab, self._pair, self._settings = slab, pair, settings
        self.best: tuple[int, int, float, bool] | None = None

    def try_all(self, candidates: Rows) -> None:
        for candidate in candidates:
            self._try(int(candidate))

    def try_until_found(self, candidates: Rows) -> None:
        for candidate in candidates:
            self._try(int(candidate))
            if self.best is not None:
                return

    def _try(self, candidate: int) -> None:
        slab, settings = self._slab, self._settings
        self._pair.verified += 1
        rmsd = verified_rmsd(self._geometry, Geometry.of(slab.geometry, candidate, slab.ptr), settings)
        if not rmsd <= settings.near:
            return
        exact = rmsd <= settings.exact and (
            slab.kind == "molecule"
            or slab.index.closeness.indistinguishable(self._features, slab.index.features[candidate])
        )
        partner = int(slab.rows[candidate])
        mark = EXACT_MARK if exact else NEAR_MARK
        self._pair.touched[partner] = max(int(self._pair.touched[partner]), mark)
        if self.best is None or rmsd < self.best[2]:
            self.best = (self._row, partner, rmsd, exact)
