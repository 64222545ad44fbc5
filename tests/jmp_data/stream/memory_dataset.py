"""A data set in memory with the interface of `jmp_data.shards.ShardDataset`, and random ones for tests."""

from __future__ import annotations

import hashlib

import numpy as np

from jmp_data.schema import Block, Schema


class MemoryDataset:
    """Blocks in memory. `reads` counts how often each block was read."""

    def __init__(self, name, blocks, split="train"):
        self.name, self.split, self.path = name, split, ""
        self._blocks = list(blocks)
        self.schema = self._blocks[0].schema
        self.block_structures = np.array([len(b) for b in self._blocks], np.int64)
        self.block_ptr = np.concatenate([[0], np.cumsum(self.block_structures)])
        self.natoms = np.concatenate([b.natoms for b in self._blocks])
        self.references = {}
        digest = hashlib.sha256(name.encode())
        for block in self._blocks:
            for column in block.columns.values():
                digest.update(np.ascontiguousarray(column).tobytes())
        self.fingerprint = digest.hexdigest()
        self.reads = np.zeros(len(self._blocks), int)

    def __len__(self):
        return int(self.block_ptr[-1])

    @property
    def num_blocks(self):
        return len(self._blocks)

    def read_block(self, index, columns=None):
        self.reads[index] += 1
        block = self._blocks[index]
        if columns is None:
            return block
        kept = {name: block.columns[name] for name in columns}
        return Block(block.natoms, kept, block.source_ids[:0], block.schema)


class IndexDataset:
    """Only what planning needs: block sizes and atom counts; reading is an error."""

    def __init__(self, name, block_structures, natoms):
        self.name, self.split, self.path, self.schema, self.fingerprint = name, "train", "", Schema(), name
        self.block_structures = np.asarray(block_structures, np.int64)
        self.block_ptr = np.concatenate([[0], np.cumsum(self.block_structures)])
        self.natoms = natoms
        self.num_blocks = len(self.block_structures)
        self.references = {}

    def __len__(self):
        return int(self.block_ptr[-1])


def make_dataset(name="mem", sizes=(5, 7, 3), seed=0, atoms=(1, 12), schema=None, periodic=True):
    """Random structures in blocks of the given sizes; positions identify structure and atom."""
    rng = np.random.default_rng(seed)
    schema = schema or Schema()
    blocks, first = [], 0
    for size in sizes:
        natoms = rng.integers(*atoms, size=size, endpoint=True).astype(np.int32)
        total = int(natoms.sum())
        index = np.repeat(np.arange(first, first + size), natoms)
        positions = rng.normal(size=(total, 3)).astype(np.float32)
        positions[:, 0] = index
        columns = {
            "atomic_numbers": rng.integers(1, 90, total).astype(np.uint8),
            "positions": positions,
            "cell": rng.normal(size=(size, 3, 3)).astype(np.float32)
            if periodic
            else np.zeros((size, 3, 3), np.float32),
            "pbc": np.full((size, 3), periodic),
            "tags": rng.integers(0, 3, total).astype(np.uint8),
            "fixed": rng.random(total) < 0.3,
        }
        for field in schema.targets:
            rows = size if field.level == "structure" else total
            values = rng.normal(size=(rows, *field.shape)) * 10
            columns[field.name] = values.astype(field.dtype)
        ids = [f"{name}/{i}" for i in range(first, first + size)]
        blocks.append(Block.from_columns(schema, natoms, ids, columns))
        first += size
    return MemoryDataset(name, blocks)
