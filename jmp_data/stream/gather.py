"""Rows of many blocks → concatenated columns in stream order: one copy per value, straight to its place in the batch.

Rows are grouped by block, so each block is walked once from front to back while the rows land where the stream wants
them. All columns move as bytes, which keeps the compiled code to two small loops.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from jmp_data.errors import ShardError
from jmp_data.schema import Block
from jmp_data.stream.columns import BatchColumn
from jmp_data.stream.dataset_order import Ints, Window
from jmp_data.stream.epoch_order import Samples

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Gathered:
    """Columns of many structures, ready to be cut into batches.

    Attributes:
        columns: batch key → (n, *shape) or (N, *shape).
        atom_level: batch keys that have one row per atom.
        natoms: (n,) int64.
        dataset_index: (n,) int64.
        structure_index: (n,) int64.
    """

    columns: dict[str, Array]
    atom_level: frozenset[str]
    natoms: Ints
    dataset_index: Ints
    structure_index: Ints


@numba.njit(cache=True, nogil=True)
def _copy_rows(source: Array, target: Array, starts: Ints, places: Ints, lengths: Ints, size: int) -> None:
    """target[places[i]:][:lengths[i]] = source[starts[i]:][:lengths[i]]; bytes, counted in units of `size` bytes."""
    for i in range(len(starts)):
        # Unsigned, because the compiler cannot vectorise an index that may be negative and wrap around.
        a, b, n = np.uint64(starts[i] * size), np.uint64(places[i] * size), np.uint64(lengths[i] * size)
        for k in range(n):
            target[b + k] = source[a + k]


@numba.njit(cache=True, nogil=True)
def _widen_rows(source: Array, target: Array, starts: Ints, places: Ints, lengths: Ints) -> None:
    """The same from uint8 to int64."""
    for i in range(len(starts)):
        a, b, n = np.uint64(starts[i]), np.uint64(places[i]), np.uint64(lengths[i])
        for k in range(n):
            target[b + k] = source[a + k]


def gather(samples: Samples, columns: tuple[BatchColumn, ...], block_of: Callable[[Window, int], Block]) -> Gathered:
    """Read samples from their blocks.

    Args:
        samples: which structures, in the order wanted.
        columns: what to read of them.
        block_of: (window, visit) → its block, holding those of `columns` that its data set has.

    Raises:
        ShardError: a block does not hold the structures that the index promises.
    """
    natoms = samples.natoms
    places = np.cumsum(natoms) - natoms
    out = {column.key: _allocate(column, len(natoms), int(natoms.sum())) for column in columns}
    ones = np.ones(len(natoms), np.int64)
    for window, visit, chosen in by_block(samples):
        block = block_of(window, visit)
        ptr, rows, lengths = block.ptr, samples.row[chosen], natoms[chosen]
        if rows[-1] >= len(block) or not np.array_equal(ptr[rows + 1] - ptr[rows], lengths):
            raise ShardError(
                f"data set {window.dataset} of the mixture, block {window.blocks[visit]}: structure sizes differ from "
                "those in natoms.npy; run jmp-data verify on it"
            )
        atoms = (ptr[rows], places[chosen], lengths)
        whole = (rows, chosen, ones[: len(rows)])
        for column in columns:
            if column.present[window.dataset]:
                extent = atoms if column.field.level == "atom" else whole
                _copy(block.columns[column.field.name], out[column.key], extent)
    atom_level = frozenset(column.key for column in columns if column.field.level == "atom")
    return Gathered(out, atom_level, natoms, samples.dataset, samples.index)


def _allocate(column: BatchColumn, num_structures: int, num_atoms: int) -> Array:
    rows = num_atoms if column.field.level == "atom" else num_structures
    shape = (rows, *column.field.shape)
    if all(column.present):
        return np.empty(shape, column.dtype)
    return np.full(shape, column.field.missing_value, column.dtype)


def by_block(samples: Samples) -> list[tuple[Window, int, Ints]]:
    """Samples grouped by block: window, visit, and the samples of that visit in ascending rows."""
    most = max((len(window.blocks) for window in samples.windows), default=1)
    visits = samples.window * most + samples.visit
    longest = int(samples.row.max(initial=0)) + 1
    order = np.argsort(visits * longest + samples.row)
    ordered = visits[order]
    cuts = np.flatnonzero(np.diff(ordered)) + 1
    groups = np.split(order, cuts)
    firsts = ordered[np.concatenate([[0], cuts])].tolist() if len(order) else []
    return [(samples.windows[v // most], v % most, group) for v, group in zip(firsts, groups, strict=False)]


def _copy(source: Array, target: Array, extent: tuple[Ints, Ints, Ints]) -> None:
    if source.dtype == np.uint8 and target.dtype == np.int64:
        _widen_rows(source, target, *extent)
    elif len(source):
        _copy_rows(_bytes(source), _bytes(target), *extent, source.nbytes // len(source))


def _bytes(array: Array) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
