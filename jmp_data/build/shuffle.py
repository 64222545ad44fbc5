"""`build --shuffle`: a seeded global shuffle of a split, in memory that does not grow with it.

Every structure draws a 64-bit key, a pure function of the seed, its part and its row in it; the stored order is that of
the keys, which is a uniformly random one. Two passes make it:

1. Parts are converted as always, each sorted by the keys of its own structures, into `<dataset>/.build/ordered`.
2. The range of keys is cut into buckets of about `BUCKET_STRUCTURES`. A bucket takes one run of rows from every part,
   sorts them together and stages them as a part of the final data set. Buckets are jobs like parts: they run on any
   engine, and one that is finished is not made again.

The order depends on seed, raw files and limit: not on workers, format or graphs.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jmp_data.build.engines import Engine
from jmp_data.build.plan import SplitBuild
from jmp_data.build.settings import PartJob
from jmp_data.errors import MissingFileError
from jmp_data.mixture.permutation import derive_key, random_words
from jmp_data.schema import Block
from jmp_data.shards.assemble import QUARANTINE_FILE, assemble
from jmp_data.shards.atomic import write_atomic
from jmp_data.shards.dataset import ShardDataset, open_dataset
from jmp_data.shards.layout import FORMAT_VERSION
from jmp_data.shards.manifest import MANIFEST_NAME, DatasetManifest
from jmp_data.shards.staging import BUILD_FOLDER, PartRecord, finish_part, load_part, part_folder, stage_shards

BUCKET_STRUCTURES = 1 << 18
"""Structures that are sorted at a time; slabs of 73 atoms take half a gigabyte."""

Keys = npt.NDArray[np.uint64]


def part_token(job: PartJob) -> int:
    """What the keys of a part's structures depend on, besides the seed."""
    return int(job.part.key(job.raw)[:16], 16)


def structure_keys(seed: int, token: int, count: int) -> Keys:
    """(count,) keys of the structures of a part, in the order of its records."""
    return random_words(count, derive_key(seed, token))


def in_key_order(blocks: Iterator[Block], job: PartJob) -> Iterator[Block]:
    """The structures of a part, sorted by their keys where the build shuffles."""
    seed = job.settings.shuffle
    if seed is None:
        yield from blocks
        return
    held = [block for block in blocks if len(block)]
    if held:
        whole = Block.concatenate(held)
        yield whole.take(np.argsort(structure_keys(seed, part_token(job), len(whole)), kind="stable"))


@dataclass(frozen=True, slots=True)
class BucketJob:
    """One bucket to stage: small, picklable, without data.

    Attributes:
        ordered: the data set of the first pass.
        build: what the final data set is.
        tokens: token of every part that has structures, in order.
        bucket: number of the bucket.
        num_buckets: how many there are.
        damaged_files: messages about raw files that are damaged themselves.
    """

    ordered: Path
    build: SplitBuild
    tokens: tuple[int, ...]
    bucket: int
    num_buckets: int
    damaged_files: tuple[str, ...] = ()

    @property
    def seed(self) -> int:
        """Seed of the shuffle."""
        return self.build.settings.shuffle or 0

    def key_in(self, content: str) -> str:
        """Content key of the bucket, given the digest of the first pass."""
        layer = self.build.settings.graph_layer(self.build.source)
        facts = [content, self.seed, self.bucket, self.num_buckets, layer and layer.to_json(), FORMAT_VERSION]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


def stage_bucket(job: BucketJob) -> PartRecord:
    """Stage one bucket as a part of the final data set, unless that was done before."""
    ordered = open_dataset(job.ordered)
    key, build = job.key_in(ordered.fingerprint), job.build
    finished = load_part(build.dataset, key)
    if finished is not None:
        return finished
    shards = stage_shards(
        build.dataset,
        key,
        _bucket(ordered, job),
        schema=ordered.schema,
        layout=ordered.manifest.layout,
        format=ordered.manifest.format,
        graphs=build.settings.graph_layer(build.source),
    )
    if job.bucket == 0 and QUARANTINE_FILE in ordered.manifest.files:
        write_atomic(part_folder(build.dataset, key) / QUARANTINE_FILE, (job.ordered / QUARANTINE_FILE).read_bytes())
    record = PartRecord(key, shards, damaged_files=job.damaged_files if job.bucket == 0 else ())
    finish_part(build.dataset, record)
    return record


def _bucket(ordered: ShardDataset, job: BucketJob) -> Iterator[Block]:
    low, high = (edge * (1 << 64) // job.num_buckets for edge in (job.bucket, job.bucket + 1))
    parts, keys = [], []
    for token, (first, stop) in zip(job.tokens, _part_blocks(ordered.manifest), strict=True):
        ptr = ordered.block_ptr[first : stop + 1]
        own = np.sort(structure_keys(job.seed, token, int(ptr[-1] - ptr[0])))
        begin = int(np.searchsorted(own, np.uint64(low), "left"))
        end = int(np.searchsorted(own, np.uint64(high), "left")) if high < 1 << 64 else len(own)
        if begin < end:
            parts += list(_rows(ordered, int(ptr[0]) + begin, int(ptr[0]) + end))
            keys.append(own[begin:end])
    if parts:
        yield Block.concatenate(parts).take(np.argsort(np.concatenate(keys), kind="stable"))


def _part_blocks(manifest: DatasetManifest) -> Iterator[tuple[int, int]]:
    """First block and one past the last of each part that has structures."""
    stop = 0
    for _, shards in groupby(manifest.shards, lambda shard: shard.part):
        first, stop = stop, stop + sum(shard.blocks for shard in shards)
        yield first, stop


def _rows(dataset: ShardDataset, begin: int, end: int) -> Iterator[Block]:
    """Structures begin to end - 1, as pieces of storage blocks."""
    first, last = (int(b) - 1 for b in np.searchsorted(dataset.block_ptr, [begin, end - 1], "right"))
    for number in range(first, last + 1):
        start = int(dataset.block_ptr[number])
        yield dataset.read_block(number).take(slice(max(begin - start, 0), end - start))


def shuffle_key(build: SplitBuild) -> str:
    """Content key of a whole shuffled split; its manifest carries it."""
    layer = build.settings.graph_layer(build.source)
    facts = [build.settings.shuffle, [job.key for job in build.jobs], layer and layer.to_json()]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def finished_shuffle(build: SplitBuild) -> tuple[DatasetManifest, tuple[str, ...]] | None:
    """The manifest of a split that is shuffled already, and what was said about damaged raw files."""
    if build.settings.shuffle is None:
        return None
    try:
        manifest = open_dataset(build.dataset).manifest
    except MissingFileError:
        return None
    if manifest.provenance.get("build", {}).get("shuffle_key") != shuffle_key(build):
        return None
    record = load_part(build.dataset, manifest.shards[0].part) if manifest.shards else None
    return manifest, () if record is None else record.damaged_files


def shuffle_split(build: SplitBuild, engine: Engine, damaged_files: tuple[str, ...]) -> DatasetManifest:
    """Second pass: from the finished data set of the first to the final one; the former's shards are removed.

    Args:
        build: the split.
        engine: where to run.
        damaged_files: messages about raw files that are damaged themselves.
    """
    ordered = open_dataset(build.converted)
    manifest = ordered.manifest
    tokens_of = {job.key: part_token(job) for job in build.jobs}
    tokens = tuple(tokens_of[part] for part, _ in groupby(manifest.shards, lambda shard: shard.part))
    num_buckets = max(1, -(-len(ordered) // BUCKET_STRUCTURES))
    job = BucketJob(build.converted, build, tokens, 0, num_buckets, damaged_files)
    records = dict(engine.run(stage_bucket, [replace(job, bucket=number) for number in range(num_buckets)]))
    request = {**manifest.provenance["build"], "shuffle_key": shuffle_key(build)}
    facts: dict[str, Any] = {
        name: getattr(manifest, name)
        for name in ("records_in", "quarantined", "skipped", "raw_files", "units", "references", "statistics")
    }
    shuffled = assemble(
        build.dataset,
        [records[number] for number in range(num_buckets)],
        name=manifest.name,
        split=manifest.split,
        schema=manifest.schema,
        layout=manifest.layout,
        format=manifest.format,
        facts={**facts, "provenance": {**manifest.provenance, "build": request}},
        graphs=build.settings.graph_layer(build.source),
    )
    clear_ordered(build)
    return shuffled


def clear_ordered(build: SplitBuild) -> None:
    """Remove the shards of the first pass; what is known of the raw files stays."""
    folder = build.converted
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    for entry in os.scandir(folder) if folder.exists() else ():
        if entry.name != BUILD_FOLDER:
            shutil.rmtree(entry.path) if entry.is_dir() else Path(entry.path).unlink()
    for name in ("parts", "placement.json"):
        path = folder / BUILD_FOLDER / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
