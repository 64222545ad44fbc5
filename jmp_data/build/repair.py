"""Rebuild exactly the damaged shards of a data set from the raw files that they came from."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from jmp_data.build.finalize import bucket_jobs, finalize
from jmp_data.build.lock import lock_targets
from jmp_data.build.part import convert_part
from jmp_data.build.plan import SplitBuild, plan_split
from jmp_data.build.raw_files import RawLedger
from jmp_data.build.run import digest_raw_files
from jmp_data.build.settings import BuildSettings, PartJob
from jmp_data.build.shuffle import BucketJob, gather_bucket
from jmp_data.errors import ManifestError, RawFileError
from jmp_data.shards.dataset import open_dataset
from jmp_data.shards.formats import digest_file
from jmp_data.shards.integrity import Damage
from jmp_data.shards.manifest import DatasetManifest
from jmp_data.shards.staging import load_part, part_folder
from jmp_data.sources import raw_folder, source_names


def _plan_again(dataset: Path, raw: Path, manifest: DatasetManifest) -> SplitBuild:
    request = manifest.provenance.get("build")
    if request is None:
        raise ManifestError(f"{dataset}: was not built from raw files, there is nothing to repair it from")
    settings = BuildSettings(
        format=manifest.format,
        graphs=request["graphs"],
        constants=str(manifest.units["constants"]),
        layout=manifest.layout,
        shuffle=request["shuffle"],
    )
    out = dataset.absolute().parents[len(manifest.name.split(":"))]
    # A user's own data set is planned by its YAML file, which lies in the raw folder.
    published = manifest.name.partition(":")[0] in source_names()
    name = manifest.name if published else str(raw.resolve() / manifest.provenance["source_manifest"])
    return plan_split(name, raw_folder(name, raw).resolve(), out, request["split"], settings, request["limit"])


def _refuse_other_raw(raw: Path, manifest: DatasetManifest, names: Sequence[str]) -> None:
    for name in names:
        if not (raw / name).is_file() or digest_file(raw / name) != manifest.raw_files[name]:
            raise RawFileError(f"{raw / name}: is not the raw file that this data set was built from")


def repair_dataset(dataset: Path, raw: Path, damage: Sequence[Damage]) -> int:
    """Rebuild what `verify_dataset` found.

    Args:
        dataset: folder of the split, as `build` made it.
        raw: the raw folder that it was built from.
        damage: the findings.

    Returns:
        Number of parts that were converted again.

    Raises:
        ManifestError: the data set was not made by `build`, or its build records are gone.
        RawFileError: a raw file is not the one that the data set was built from.
        ShardError: another version of this code made the build records.
    """
    manifest = open_dataset(dataset).manifest
    build = _plan_again(dataset, raw, manifest)
    hit = {manifest.shards[entry.shard].part for entry in damage if entry.shard is not None}
    complete = all(load_part(build.dataset, job.key) is not None for job in build.jobs)
    # The shards of a shuffled build come from its parts, which lie sorted in the build records.
    made: Sequence[PartJob | BucketJob] = build.jobs
    if complete and build.settings.shuffle is not None:
        made = bucket_jobs(build)
    jobs = [job for job in made if job.key in hit]
    if len(jobs) != len(hit) or not complete:
        raise ManifestError(f"{dataset}: build records are missing or older; build again instead of repairing")
    files = {name for job in jobs if isinstance(job, PartJob) for name in job.part.files}
    _refuse_other_raw(raw, manifest, sorted(files))
    with lock_targets([build.dataset]):
        for job in jobs:
            shutil.rmtree(part_folder(job.dataset, job.key))
            convert_part(job) if isinstance(job, PartJob) else gather_bucket(job)
        ledger = RawLedger(build.dataset, build.raw)
        ledger.changed({name for job in build.jobs for name in job.part.files})
        digest_raw_files(build, ledger)
        finalize(build, ledger)
    return len(jobs)
