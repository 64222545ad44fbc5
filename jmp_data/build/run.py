"""Run a build: what is done stays done, what is missing is made, then each split is assembled."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from jmp_data.build.engines import Engine, SerialEngine
from jmp_data.build.finalize import bucket_jobs, finalize
from jmp_data.build.lock import lock_targets
from jmp_data.build.part import convert_part
from jmp_data.build.plan import SplitBuild
from jmp_data.build.raw_files import RawLedger
from jmp_data.build.settings import PartJob
from jmp_data.build.shuffle import gather_bucket
from jmp_data.shards.formats import digest_file
from jmp_data.shards.manifest import DatasetManifest
from jmp_data.shards.staging import PartRecord, load_part, part_folder


@dataclass(frozen=True, slots=True)
class PartDone:
    """Progress: one part is finished.

    Attributes:
        stage: `convert`, or `shuffle` for a shard of the second pass of a shuffled build.
        source: source name.
        split: output split.
        structures: structures that it stored.
        quarantined: records set aside.
        reused: finished by an earlier run.
        damaged_files: messages about raw files that are damaged themselves.
    """

    source: str
    split: str
    structures: int
    quarantined: int
    reused: bool
    damaged_files: tuple[str, ...] = ()
    stage: Literal["convert", "shuffle"] = "convert"


@dataclass(frozen=True, slots=True)
class SplitDone:
    """One split is a finished data set.

    Attributes:
        dataset: its folder.
        manifest: its manifest.
        bytes: size of its shards.
        seconds: time since the build began or the split before was finished.
        damaged_files: messages about raw files that are damaged themselves.
    """

    dataset: Path
    manifest: DatasetManifest
    bytes: int
    seconds: float
    damaged_files: tuple[str, ...] = ()


Progress: TypeAlias = Callable[[PartDone], None]
_DIGEST_THREADS = 4  # hashing releases the interpreter lock; more would only seek


def _drop_stale(build: SplitBuild, ledger: RawLedger) -> None:
    stale = ledger.changed({name for job in build.jobs for name in job.part.files})
    for job in build.jobs:
        if stale.intersection(job.part.files):
            shutil.rmtree(part_folder(job.dataset, job.key), ignore_errors=True)


def _done(build: SplitBuild, record: PartRecord, *, reused: bool) -> PartDone:
    structures = sum(shard.structures for shard in record.shards)
    quarantined = sum(record.quarantined.values())
    return PartDone(build.source, build.split, structures, quarantined, reused, record.damaged_files)


def _convert(jobs: Sequence[tuple[SplitBuild, PartJob]], engine: Engine, progress: Progress) -> Iterator[SplitBuild]:
    """Convert what is missing; yields the split of each job as it is done."""
    todo = []
    for build, job in jobs:
        record = load_part(job.dataset, job.key)
        if record is None:
            todo.append((build, job))
        else:
            progress(_done(build, record, reused=True))
            yield build
    for number, record in engine.run(convert_part, [job for _, job in todo]):
        progress(_done(todo[number][0], record, reused=False))
        yield todo[number][0]


def _shuffle(build: SplitBuild, engine: Engine, progress: Progress) -> None:
    """The second pass of a shuffled split: gather what is not gathered yet."""
    todo = []
    for job in bucket_jobs(build):
        record = load_part(job.dataset, job.key)
        if record is None:
            todo.append(job)
        else:
            progress(replace(_done(build, record, reused=True), stage="shuffle"))
    for _, record in engine.run(gather_bucket, todo):
        progress(replace(_done(build, record, reused=False), stage="shuffle"))


def run_build(builds: Sequence[SplitBuild], engine: Engine, progress: Progress) -> Iterator[SplitDone]:
    """Build all splits; each becomes a data set, and is yielded, as soon as its last part is done.

    Raises:
        TargetLockedError: another build is at work on one of the folders.
        ShardError: another version of this code began one of the folders.
        JmpDataError: bad input that cannot be set aside; finished parts are kept.
    """
    with lock_targets([build.dataset for build in builds]):
        start = time.monotonic()
        ready: list[SplitBuild] = []
        ledgers = {build.dataset: RawLedger(build.dataset, build.raw) for build in builds}
        for build in builds:
            _drop_stale(build, ledgers[build.dataset])
        left = {build.dataset: len(build.jobs) for build in builds}
        for build in (build for build in builds if not build.jobs):
            _shuffle(build, engine, progress)
            yield _finish(build, ledgers[build.dataset], start)
        jobs = [(build, job) for build in builds for job in build.jobs]
        for done in _convert(jobs, engine, progress):
            left[done.dataset] -= 1
            if left[done.dataset] == 0 and done.settings.shuffle is not None:
                ready.append(done)  # its second pass needs the workers that are still at the first of other splits
            elif left[done.dataset] == 0:
                yield _finish(done, ledgers[done.dataset], start)
                start = time.monotonic()
        for done in ready:
            _shuffle(done, engine, progress)
            yield _finish(done, ledgers[done.dataset], start)
            start = time.monotonic()


def run_array_part(builds: Sequence[SplitBuild], part: tuple[int, int], engine: Engine, progress: Progress) -> None:
    """Convert the I-th of N equal shares of all parts, as one job of a job array; nothing is assembled.

    Args:
        builds: the whole build; every job of the array plans the same.
        part: (I, N), I from 1 to N.
        engine: where to run.
        progress: called after each part.
    """
    number, total = part
    with lock_targets([build.dataset for build in builds], shared=True):
        jobs = [(build, job) for build in builds for job in build.jobs]
        for _ in _convert(jobs[number - 1 :: total], engine, progress):
            pass


def run_finalize(
    builds: Sequence[SplitBuild], engine: Engine | None = None, progress: Progress = lambda entry: None
) -> Iterator[SplitDone]:
    """Assemble all splits after the jobs of an array are done.

    Args:
        builds: the whole build.
        engine: where to run the second pass of shuffled splits; this process by default.
        progress: called after each shard of that pass.

    Raises:
        ShardError: parts are missing, or another version of this code made them.
    """
    with lock_targets([build.dataset for build in builds]):
        for build in builds:
            start = time.monotonic()
            ledger = RawLedger(build.dataset, build.raw)
            ledger.changed({name for job in build.jobs for name in job.part.files})
            _shuffle(build, engine or SerialEngine(), progress)
            yield _finish(build, ledger, start)


def digest_raw_files(build: SplitBuild, ledger: RawLedger) -> None:
    """Complete the ledger with the digests of all raw files of a split."""
    names = ledger.undigested(name for job in build.jobs for name in job.part.files)
    if names:
        with ThreadPoolExecutor(_DIGEST_THREADS) as pool:
            digests = pool.map(digest_file, [build.raw / name for name in names])
            ledger.record(dict(zip(names, digests, strict=True)))


def _finish(build: SplitBuild, ledger: RawLedger, start: float) -> SplitDone:
    digest_raw_files(build, ledger)
    manifest = finalize(build, ledger)
    nbytes = sum(digest.bytes for shard in manifest.shards for digest in shard.files.values())
    damaged = [message for job in build.jobs for message in _damaged(job)]
    return SplitDone(build.dataset, manifest, nbytes, time.monotonic() - start, tuple(dict.fromkeys(damaged)))


def _damaged(job: PartJob) -> tuple[str, ...]:
    record = load_part(job.dataset, job.key)
    return record.damaged_files if record is not None else ()
