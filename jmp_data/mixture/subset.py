"""What a user says about which structures take part, and how that becomes a `RowSelection`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from jmp_data.errors import ManifestError
from jmp_data.mixture.selection import Rows, RowSelection

if TYPE_CHECKING:
    from jmp_data.shards.dataset import ShardDataset


@dataclass(frozen=True)
class Subset:
    """A part of one data set. Rules combine: elements, then first, then fraction.

    Attributes:
        first: only the first so many structures.
        fraction: a random share, spread evenly over the data set.
        seed: what the random share depends on.
        elements: only structures made of these elements alone, as atomic numbers.
    """

    first: int | None = None
    fraction: float | None = None
    seed: int = 0
    elements: frozenset[int] | None = None


def select_rows(
    dataset: ShardDataset,
    *,
    subset: Subset | None = None,
    include: Rows | None = None,
    exclude: Rows | None = None,
    name: str = "",
) -> RowSelection:
    """Resolve a subset and an exclusion list against a data set; an element filter reads the atomic numbers once.

    Raises:
        ManifestError: an index lies outside the data set.
    """
    subset = subset or Subset()
    if subset.elements is not None:
        include = structures_of_elements(dataset, subset.elements)
    return RowSelection(
        block_ptr=np.asarray(dataset.block_ptr, np.int64),
        include=_checked(include, len(dataset), f"{name}: subset"),
        exclude=_checked(exclude, len(dataset), f"{name}: exclusion"),
        first=subset.first,
        fraction=subset.fraction,
        seed=subset.seed,
    )


def structures_of_elements(dataset: ShardDataset, elements: frozenset[int]) -> Rows:
    """(n,) structures in which every atom is one of `elements` (atomic numbers)."""
    allowed = np.zeros(256, bool)
    allowed[list(elements)] = True
    found = []
    for index in range(dataset.num_blocks):
        block = dataset.read_block(index, columns=["atomic_numbers"])
        inside = allowed[block.columns["atomic_numbers"]]
        rows = np.flatnonzero(np.logical_and.reduceat(inside, block.ptr[:-1])) if len(block) else np.zeros(0, np.int64)
        found.append(rows + int(dataset.block_ptr[index]))
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def read_index_list(source: str | Path | Sequence[int] | np.ndarray[Any, Any], name: str = "") -> Rows:
    """Structure indices from an array, or a file: `.npy`, a YAML list, or text with one index a line.

    Raises:
        ManifestError: the file does not exist or holds something else than integers.
    """
    if not isinstance(source, str | Path):
        values: Any = source
        where = f"exclusions of {name}"
    else:
        where = str(source)
        try:
            values = _read_file(Path(source))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise ManifestError(f"{where}: structure index list of {name} cannot be read: {error}") from error
    array = np.asarray(values)
    if array.size and (array.ndim != 1 or array.dtype.kind not in "iu"):
        raise ManifestError(f"{where}: expected a plain list of structure indices for {name}, got {array.dtype}")
    return array.astype(np.int64)


def _read_file(path: Path) -> Any:
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False)
    if path.suffix in (".yaml", ".yml", ".json"):
        return yaml.safe_load(path.read_text()) or []
    return np.array([int(line) for line in path.read_text().split()], np.int64)


def _checked(rows: Rows | None, size: int, what: str) -> Rows | None:
    if rows is None:
        return None
    rows = np.unique(np.asarray(rows, np.int64))
    outside = rows[(rows < 0) | (rows >= size)]
    if len(outside):
        raise ManifestError(f"{what} list names structure {outside[0]}, but there are only {size} (0 to {size - 1})")
    return rows
