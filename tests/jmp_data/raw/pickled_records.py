"""Builds OCP-style records as the generations of PyTorch Geometric pickled them, and hostile ones."""

from __future__ import annotations

import pickle
import struct
from typing import Any

import numpy as np
import torch
from torch_geometric.data import Data

OLD_ATTRIBUTES = ("edge_index", "edge_attr", "x", "face", "normal")


def record_attributes(num_atoms: int, seed: int = 0) -> dict[str, Any]:
    """The attributes of one OC22 S2EF record, as ``reference`` lists them: five Nones, seven tensors, seven scalars."""
    rng = np.random.default_rng(seed)

    def tensor(values: Any, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.tensor(np.asarray(values), dtype=dtype)

    return {
        **dict.fromkeys(OLD_ATTRIBUTES),
        "atomic_numbers": tensor(rng.integers(1, 90, num_atoms)),
        "pos": tensor(rng.normal(size=(num_atoms, 3))),
        "cell": tensor(rng.normal(size=(1, 3, 3))),
        "natoms": num_atoms,
        "tags": tensor(rng.integers(0, 3, num_atoms), torch.int64),
        "fixed": tensor(rng.integers(0, 2, num_atoms)),
        "force": tensor(rng.normal(size=(num_atoms, 3))),
        "y": float(rng.normal() * 500),
        "sid": int(rng.integers(0, 60000)),
        "fid": int(rng.integers(0, 300)),
        "id": f"{rng.integers(0, 99)}_{rng.integers(0, 60000)}",
        "nads": 1,
        "oc22": 1,
    }


def dump_before_pyg2(attributes: dict[str, Any], protocol: int = 4) -> bytes:
    """Before version 2 the attributes lay in the object's ``__dict__``."""
    data = Data.__new__(Data)
    data.__dict__.update(attributes)
    return pickle.dumps(data, protocol=protocol)


def dump_since_pyg2(attributes: dict[str, Any], protocol: int = pickle.HIGHEST_PROTOCOL) -> bytes:
    """Since version 2 they lie in ``_store._mapping``, and ``_store`` refers back to its object."""
    return pickle.dumps(Data(**attributes), protocol=protocol)


def short_text(value: str) -> bytes:
    """SHORT_BINUNICODE, for pickles written opcode by opcode."""
    raw = value.encode()
    return b"\x8c" + bytes([len(raw)]) + raw


def binary(value: bytes) -> bytes:
    """BINBYTES."""
    return b"B" + struct.pack("<I", len(value)) + value


def named(module: str, name: str) -> bytes:
    """STACK_GLOBAL."""
    return short_text(module) + short_text(name) + b"\x93"
