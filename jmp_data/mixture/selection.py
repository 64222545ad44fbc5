"""Which structures of a data set take part: everything, or a view of it that costs memory only for what is left out.

The rules apply in this order: `include` (a list of structures, for instance those of an element filter), `exclude`, the
first `first` of what is left, and a seeded `fraction` of that, spread evenly over the blocks. Counts per block are
enough to plan an epoch; rows of a block are worked out when the block is visited.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from jmp_data.errors import ManifestError
from jmp_data.mixture.permutation import derive_key, permutation

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class RowSelection:
    """A view of one data set.

    Attributes:
        block_ptr: (num_blocks + 1,) first structure of each block.
        include: (n,) sorted structure indices that may take part; None for all.
        exclude: (n,) sorted structure indices that may not; None for none.
        first: how many of the remaining structures, from the start; None for all.
        fraction: share of the remaining structures, spread over the blocks; None for all.
        seed: what the choice of the fraction depends on.
    """

    block_ptr: Rows
    include: Rows | None = None
    exclude: Rows | None = None
    first: int | None = None
    fraction: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.first is not None and self.first < 1:
            raise ManifestError(f"a subset of the first {self.first} structures is empty; give a positive number")
        if self.fraction is not None and not 0.0 < self.fraction <= 1.0:
            raise ManifestError(f"fraction {self.fraction} must lie above 0 and at most at 1")

    @property
    def is_everything(self) -> bool:
        """True where no structure is left out."""
        return self.include is None and self.exclude is None and self.first is None and self.fraction is None

    @cached_property
    def _eligible(self) -> Rows:
        """Structures of each block after the lists and `first`, before `fraction`."""
        counts = np.diff(self.block_ptr)
        if self.include is not None:
            counts = np.diff(np.searchsorted(self.include, self.block_ptr))
        if self.exclude is not None:
            dropped = self.exclude if self.include is None else np.intersect1d(self.exclude, self.include)
            counts = counts - np.diff(np.searchsorted(dropped, self.block_ptr))
        if self.first is not None:
            counts = np.diff(np.minimum(np.concatenate([[0], np.cumsum(counts)]), self.first))
        return counts.astype(np.int64)

    @cached_property
    def kept_ptr(self) -> Rows:
        """(num_blocks + 1,) first kept structure of each block, counting kept structures only."""
        ends = np.concatenate([[0], np.cumsum(self._eligible)])
        if self.fraction is not None:
            # The small term keeps 0.1 × 30 at 3 where the product falls short of it.
            ends = np.floor(ends * self.fraction + 1e-9).astype(np.int64)
        return ends

    @cached_property
    def kept(self) -> Rows:
        """(num_blocks,) kept structures of each block."""
        return np.diff(self.kept_ptr)

    @property
    def size(self) -> int:
        """Kept structures."""
        return int(self.kept_ptr[-1])

    def rows(self, block: int) -> Rows:
        """(kept[block],) rows of one block that take part, ascending."""
        start, stop = int(self.block_ptr[block]), int(self.block_ptr[block + 1])
        rows = np.arange(stop - start, dtype=np.int64)
        if self.include is not None:
            rows = _between(self.include, start, stop) - start
        if self.exclude is not None:
            rows = np.setdiff1d(rows, _between(self.exclude, start, stop) - start, assume_unique=True)
        rows = rows[: int(self._eligible[block])]
        kept = int(self.kept[block])
        if kept < len(rows):
            rows = rows[np.sort(permutation(len(rows), derive_key(self.seed, block))[:kept])]
        return rows

    @property
    def fingerprint(self) -> str:
        """Digest of the rules; "all" where nothing is left out."""
        if self.is_everything:
            return "all"
        digest = hashlib.sha256(json.dumps([self.first, self.fraction, self.seed]).encode())
        for rows in (self.include, self.exclude):
            digest.update(b"none" if rows is None else len(rows).to_bytes(8, "little") + rows.astype("<i8").tobytes())
        return digest.hexdigest()


def _between(sorted_rows: Rows, start: int, stop: int) -> Rows:
    low, high = np.searchsorted(sorted_rows, [start, stop])
    return sorted_rows[low:high]
