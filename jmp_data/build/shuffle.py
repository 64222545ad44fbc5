"""A seeded global shuffle at build time, in two passes and bounded memory.

Every structure gets a 64-bit key from the seed and its source id, and the data set is stored in the order of the keys.
So the order depends on nothing but the seed and which structures there are: not on parts, workers or format, and raw
files added later slip in between without changing the order of the others.

The first pass stores each part sorted by key, next to the keys. The second cuts the range of keys into equal buckets,
and one job for each gathers its rows from all parts (a consecutive range in each), sorts them and stores them. A bucket
is a part like any other: finished whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jmp_data.build.lock import lock_part
from jmp_data.build.settings import BuildSettings
from jmp_data.errors import ShardError
from jmp_data.schema import Block, Schema
from jmp_data.shards.atomic import write_atomic
from jmp_data.shards.formats import ZarrBlockReader
from jmp_data.shards.graph_layer import LayerSettings
from jmp_data.shards.layout import FORMAT_VERSION, SOURCE_ID, Layout
from jmp_data.shards.staging import (
    BLOCKS_SIDECAR,
    BUILD_FOLDER,
    PartRecord,
    StagedStore,
    finish_part,
    load_part,
    npy_bytes,
    part_folder,
    stage_shards,
)

KEYS_FILE = "keys.npy"
PLAN_FILE = "shuffle.json"
BUCKET_ATOMS = 8_000_000
"""One shard of full blocks; 216 MB with energies and forces, of which a job holds three copies at most."""

_GOLDEN, _MIX_1, _MIX_2 = (np.uint64(word) for word in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _mix(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's finaliser."""
    words = (words ^ (words >> np.uint64(30))) * _MIX_1
    words = (words ^ (words >> np.uint64(27))) * _MIX_2
    return words ^ (words >> np.uint64(31))


def shuffle_keys(source_ids: npt.NDArray[Any], seed: int) -> npt.NDArray[np.uint64]:
    """(n,) keys of n source ids; the width that they are padded to plays no part."""
    width = -(-max(source_ids.dtype.itemsize, 1) // 8) * 8
    words = source_ids.astype(f"S{width}").view("<u8").reshape(len(source_ids), -1)
    keys = _mix(np.full(len(source_ids), seed, np.uint64) + _GOLDEN)
    for column in words.T:
        keys = np.where(column == 0, keys, _mix((keys ^ column) + _GOLDEN))
    return keys


class PartSorter:
    """Sorts the structures of one part, which fit into memory.

    Attributes:
        keys: their keys in ascending order, once `blocks` was consumed.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.keys = np.zeros(0, np.uint64)

    def blocks(self, blocks: Iterable[Block]) -> Iterator[Block]:
        """All structures as one sorted block."""
        gathered = [block for block in blocks if len(block)]
        if gathered:
            whole, self.keys = _sorted(gathered, self._seed)
            yield whole

    def save(self, folder: Path) -> None:
        """Write the keys beside the staged shards."""
        write_atomic(folder / KEYS_FILE, npy_bytes(self.keys))


def _sorted(blocks: list[Block], seed: int) -> tuple[Block, npt.NDArray[np.uint64]]:
    whole = Block.concatenate(blocks)
    blocks.clear()
    keys = shuffle_keys(whole.source_ids, seed)
    order = np.argsort(keys, kind="stable")  # structures of equal id stay in the order of the parts
    return whole.take(order), keys[order]


@dataclass(frozen=True, slots=True)
class BucketJob:
    """One bucket to gather: small, picklable, without data.

    Attributes:
        dataset: folder of the output split, with the shuffle's plan in its build records.
        settings: what to write.
        schema: columns.
        graphs: graphs to store as well.
        number: which bucket.
        total: how many there are.
        plan: digest of the plan.
    """

    dataset: Path
    settings: BuildSettings
    schema: Schema
    graphs: LayerSettings | None
    number: int
    total: int
    plan: str

    @property
    def key(self) -> str:
        """Content key: the parts, and every setting that changes the output."""
        settings = {**asdict(self.settings), "on_error": None}
        graphs = None if self.graphs is None else self.graphs.to_json()
        facts = [self.plan, self.number, self.total, self.schema.to_json(), settings, graphs, FORMAT_VERSION]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


def plan_buckets(
    dataset: Path,
    parts: Sequence[PartRecord],
    settings: BuildSettings,
    schema: Schema,
    graphs: LayerSettings | None,
) -> list[BucketJob]:
    """The jobs of the second pass; writes down which parts they read.

    Args:
        dataset: folder of the output split.
        parts: records of all parts, in order.
        settings: what to write.
        schema: columns.
        graphs: graphs to store as well.
    """
    plan = json.dumps([(part.key, len(part.shards)) for part in parts], separators=(",", ":")).encode()
    path = dataset / BUILD_FOLDER / PLAN_FILE
    if not path.exists() or path.read_bytes() != plan:
        write_atomic(path, plan)
    atoms = sum(shard.atoms for part in parts for shard in part.shards)
    total = max(1, -(-atoms // BUCKET_ATOMS))
    digest = hashlib.sha256(plan).hexdigest()
    return [BucketJob(dataset, settings, schema, graphs, number, total, digest) for number in range(total)]


def gather_bucket(job: BucketJob) -> PartRecord:
    """Gather, sort and store one bucket, or return its record if an earlier run finished it.

    Raises:
        ShardError: a staged part is damaged or missing.
    """
    with lock_part(job.dataset, job.key):
        finished = load_part(job.dataset, job.key)
        if finished is not None:
            return finished
        shards = stage_shards(
            job.dataset,
            job.key,
            _bucket_blocks(job),
            schema=job.schema,
            layout=job.settings.layout,
            format=job.settings.format,
            graphs=job.graphs,
        )
        record = PartRecord(key=job.key, shards=shards)
        finish_part(job.dataset, record)
        return record


def shuffled_rows(
    dataset: Path, parts: Sequence[PartRecord], source_ids: npt.NDArray[Any], seed: int
) -> npt.NDArray[np.int64]:
    """(n,) where structures of these source ids stand in the shuffled data set.

    Args:
        dataset: folder of the output split.
        parts: records of all parts.
        source_ids: (n,) bytes, all of them stored.
        seed: of the shuffle.
    """
    keys, rows = shuffle_keys(source_ids, seed), np.zeros(len(source_ids), np.int64)
    for part in parts:
        rows += np.searchsorted(np.load(part_folder(dataset, part.key) / KEYS_FILE, allow_pickle=False), keys)
    return rows


def _bucket_blocks(job: BucketJob) -> Iterator[Block]:
    payload = (job.dataset / BUILD_FOLDER / PLAN_FILE).read_bytes()
    if hashlib.sha256(payload).hexdigest() != job.plan:
        raise ShardError(f"{job.dataset}: another build has changed the plan of the shuffle; run the command again")
    bounds = (job.number << 64) // job.total, ((job.number + 1) << 64) // job.total
    pieces: list[Block] = []
    for key, num_shards in json.loads(payload):
        pieces += _read_range(part_folder(job.dataset, key), num_shards, bounds, job.schema, job.settings.layout)
    if pieces:
        assert job.settings.shuffle is not None
        yield _sorted(pieces, job.settings.shuffle)[0]


def _read_range(
    folder: Path, num_shards: int, bounds: tuple[int, int], schema: Schema, layout: Layout
) -> Iterator[Block]:
    """The rows of one staged part whose keys lie in [low, high)."""
    keys = np.load(folder / KEYS_FILE, mmap_mode="r", allow_pickle=False)
    # The upper end of the last bucket, 2**64, is no uint64.
    start, stop = (int(np.searchsorted(keys, np.uint64(b))) if b < 1 << 64 else len(keys) for b in bounds)
    if start == stop:
        return
    reader = ZarrBlockReader(StagedStore(folder), schema, layout)
    columns = (*schema.names, SOURCE_ID)
    first = 0
    for shard in range(num_shards):
        for block, extent in enumerate(np.load(folder / str(shard) / BLOCKS_SIDECAR, allow_pickle=False).tolist()):
            last = first + extent[0]
            if first < stop and last > start:
                whole = reader.read(shard, block, columns=columns, extent=(extent[0], 0, 0))
                yield whole.take(slice(max(start - first, 0), min(stop, last) - first))
            first = last
