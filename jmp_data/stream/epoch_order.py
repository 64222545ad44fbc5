"""The order of one epoch over a mixture: position t → (data set, block, row), any range in O(length).

The epoch is cut into *chapters* of about `CHAPTER_SAMPLES` positions. Chapter q takes from every data set i its samples
floor(q m_i / Q) to floor((q + 1) m_i / Q), Q being the number of chapters; the shares telescope, so every sample of
every data set's own sequence (`dataset_order.py`) appears exactly once. Within a chapter the data sets are merged by
stratified random times, so that any batch holds nearly the mixture's share of each.

The order depends on the mixture, the seed, the epoch and the two sizes below, and on nothing else: not on batch size,
ranks, workers, or on where reading began.

Without shuffling the data sets follow one another in stored order, each structure once, whatever the mixing rule says:
validation ignores balancing.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from jmp_data.mixture import Mixture
from jmp_data.mixture.permutation import derive_key, stratified_order
from jmp_data.stream.dataset_order import DatasetOrder, Ints, Window

CHAPTER_SAMPLES = 8192
WINDOW_BLOCKS = 64
"""Default; docs/shuffling.md shows what it was chosen from."""

ORDER_VERSION = 1
"""Raised whenever the same inputs would give another order; saved states carry it."""


@dataclass(frozen=True, eq=False)
class Samples:
    """A run of samples as columns.

    Attributes:
        windows: the windows that the samples come from.
        window: (n,) index into `windows`.
        visit: (n,) visit within the window.
        row: (n,) row within the block.
        dataset: (n,) data set of the mixture.
        index: (n,) structure of the data set, counted as `dataset[index]` counts.
        natoms: (n,) atoms.
    """

    windows: tuple[Window, ...]
    window: Ints
    visit: npt.NDArray[np.int32]
    row: Ints
    dataset: Ints
    index: Ints
    natoms: Ints

    def __len__(self) -> int:
        return len(self.row)

    def take(self, rows: Ints | slice) -> Samples:
        """The samples at `rows`, in that order."""
        columns: list[Any] = [self.window, self.visit, self.row, self.dataset, self.index, self.natoms]
        return Samples(self.windows, *(column[rows] for column in columns))

    @classmethod
    def concatenate(cls, parts: list[Samples]) -> Samples:
        """One run after another."""
        if len(parts) == 1:
            return parts[0]
        offsets = np.cumsum([0] + [len(part.windows) for part in parts[:-1]])
        window = np.concatenate([part.window + offset for part, offset in zip(parts, offsets, strict=True)])
        names = ("visit", "row", "dataset", "index", "natoms")
        columns: list[Any] = [np.concatenate([getattr(part, name) for part in parts]) for name in names]
        return cls(tuple(w for part in parts for w in part.windows), window, *columns)


class EpochOrder:
    """The order of one epoch.

    Args:
        mixture: what is mixed.
        seed: any integer.
        epoch: 0, 1, ...
        window_blocks: blocks of a data set that are shuffled together.
        shuffle: False for stored order.

    Attributes:
        epoch: its number.
        size: samples of the epoch.
        num_chapters: how many chapters it is cut into.
    """

    def __init__(self, mixture: Mixture, *, seed: int, epoch: int, window_blocks: int, shuffle: bool = True) -> None:
        self.epoch = epoch
        self._mixture, self._shuffle = mixture, shuffle
        self._key = derive_key(ORDER_VERSION, seed, epoch)
        self._samples = [member.samples if shuffle else member.size for member in mixture]
        self._orders = [
            DatasetOrder(i, m.selection, n, key=derive_key(self._key, i), window_blocks=window_blocks, shuffle=shuffle)
            for i, (m, n) in enumerate(zip(mixture, self._samples, strict=True))
        ]
        self._ends = [sum(self._samples[: i + 1]) for i in range(len(mixture))]
        self.size = sum(self._samples)
        self.num_chapters = -(-self.size // CHAPTER_SAMPLES)
        self._chapters: dict[int, Samples] = {}

    def consumed(self, chapter: int) -> list[int]:
        """Samples of each data set that lie before a chapter."""
        if self._shuffle:
            return [chapter * samples // self.num_chapters for samples in self._samples]
        position = chapter * self.size // self.num_chapters
        starts = [end - samples for end, samples in zip(self._ends, self._samples, strict=True)]
        return [min(max(position - s, 0), n) for s, n in zip(starts, self._samples, strict=True)]

    def chapter_start(self, chapter: int) -> int:
        """First position of a chapter."""
        return sum(self.consumed(chapter))

    def chapter_of(self, position: int) -> int:
        """The chapter that holds a position."""
        chapter = min(position * self.num_chapters // self.size, self.num_chapters - 1)
        while self.chapter_start(chapter) > position:
            chapter -= 1
        while self.chapter_start(chapter + 1) <= position:
            chapter += 1
        return chapter

    def samples(self, start: int, stop: int) -> Samples:
        """The samples at positions `start` to `stop - 1`."""
        parts = []
        while start < stop:
            number = self.chapter_of(start)
            first = self.chapter_start(number)
            last = min(stop, self.chapter_start(number + 1))
            parts.append(self._chapter(number).take(slice(start - first, last - first)))
            start = last
        return Samples.concatenate(parts)

    def schedule(self, position: int) -> Iterator[tuple[int, Window]]:
        """(chapter in which it is first needed, window), in order of need, from a position on."""
        if position >= self.size:
            return iter(())
        chapter = self.chapter_of(position)
        runs = (self._needs(order, first) for order, first in zip(self._orders, self.consumed(chapter), strict=True))
        return heapq.merge(*runs, key=lambda need: need[0])

    def _needs(self, order: DatasetOrder, first: int) -> Iterator[tuple[int, Window]]:
        for window in order.windows(first):
            yield self._chapter_of_sample(order.dataset, window.start), window

    def _chapter_of_sample(self, dataset: int, sample: int) -> int:
        if self._shuffle:
            return ((sample + 1) * self.num_chapters - 1) // self._samples[dataset]
        return self.chapter_of(self._ends[dataset] - self._samples[dataset] + sample)

    def _chapter(self, number: int) -> Samples:
        if number not in self._chapters:
            if len(self._chapters) > 1:
                del self._chapters[min(self._chapters)]
            self._chapters[number] = self._make_chapter(number)
        return self._chapters[number]

    def _make_chapter(self, number: int) -> Samples:
        windows: list[Window] = []
        parts: list[tuple[npt.NDArray[Any], ...]] = []
        before, after = self.consumed(number), self.consumed(number + 1)
        for order, first, last in zip(self._orders, before, after, strict=True):
            while first < last:
                window = order.window(first)
                stop = min(last, window.stop)
                visits, rows = (column[first - window.start : stop - window.start] for column in window.samples)
                dataset = self._mixture.members[order.dataset].dataset
                index = np.asarray(dataset.block_ptr)[window.blocks][visits] + rows
                parts.append((visits, rows, index, np.asarray(dataset.natoms[index], np.int64)))
                windows.append(window)
                first = stop
        lengths = [len(part[0]) for part in parts]
        visit, row, index, natoms = (np.concatenate([part[i] for part in parts]) for i in range(4))
        of_window = np.repeat(np.arange(len(windows)), lengths)
        datasets = np.repeat([window.dataset for window in windows], lengths)
        samples = Samples(tuple(windows), of_window, visit, row, datasets, index, natoms)
        if not self._shuffle:
            return samples
        counts = np.array(after) - np.array(before)
        return samples.take(stratified_order(counts, derive_key(self._key, len(self._orders), number)))
