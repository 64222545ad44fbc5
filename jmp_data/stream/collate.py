"""Concatenated columns → `torch_geometric` batches, as views: a batch costs a few tensor headers, no copies.

The batches are what `Batch.from_data_list` makes of single `AtomsData` objects, including what `get_example` and
`to_data_list` need to take them apart again.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch_geometric.data import Batch, Data
from torch_geometric.data.storage import GlobalStorage

from jmp_data.stream.dataset_order import Ints
from jmp_data.stream.gather import Gathered


class AtomsData(Data):
    """A `Data` that leaves `dataset_index` and `structure_index` alone.

    torch_geometric shifts every field with "index" in its name by the number of nodes when it joins graphs.
    """

    def __inc__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        if key in ("dataset_index", "structure_index"):
            return 0
        return super().__inc__(key, value, *args, **kwargs)


@lru_cache(maxsize=1)
def _empty_batch() -> Batch:
    return Batch(_base_cls=AtomsData)


@lru_cache(maxsize=64)
def _counting(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Slices and increments of fields with one row per structure."""
    return torch.arange(count + 1), torch.zeros(count, dtype=torch.int64)


def collate(gathered: Gathered, counts: Ints) -> Iterator[Batch]:
    """Cut columns into batches.

    The batches share memory with one another where they touch nothing in common; keep one for long with
    `batch.clone()`, or it keeps its neighbours too.

    Args:
        gathered: columns of all structures of these batches, in order.
        counts: (num_batches,) structures of each batch.
    """
    structures = counts.tolist()
    atom_ptr = np.concatenate([[0], np.cumsum(gathered.natoms)])
    firsts = np.concatenate([[0], np.cumsum(counts)])
    atoms = np.diff(atom_ptr[firsts]).tolist()
    columns: dict[str, tuple[torch.Tensor, ...]] = {}
    for key, column in gathered.columns.items():
        columns[key] = torch.split(torch.from_numpy(column), atoms if key in gathered.atom_level else structures)
    for key in ("natoms", "dataset_index", "structure_index"):
        columns[key] = torch.split(torch.from_numpy(getattr(gathered, key)), structures)
    within = np.arange(len(gathered.natoms)) - np.repeat(firsts[:-1], counts)
    columns["batch"] = torch.split(torch.from_numpy(np.repeat(within, gathered.natoms)), atoms)
    columns["ptr"] = torch.split(torch.from_numpy(_pointers(atom_ptr, firsts, counts)), [n + 1 for n in structures])
    keys, atom_keys = tuple(columns), gathered.atom_level
    sliced = tuple(key for key in keys if key not in ("batch", "ptr"))
    for values, count in zip(zip(*columns.values(), strict=True), structures, strict=True):
        yield _batch(dict(zip(keys, values, strict=True)), sliced, atom_keys, count)


def _pointers(atom_ptr: Ints, firsts: Ints, counts: Ints) -> Ints:
    """The `ptr` of each batch, one after another."""
    batch = np.repeat(np.arange(len(counts)), counts + 1)
    flat = atom_ptr[np.arange(len(batch)) - batch]
    return np.asarray(flat - atom_ptr[firsts[:-1]][batch])


def _batch(fields: dict[str, torch.Tensor], sliced: tuple[str, ...], atom_keys: frozenset[str], count: int) -> Batch:
    """A batch as `Batch()` makes it, without inspecting the signature of `Data` again for every one."""
    empty = _empty_batch()
    batch = empty.__class__.__new__(empty.__class__)
    store = GlobalStorage(_parent=batch)
    store._mapping = fields
    rows, zeros = _counting(count)
    slices = {key: fields["ptr"] if key in atom_keys else rows for key in sliced}
    store.__dict__.update(_num_graphs=count, _slice_dict=slices, _inc_dict=dict.fromkeys(sliced, zeros))
    batch.__dict__.update(empty.__dict__, _store=store)
    return batch
