"""Find the few structures of an index whose fingerprints lie close enough, without comparing all with all.

All compositions share one k-d tree: the number of the composition is one more coordinate, with steps far wider than any
distance that is asked for. A block of structures is then one query, with no loop over compositions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from jmp_data.overlap.composition import Keys
from jmp_data.overlap.fingerprint import Closeness, Features

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Candidates:
    """The nearest candidates of some queries.

    Attributes:
        rows: (q, k) rows of the index, nearest first; -1 where there are no more.
        crowded: (q,) whether more than k may lie within the bounds.
    """

    rows: Rows
    crowded: npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class CandidateIndex:
    """Fingerprints of one slab, arranged for searching.

    Attributes:
        keys: (n,) compositions.
        features: (n, d) fingerprints.
        closeness: what counts as close.
    """

    keys: Keys
    features: Features
    closeness: Closeness

    @cached_property
    def _known(self) -> Keys:
        return np.unique(self.keys)

    @cached_property
    def _tree(self) -> Any:
        return cKDTree(self._coordinates(np.searchsorted(self._known, self.keys), self.features))

    def _coordinates(self, classes: Rows, features: Features) -> Features:
        step = 4 * self.closeness.radius
        return np.concatenate([classes[:, None] * step, self.closeness.scaled(features)], axis=1)

    def known(self, keys: Keys) -> npt.NDArray[np.bool_]:
        """(q,) whether the index holds anything of these compositions."""
        place = np.searchsorted(self._known, keys)
        found = self._known[np.minimum(place, len(self._known) - 1)] == keys if len(self._known) else keys != keys
        return np.asarray(found)

    def nearest(self, keys: Keys, features: Features, count: int) -> Candidates:
        """The `count` nearest candidates of each query; all compositions must be known.

        Args:
            keys: (q,) compositions.
            features: (q, d) fingerprints.
            count: how many.
        """
        if len(keys) == 0:
            return Candidates(np.zeros((0, count), np.int64), np.zeros(0, bool))
        points = self._coordinates(np.searchsorted(self._known, keys), features)
        distances, rows = self._tree.query(
            points, k=list(range(1, count + 1)), p=self.closeness.norm, distance_upper_bound=self.closeness.radius
        )
        rows = np.where(np.isfinite(distances), rows, -1).astype(np.int64)
        crowded = rows[:, -1] >= 0
        return Candidates(self._without_outside(rows, features), crowded)

    def _without_outside(self, rows: Rows, features: Features) -> Rows:
        """Drop candidates inside the ball but outside the exact bounds, and close the gaps."""
        query, place = np.nonzero(rows >= 0)
        inside = self.closeness.within(features[query], self.features[rows[query, place]])
        kept = np.full_like(rows, -1)
        query, place = query[inside], place[inside]
        first = np.searchsorted(query, query, "left")
        kept[query, np.arange(len(query)) - first] = rows[query, place]
        return kept

    def all_near(self, key: np.uint64, features: Features, *, skip: Rows) -> Rows:
        """(m,) all candidates of one query but those in `skip`, nearest first.

        Args:
            key: composition.
            features: (d,) fingerprint.
            skip: rows that are known already.
        """
        point = self._coordinates(np.searchsorted(self._known, [key]), features[None])
        rows = np.array(self._tree.query_ball_point(point[0], self.closeness.radius, p=self.closeness.norm), np.int64)
        rows = np.setdiff1d(rows, skip)
        rows = rows[self.closeness.within(np.broadcast_to(features, (len(rows), len(features))), self.features[rows])]
        offset = self._tree.data[rows] - point
        return rows[np.argsort(np.linalg.norm(offset, ord=self.closeness.norm, axis=1), kind="stable")]
