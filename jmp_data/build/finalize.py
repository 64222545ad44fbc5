"""From finished parts to a data set: merge counts and statistics, gather provenance, assemble."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

from jmp_data import __version__
from jmp_data.build.plan import SplitBuild
from jmp_data.build.raw_files import RawLedger
from jmp_data.build.shuffle import BucketJob, plan_buckets, shuffled_rows
from jmp_data.errors import ShardError
from jmp_data.references import StatisticsAccumulator, fit_references
from jmp_data.shards.assemble import assemble
from jmp_data.shards.manifest import DatasetManifest
from jmp_data.shards.staging import PartRecord, load_part, part_folder
from jmp_data.sources import SourceFacts, source_facts
from jmp_data.trust.flags import FLAGS_FILE, count_flags, flags_to_bytes
from jmp_data.trust.part_trust import TRUST_FILE, judge_split


def finished_parts(build: SplitBuild) -> list[PartRecord]:
    """Records of all parts of a split, in order.

    Raises:
        ShardError: some parts are not finished; the message says how many and which comes first.
    """
    records = [load_part(build.dataset, job.key) for job in build.jobs]
    missing = [number for number, record in enumerate(records, 1) if record is None]
    if missing:
        raise ShardError(
            f"{build.dataset}: {len(missing)} of {len(records)} parts are not built yet (first: {missing[0]}); "
            "run the missing --part jobs, or build without --part"
        )
    return [record for record in records if record is not None]


def _sum_counts(counts: Sequence[Any]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(sorted(total.items()))


def _provenance(build: SplitBuild, source: SourceFacts) -> dict[str, Any]:
    return {
        "source": build.name,
        "source_manifest": source.manifest,
        "source_manifest_sha256": source.manifest_sha256,
        "code_version": __version__,
        "licence": source.licence,
        "citation": source.citation,
        "level_of_theory": source.level_of_theory,
        "energy_kind": source.energy_kind,
        "trust": source.trust.model_dump(mode="json"),
        "notes": list(build.notes),
        "build": {
            "split": build.requested,
            "limit": build.limit,
            "graphs": build.settings.graphs,
            "shuffle": build.settings.shuffle,
        },
    }


def bucket_jobs(build: SplitBuild) -> list[BucketJob]:
    """The second pass of a shuffled split whose parts are all finished; no jobs where it keeps the published order.

    Raises:
        ShardError: parts are missing.
    """
    if build.settings.shuffle is None:
        return []
    graphs = build.settings.graph_layer(build.source)
    return plan_buckets(build.dataset, finished_parts(build), build.settings, build.schema, graphs)


def _finished_buckets(build: SplitBuild) -> list[PartRecord]:
    jobs = bucket_jobs(build)
    found = [record for job in jobs if (record := load_part(build.dataset, job.key)) is not None]
    if len(found) < len(jobs):
        raise ShardError(f"{build.dataset}: {len(jobs) - len(found)} of {len(jobs)} shuffled shards are not built yet")
    return found


def finalize(build: SplitBuild, ledger: RawLedger) -> DatasetManifest:
    """Assemble one split whose parts are all finished and whose raw files are all digested.

    Raises:
        ShardError: parts are missing, or lost a file.
    """
    parts = finished_parts(build)
    total = StatisticsAccumulator()
    for part in parts:
        total.merge(StatisticsAccumulator.from_json(part.statistics))
    settings = build.settings
    source = source_facts(build.source)
    quarantined = _sum_counts([part.quarantined for part in parts])
    skipped = _sum_counts([part.skipped for part in parts])
    stored = sum(shard.structures for part in parts for shard in part.shards)
    buckets = _finished_buckets(build)
    flags = judge_split(
        [part_folder(build.dataset, part.key) / TRUST_FILE for part in parts],
        source.trust,
        locate=None
        if settings.shuffle is None
        else partial(shuffled_rows, build.dataset, parts, seed=settings.shuffle),
    )
    facts = {
        "records_in": stored + sum(quarantined.values()) + sum(skipped.values()),
        "quarantined": quarantined,
        "skipped": skipped,
        "flagged": count_flags(flags),
        "raw_files": ledger.digests(name for job in build.jobs for name in job.part.files),
        "units": {"energy": "eV", "length": "Å", "constants": settings.constants},
        "references": {
            **fit_references(total, fitted_on=build.split),
            "published": dict(source.published),
        },
        "statistics": total.summary(),
        "provenance": _provenance(build, source),
    }
    return assemble(
        build.dataset,
        buckets or parts,
        name=build.name,
        split=build.split,
        schema=build.schema,
        layout=settings.layout,
        format=settings.format,
        facts=facts,
        graphs=settings.graph_layer(build.source),
        origins=parts if buckets else (),
        extra_files={FLAGS_FILE: flags_to_bytes(flags)} if flags else {},
    )
