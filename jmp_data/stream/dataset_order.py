"""The order of one data set within one epoch, as a pure function of (selection, samples, key).

    epoch sequence   = segments          one per full copy of the data set, with the odd visits spread among them
    segment          = windows           `window_blocks` block visits each
    window           = shuffled samples  all rows of its visits, permuted together

A *visit* is a block together with how many of its kept rows count. A data set of n kept structures that owes m samples
is copied m // n times; each copy visits every block once, in its own random order. The remaining m % n samples are the
first structures (index modulo n), that is the first blocks once more and a part of the next; these odd visits are
dealt to the segments in random order, so that the end of an epoch is no different from its middle. With m < n there
are only odd visits.

Windows never cross segments, so a structure does not meet its own next copy, and a data set of few blocks is shuffled
completely within each copy. Everything costs O(blocks) once an epoch and O(1) per sample; nothing grows with m.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from jmp_data.mixture.permutation import derive_key, permutation
from jmp_data.mixture.selection import RowSelection

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Window:
    """Block visits of one data set whose rows are shuffled together.

    Attributes:
        dataset: which data set of the mixture.
        start: first sample of the window in the data set's epoch sequence.
        blocks: (num_visits,) block of each visit.
        counts: (num_visits,) rows that each visit contributes.
        selection: which rows those are.
        key: what the permutation depends on; None for stored order.
    """

    dataset: int
    start: int
    blocks: Ints
    counts: Ints
    selection: RowSelection
    key: int | None

    @cached_property
    def stop(self) -> int:
        """One past the last sample."""
        return self.start + int(self.counts.sum())

    @cached_property
    def samples(self) -> tuple[npt.NDArray[np.int32], Ints]:
        """(size,) visit of each sample and (size,) its row within the block, in stream order."""
        visits = np.repeat(np.arange(len(self.blocks), dtype=np.int32), self.counts)
        if self.selection.is_everything:
            starts = np.cumsum(self.counts) - self.counts
            rows = np.arange(len(visits), dtype=np.int64) - np.repeat(starts, self.counts)
        else:
            chosen = [self.selection.rows(int(b))[: int(c)] for b, c in zip(self.blocks, self.counts, strict=True)]
            rows = np.concatenate(chosen)
        if self.key is None:
            return visits, rows
        order = permutation(len(visits), self.key)
        return visits[order], rows[order]


class DatasetOrder:
    """Windows of one data set in one epoch.

    Args:
        dataset: which data set of the mixture.
        selection: the structures that take part.
        samples: how many samples the epoch takes from it.
        key: what the order depends on.
        window_blocks: block visits that are shuffled together.
        shuffle: False for stored order, window after window.
    """

    def __init__(
        self, dataset: int, selection: RowSelection, samples: int, *, key: int, window_blocks: int, shuffle: bool
    ) -> None:
        self.dataset, self.selection, self.samples = dataset, selection, samples
        self._key, self._window_blocks, self._shuffle = key, window_blocks, shuffle
        copies, odd = divmod(samples, selection.size)
        self._blocks = np.flatnonzero(selection.kept) if copies else np.zeros(0, np.int64)
        self._num_segments = max(copies, 1)
        self._odd_blocks, self._odd_counts = self._odd_visits(odd)
        # Segment s takes the odd visits from _odd_split[s] to _odd_split[s + 1].
        segments = np.arange(self._num_segments + 1, dtype=np.int64)
        self._odd_split = segments * len(self._odd_blocks) // self._num_segments
        odd_ptr = np.concatenate([[0], np.cumsum(self._odd_counts)])
        self._segment_ptr = segments * (selection.size if copies else 0) + odd_ptr[self._odd_split]
        self._segments: dict[int, tuple[Ints, Ints, Ints, Ints]] = {}
        self._recent: list[Window] = []

    def _odd_visits(self, odd: int) -> tuple[Ints, Ints]:
        """Blocks and row counts that hold the first `odd` kept structures, in random order."""
        ptr, kept = self.selection.kept_ptr, self.selection.kept
        blocks = np.flatnonzero(kept[: int(np.searchsorted(ptr, odd, "left"))])
        if self._shuffle:
            blocks = blocks[permutation(len(blocks), derive_key(self._key, 0))]
        return blocks, np.minimum(kept[blocks], odd - ptr[blocks])

    def _segment(self, number: int) -> tuple[Ints, Ints, Ints, Ints]:
        """Blocks and counts of all visits, first visit of each window, first sample of each window."""
        if number not in self._segments:
            odd = slice(int(self._odd_split[number]), int(self._odd_split[number + 1]))
            blocks = np.concatenate([self._blocks, self._odd_blocks[odd]])
            counts = np.concatenate([self.selection.kept[self._blocks], self._odd_counts[odd]])
            if self._shuffle:
                order = permutation(len(blocks), derive_key(self._key, 1, number))
                blocks, counts = blocks[order], counts[order]
            windows = -(-len(blocks) // self._window_blocks)
            bounds = np.arange(windows + 1, dtype=np.int64) * len(blocks) // windows
            starts = self._segment_ptr[number] + np.concatenate([[0], np.cumsum(counts)])[bounds]
            if len(self._segments) > 1:  # the prefetcher may be one segment ahead of the reader
                del self._segments[min(self._segments)]
            self._segments[number] = blocks, counts, bounds, starts
        return self._segments[number]

    def window(self, sample: int) -> Window:
        """The window that holds a sample of the epoch sequence, 0 to samples - 1."""
        for window in self._recent:
            if window.start <= sample < window.stop:
                return window
        window = self._make_window(sample)
        self._recent = [*self._recent[-1:], window]
        return window

    def windows(self, start: int) -> Iterator[Window]:
        """All windows from the one that holds sample `start`, in order; leaves `window` and its memory alone."""
        while start < self.samples:
            window = self._make_window(start)
            yield window
            start = window.stop

    def _make_window(self, sample: int) -> Window:
        segment = int(np.searchsorted(self._segment_ptr, sample, "right")) - 1
        blocks, counts, bounds, starts = self._segment(segment)
        number = int(np.searchsorted(starts, sample, "right")) - 1
        visits = slice(int(bounds[number]), int(bounds[number + 1]))
        key = derive_key(self._key, 2, segment, number) if self._shuffle else None
        return Window(self.dataset, int(starts[number]), blocks[visits], counts[visits], self.selection, key)
