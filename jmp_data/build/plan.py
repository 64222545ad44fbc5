"""Which parts make up a build, and in which order: pure given the raw files, so every worker count plans the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jmp_data.build.settings import BuildSettings, PartJob
from jmp_data.errors import ManifestError
from jmp_data.sources import expand_source


@dataclass(frozen=True, slots=True)
class SplitBuild:
    """One output split and the jobs that fill it, in final order.

    Attributes:
        source: source name as on the command line.
        split: output split.
        raw: raw folder.
        dataset: output folder.
        settings: what to write.
        requested: split as asked for; an alias or a rule may give it another output name.
        limit: convert only the first records.
        jobs: parts in final order.
        notes: what the source wants said about this split.
    """

    source: str
    split: str
    raw: Path
    dataset: Path
    settings: BuildSettings
    requested: str
    limit: int | None
    jobs: tuple[PartJob, ...]
    notes: tuple[str, ...] = ()


def dataset_folder(out: Path, source: str, split: str) -> Path:
    """`OUT/<dataset>/<split>`; a part of a multi-task source gets a folder of its own: `OUT/rmd17/aspirin/<split>`."""
    return out.joinpath(*source.split(":"), split)


def plan_split(
    source_name: str, raw: Path, out: Path, split: str, settings: BuildSettings, limit: int | None
) -> SplitBuild:
    """Parts of one split, cut to the first `limit` records.

    Raises:
        RawFileError: raw files are missing or not in the published layout.
    """
    plan = settings.open_source(source_name).plan(raw, split)
    folder = dataset_folder(out, source_name, plan.split)
    jobs, left = [], limit
    for part in plan.parts:
        if left is not None and left <= 0:
            break
        cut = left if left is not None and left < part.num_records else None
        jobs.append(PartJob(source_name, raw, folder, part, settings, cut))
        left = None if left is None else left - part.num_records
    return SplitBuild(
        source=source_name,
        split=plan.split,
        raw=raw,
        dataset=folder,
        settings=settings,
        requested=split,
        limit=limit,
        jobs=tuple(jobs),
        notes=plan.notes,
    )


def plan_build(
    sources: Sequence[str],
    raw: Path,
    out: Path,
    *,
    splits: Sequence[str] = (),
    settings: BuildSettings,
    limit: int | None = None,
) -> list[SplitBuild]:
    """All splits of all sources.

    Args:
        sources: source names; a name without its part means all parts.
        raw: folder with the published files.
        out: folder for the data sets.
        splits: splits to build; every split whose files are there by default.
        settings: what to write.
        limit: convert only the first records of each split.

    Raises:
        ManifestError: unknown source, or the same source twice.
        RawFileError: raw files are missing or malformed.
    """
    names = [name for source in sources for name in expand_source(source)]
    if len(set(names)) != len(names):
        raise ManifestError(f"a source is named twice: {' '.join(sources)}")
    raw = raw.resolve()
    builds = []
    for name in names:
        present = settings.open_source(name).splits(raw)
        builds += [plan_split(name, raw, out, split, settings, limit) for split in (splits or present)]
    return builds
