"""Bring rows with equal keys together in linear time, in memory that does not grow with the split.

A sort of all rows would compare each with ever more others, at addresses ever further apart. Instead rows are dealt out
by a hash of their key, first to bundles that fit into memory, then each bundle to cells that fit into a processor's
cache. Rows with equal keys meet in one cell, and what is done there costs the same however large the split is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numba import njit

Array = npt.NDArray[Any]

CELL_ROWS: Final = 1 << 14
"""Rows of a cell, on average: 400 kB of 24 bytes each."""
_SPOOLED_BYTES: Final = 1 << 25  # of all bundles together before they go to disk
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_SHIFT_1, _SHIFT_2, _SHIFT_3 = np.uint64(30), np.uint64(27), np.uint64(31)
_HALF, _LOW = np.uint64(32), np.uint64(0xFFFFFFFF)


def gather(
    pieces: Iterable[Array], key: str, *, dtype: np.dtype[Any], bundles: int, cell_rows: int, scratch: Path | None
) -> Iterator[Array]:
    """All rows in cells, those of equal keys in one of them; within a cell in the order in which they came.

    Args:
        pieces: structured arrays of rows, consumed once.
        key: name of the field of 64 bits that says what belongs together.
        dtype: of the rows, whose fields fill whole words of 64 bits.
        bundles: one of them at a time is held in memory, twice; all rows of one key are in the same one.
        cell_rows: about so many rows make a cell.
        scratch: folder for temporary files as large as all rows; the system's by default.
    """
    assert dtype.fields is not None
    words, place = dtype.itemsize // 8, dtype.fields[key][1] // 8
    folder = None if scratch is None else str(scratch)
    with ExitStack() as stack:
        spooled = _SPOOLED_BYTES // bundles
        files = [stack.enter_context(SpooledTemporaryFile(spooled, dir=folder)) for _ in range(bundles)]
        for piece in pieces:
            dealt, edges = _deal(piece.view(np.uint64).reshape(-1, words), place, bundles, _HALF)
            for file, start, stop in zip(files, edges[:-1].tolist(), edges[1:].tolist(), strict=True):
                file.write(dealt[start:stop].data)
        for file in files:
            yield from _cells(_read_back(file).reshape(-1, words), place, dtype, cell_rows)


def _read_back(file: Any) -> Array:
    """(n,) words of a temporary file, which is gone afterwards."""
    file.seek(0)
    with file:
        return np.frombuffer(file.read(), np.uint64)


def _cells(rows: Array, place: int, dtype: np.dtype[Any], cell_rows: int) -> Iterator[Array]:
    rows, edges = _deal(rows, place, max(1, -(-len(rows) // cell_rows)), np.uint64(0))
    for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        if start < stop:
            yield rows[start:stop].view(dtype)[:, 0]


@njit(cache=True, nogil=True)
def _mix(key: np.uint64) -> np.uint64:
    """SplitMix64's finaliser, so that keys of any pattern spread evenly."""
    key = (key ^ (key >> _SHIFT_1)) * _MIX_1
    key = (key ^ (key >> _SHIFT_2)) * _MIX_2
    return key ^ (key >> _SHIFT_3)


@njit(cache=True, nogil=True)
def _deal(rows: Array, place: int, piles: int, shift: np.uint64) -> tuple[Array, Array]:
    """Rows pile by pile, and where each pile begins and ends.

    Args:
        rows: (n, words) of 64 bits.
        place: which word is the key.
        piles: how many.
        shift: 32 takes the upper half of the hash, 0 the lower one, so that a pile can be dealt out again.

    Returns:
        (n, words) rows, (piles + 1,) edges.
    """
    which = np.empty(len(rows), np.uint32)
    edges = np.zeros(piles + 1, np.int64)
    for row in range(len(rows)):
        pile = (((_mix(rows[row, place]) >> shift) & _LOW) * np.uint64(piles)) >> _HALF
        which[row] = pile
        edges[pile + 1] += 1
    edges = np.cumsum(edges)
    free = edges[:-1].copy()
    dealt = np.empty_like(rows)
    for row in range(len(rows)):
        target = free[which[row]]
        free[which[row]] += 1
        for word in range(rows.shape[1]):
            dealt[target, word] = rows[row, word]
    return dealt, edges
