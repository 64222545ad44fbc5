"""Splits as rules: index lists that any process works out again from a few numbers, each with a digest that proves it.

A part of a split never carries indices. It names the rule, how many rows the rule was applied to and which stretch of
the resulting list it stands for; whoever reads it applies the rule again and compares the digest of the whole list.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from jmp_data.errors import ManifestError, RawFileError
from jmp_data.sources.protocol import Part, SplitPlan

Array = npt.NDArray[Any]

REFERENCE_SEED = 42
REFERENCE = "RandomState(42)"
"""Name of the reference's rule: NumPy's legacy generator, seeded with 42, shuffles all row numbers."""


def shuffled(count: int, seed: int = REFERENCE_SEED) -> Array:
    """Row numbers in the order of `numpy.random.RandomState(seed).shuffle`, which NumPy has frozen.

    Args:
        count: number of rows.
        seed: of the legacy generator.

    Returns:
        (count,) int64, a permutation.
    """
    rows = np.arange(count, dtype=np.int64)
    np.random.RandomState(seed).shuffle(rows)
    return rows


def cut(rows: Array, sizes: Mapping[str, int]) -> dict[str, Array]:
    """Consecutive stretches of a list of rows.

    Args:
        rows: (n,) in the order of the rule.
        sizes: split → rows, in order; -1 for all that the others leave. A list that is too short gives shorter splits.

    Returns:
        Split → its rows.
    """
    known = sum(size for size in sizes.values() if size >= 0)
    splits: dict[str, Array] = {}
    start = 0
    for name, size in sizes.items():
        stop = start + (size if size >= 0 else max(0, len(rows) - known))
        splits[name] = rows[start:stop]
        start = min(stop, len(rows))
    return splits


def time_blocks(times: Array, sizes: Mapping[str, int]) -> dict[str, Array]:
    """Frames of one trajectory split by time, so that no split has the neighbours in time of another's frames.

    Training frames come from the first 60 % of the trajectory, validation frames from 61 to 70 %, test frames from the
    last 29 %; the 1 % gaps between them are used by none. Where a split wants fewer frames than its stretch holds, the
    reference's generator picks them.

    Args:
        times: (n,) place of each frame in the trajectory, any order.
        sizes: frames wanted in `train`, `val` and `test`; -1 for the whole stretch.

    Returns:
        `contiguous_train`, `contiguous_val` and `contiguous_test` → rows.
    """
    order = np.argsort(times, kind="stable")
    count = len(order)
    stretches = {"train": (0, 60), "val": (61, 70), "test": (71, 100)}
    splits = {}
    for name, (first, last) in stretches.items():
        stretch = order[count * first // 100 : count * last // 100]
        wanted = sizes[name] if sizes[name] >= 0 else len(stretch)
        splits[f"contiguous_{name}"] = stretch[shuffled(len(stretch))][:wanted]
    return splits


def index_digest(rows: Array) -> str:
    """SHA-256 of a list of rows as little-endian 64-bit integers."""
    return hashlib.sha256(np.ascontiguousarray(rows, "<i8").tobytes()).hexdigest()


@dataclass(frozen=True, slots=True)
class RowRange:
    """A stretch of a split's list of rows, as a part carries it.

    Attributes:
        rule: what makes the list, in words.
        count: rows that the rule was applied to.
        digest: of the split's whole list.
        start: first position in the list.
        stop: one past the last position.
    """

    rule: str
    count: int
    digest: str
    start: int
    stop: int

    def to_selection(self) -> tuple[Any, ...]:
        """Plain values for `Part.selection`."""
        return (self.rule, self.count, self.digest, self.start, self.stop)

    @classmethod
    def of(cls, part: Part) -> RowRange:
        """The stretch that a part stands for."""
        return cls(*part.selection[:5])

    def take(self, rows: Array, count: int, where: str) -> Array:
        """The stretch of a list that was worked out again.

        Args:
            rows: the split's whole list.
            count: rows that the rule was applied to this time.
            where: raw file, for the error message.

        Raises:
            RawFileError: it is not the list that was planned with.
        """
        if count != self.count or index_digest(rows) != self.digest:
            raise RawFileError(
                f"{where}: the rule {self.rule!r} now gives other rows ({len(rows)} of {count}) than when the build "
                "was planned; the raw file changed in between, run the build again"
            )
        return rows[self.start : self.stop]


def plan_rows(
    split: str,
    files: Sequence[str],
    rows: Array,
    *,
    rule: str,
    count: int,
    rows_per_part: int,
    notes: Sequence[str] = (),
) -> SplitPlan:
    """A split whose parts are stretches of one list of rows.

    Args:
        split: output split.
        files: raw files that every part reads.
        rows: the split's list.
        rule: what makes the list, in words.
        count: rows that the rule was applied to.
        rows_per_part: at most so many records in a part.
        notes: what else should be said about this split.
    """
    digest = index_digest(rows)
    parts = tuple(
        Part(split, tuple(files), RowRange(rule, count, digest, start, stop).to_selection(), stop - start)
        for start, stop in ((at, min(at + rows_per_part, len(rows))) for at in range(0, len(rows), rows_per_part))
    )
    stated = f"{rule}: {len(rows)} of {count} rows; SHA-256 of the row numbers as 64-bit integers {digest}"
    return SplitPlan(split, parts, (stated, *notes))


def choose_rows(splits: Mapping[str, Array], split: str, where: str) -> Array:
    """The list of one split.

    Raises:
        ManifestError: there is no such split, or it has no rows.
    """
    if split not in splits:
        raise ManifestError(f"{where}: no split {split!r}; choose from {', '.join(splits)}")
    if len(splits[split]) == 0:
        some = ", ".join(name for name, rows in splits.items() if len(rows))
        raise ManifestError(f"{where}: split {split} is empty, the file has too few rows for it; there are {some}")
    return splits[split]
