"""OC22 S2EF-Total LMDBs written from the description of their layout, as several generations of PyG pickled them."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import lmdb
import numpy as np
import torch
import torch_geometric.data.data as pyg_data

from tests.flow.truth import Truth


class Entry(NamedTuple):
    """One single point: numbers, positions, forces (float32), total energy, tags and fixed flags."""

    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    energy: float
    forces: np.ndarray
    tags: np.ndarray
    fixed: np.ndarray
    sid: int
    fid: int


def make_entries(count: int, seed: int = 0) -> list[Entry]:
    rng = np.random.default_rng(seed)
    entries = []
    for index in range(count):
        natoms = int(rng.integers(17, 60))
        tags = np.sort(rng.integers(0, 3, natoms))
        entries.append(
            Entry(
                numbers=rng.choice([8, 22, 26, 40, 77, 83, 1], natoms),
                positions=(rng.random((natoms, 3)) * (9, 9, 25)).astype(np.float32),
                cell=(np.diag([9.0, 9.5, 30.0]) + rng.normal(scale=0.5, size=(3, 3))).astype(np.float32),
                energy=float(-900.0 * rng.random() - 100.0),
                forces=rng.normal(scale=0.3, size=(natoms, 3)).astype(np.float32),
                tags=tags,
                fixed=tags == 0,
                sid=int(rng.integers(0, 80_000)),
                fid=index,
            )
        )
    return entries


def truth_of(entry: Entry, split: str) -> Truth:
    return Truth(
        split=split,
        numbers=entry.numbers,
        positions=entry.positions,
        energy=entry.energy,
        forces=entry.forces,
        cell=entry.cell,
        pbc=(True, True, True),
        tags=entry.tags,
        fixed=entry.fixed,
        words=(str(entry.sid), str(entry.fid)),
    )


def published_payload(entry: Entry) -> dict[str, Any]:
    """The attributes that inspections of the published files list, the five empty ones included."""
    natoms = len(entry.numbers)
    return {
        "x": None,
        "edge_index": None,
        "edge_attr": None,
        "y": entry.energy,
        "pos": torch.tensor(entry.positions),
        "normal": None,
        "face": None,
        "cell": torch.tensor(entry.cell).view(1, 3, 3),
        "atomic_numbers": torch.tensor(entry.numbers, dtype=torch.float),
        "natoms": natoms,
        "tags": torch.tensor(entry.tags, dtype=torch.long),
        "force": torch.tensor(entry.forces),
        "fixed": torch.tensor(entry.fixed, dtype=torch.float),
        "sid": entry.sid,
        "fid": entry.fid,
        "id": f"{entry.sid % 100}_{entry.sid}",
        "nads": 1,
        "oc22": 1,
    }


class _OldData:
    """Stands in for PyG 1.x's Data, which kept its attributes in its own dictionary and pickled nothing else."""


_OldData.__module__ = "torch_geometric.data.data"
_OldData.__qualname__ = _OldData.__name__ = "Data"


@contextmanager
def _old_pyg() -> Iterator[None]:
    current = pyg_data.Data
    pyg_data.Data = _OldData
    try:
        yield
    finally:
        pyg_data.Data = current


def pickled_by_old_pyg(payload: dict[str, Any], protocol: int = 4) -> bytes:
    """As PyG before version 2: attributes in the instance's own `__dict__`."""
    data = _OldData()
    data.__dict__.update(payload)
    with _old_pyg():
        return pickle.dumps(data, protocol=protocol)


def pickled_by_installed_pyg(payload: dict[str, Any], protocol: int = 4) -> bytes:
    """As the PyG at hand does: attributes in a storage object below `_store`."""
    return pickle.dumps(pyg_data.Data(**payload), protocol=protocol)


def write_lmdb(
    path: Path,
    payloads: Sequence[dict[str, Any]],
    pickled: Callable[..., bytes] = pickled_by_old_pyg,
    *,
    with_length: bool = True,
    protocol: int = 4,
    subdir: bool = False,
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with lmdb.open(str(path), map_size=1 << 26, subdir=subdir, meminit=False, map_async=True) as environment:
        with environment.begin(write=True) as transaction:
            for index, payload in enumerate(payloads):
                transaction.put(str(index).encode("ascii"), pickled(payload, protocol))
            if with_length:
                transaction.put(b"length", pickle.dumps(len(payloads), protocol=-1))
        environment.sync()


def split_folder(raw: Path, split: str) -> Path:
    return raw / "s2ef_total_train_val_test_lmdbs" / "data" / "oc22" / "s2ef-total" / split
