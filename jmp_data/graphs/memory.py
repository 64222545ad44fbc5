"""Where the edges that are found are written to; by default, into memory of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.int64]
Allocate = Callable[[int], Words]


class _Chosen(threading.local):
    allocate: Allocate | None = None


_chosen = _Chosen()


@contextmanager
def edges_in(allocate: Allocate) -> Iterator[None]:
    """Let this thread write nested graphs into memory of the caller's choice, all of a batch into one piece.

    Args:
        allocate: gets a number of 8-byte words, returns them as (words,) int64.
    """
    before, _chosen.allocate = _chosen.allocate, allocate
    try:
        yield
    finally:
        _chosen.allocate = before


def empty_edges(sizes: list[int]) -> list[tuple[Words, Words, npt.NDArray[Any]]]:
    """For each of nested graphs, widest first, its memory, and edge_index and cell_offsets that lie in it.

    Args:
        sizes: edges of each graph.

    Returns:
        (words,) int64, edge_index (2, nedges) int64, cell_offsets (nedges, 3) int32.
    """
    if _chosen.allocate is not None:
        return _split(_chosen.allocate, sizes)
    # Several large pieces the allocator would give back to the system after every batch, and touching memory that comes
    # fresh from there costs as much as the search. The widest graph, by far the largest, can still go by itself.
    return [*_split(_own, sizes[:1]), *_split(_own, sizes[1:])]


def _own(words: int) -> Words:
    return np.empty(words, np.int64)


def _split(allocate: Allocate, sizes: list[int]) -> list[tuple[Words, Words, npt.NDArray[Any]]]:
    lengths = [2 * nedges + (3 * nedges + 1) // 2 for nedges in sizes]
    memory = allocate(sum(lengths))
    pieces, begin = [], 0
    for nedges, length in zip(sizes, lengths, strict=True):
        words = memory[begin : begin + length]
        edge_index = np.ndarray((2, nedges), np.int64, words)
        pieces.append((words, edge_index, np.ndarray((nedges, 3), np.int32, words, edge_index.nbytes)))
        begin += length
    return pieces
