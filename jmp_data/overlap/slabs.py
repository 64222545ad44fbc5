"""As much of the second side as fits in memory, fingerprinted and ready to be searched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from jmp_data.overlap.candidates import CandidateIndex
from jmp_data.overlap.composition import Keys, composition_keys
from jmp_data.overlap.fingerprint import GEOMETRY, Closeness, Kind, fingerprints, rows_of_kind
from jmp_data.overlap.settings import OverlapSettings
from jmp_data.schema import Block
from jmp_data.shards import ShardDataset

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Slab:
    """Structures of one data set and of one kind.

    Attributes:
        dataset: number of the data set on its side.
        kind: molecules or periodic structures.
        rows: (n,) their numbers in the data set.
        geometry: (n structures) what verification needs.
        ptr: (n + 1,) first atom of each.
        index: their fingerprints.
    """

    dataset: int
    kind: Kind
    rows: Rows
    geometry: Block
    ptr: Rows
    index: CandidateIndex


def count_reads(left: Sequence[ShardDataset], right: Sequence[ShardDataset], settings: OverlapSettings) -> int:
    """About how many structures a search reads: the right side once, the left side once for each group of slabs."""
    structures, atoms = sum(map(len, right)), sum(dataset.manifest.num_atoms for dataset in right)
    groups = max(-(-structures // settings.slab_structures), -(-atoms // settings.slab_atoms))
    return structures + groups * sum(map(len, left))


def load_slabs(
    datasets: Sequence[ShardDataset], settings: OverlapSettings, advance: Callable[[int], None]
) -> Iterator[list[Slab]]:
    """Groups of slabs, each group within the limits on structures and atoms.

    Args:
        datasets: the second side.
        settings: limits and thresholds.
        advance: called with the number of structures read.
    """
    group: list[Slab] = []
    structures = atoms = 0
    for number, dataset in enumerate(datasets):
        pending: list[Block] = []
        first = 0
        for block in dataset.blocks(GEOMETRY):
            full = structures + len(block) > settings.slab_structures or atoms + block.num_atoms > settings.slab_atoms
            if structures and full:
                yield group + _build(number, first, pending, settings)
                first += sum(map(len, pending))
                group, pending, structures, atoms = [], [], 0, 0
            pending.append(block)
            structures, atoms = structures + len(block), atoms + block.num_atoms
            advance(len(block))
        group += _build(number, first, pending, settings)
    if group:
        yield group


def _build(dataset: int, first: int, blocks: list[Block], settings: OverlapSettings) -> list[Slab]:
    slabs = []
    kinds: tuple[Kind, ...] = ("molecule", "crystal")
    for kind in kinds:
        rows, parts, keys, features = [], [], [], []
        start = first
        for block in blocks:
            chosen = rows_of_kind(block, kind)
            if len(chosen):
                part = block.take(chosen)
                rows.append(chosen + start)
                parts.append(part)
                keys.append(composition_keys(part))
                features.append(fingerprints(part, kind))
            start += len(block)
        if parts:
            whole = Block.concatenate(parts)
            index = CandidateIndex(np.concatenate(keys), np.concatenate(features), Closeness(kind, settings))
            slabs.append(Slab(dataset, kind, np.concatenate(rows), whole, whole.ptr, index))
    return slabs


@dataclass(frozen=True, eq=False)
class Queries:
    """The structures of one block of the first side that some slab may know.

    Attributes:
        rows: (n,) rows of the data set.
        geometry: (n structures).
        ptr: (n + 1,) first atom of each.
        keys: (n,) compositions.
        features: (n, d) fingerprints.
    """

    rows: Rows
    geometry: Block
    ptr: Rows
    keys: Keys
    features: npt.NDArray[np.float64]


def read_queries(dataset: ShardDataset, block: int, slabs: Sequence[Slab]) -> dict[Kind, Queries]:
    """Read one block; positions are decoded only where a composition is known to a slab.

    Args:
        dataset: the first side.
        block: block number.
        slabs: what they will be compared with.
    """
    head = dataset.read_block(block, ["atomic_numbers", "pbc"])
    keys = composition_keys(head)
    found: dict[Kind, Rows] = {}
    for kind in sorted({slab.kind for slab in slabs}):
        rows = rows_of_kind(head, kind)
        known = np.zeros(len(rows), bool)
        for slab in slabs:
            if slab.kind == kind:
                known |= slab.index.known(keys[rows])
        if known.any():
            found[kind] = rows[known]
    if not found:
        return {}
    tail = dataset.read_block(block, ["positions", "cell"])
    whole = Block(head.natoms, {**head.columns, **tail.columns}, head.source_ids, head.schema)
    queries: dict[Kind, Queries] = {}
    for kind, rows in found.items():
        part = whole.take(rows)
        start = int(dataset.block_ptr[block])
        queries[kind] = Queries(rows + start, part, part.ptr, keys[rows], fingerprints(part, kind))
    return queries
