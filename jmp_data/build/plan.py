"""Which parts make up a build, and in which order: pure given the raw files, so every worker count plans the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jmp_data.build.settings import BuildSettings, PartJob
from jmp_data.errors import ManifestError, MissingFileError
from jmp_data.schema import Schema
from jmp_data.sources import expand_source, raw_folder


@dataclass(frozen=True, slots=True)
class SplitBuild:
    """One output split and the jobs that fill it, in final order.

    Attributes:
        source: source name as on the command line, or the path of a user's YAML file.
        name: name of the data set.
        split: output split.
        raw: raw folder.
        dataset: output folder.
        settings: what to write.
        requested: split as asked for; an alias or a rule may give it another output name.
        limit: convert only the first records.
        jobs: parts in final order.
        schema: columns.
        notes: what the source wants said about this split.
    """

    source: str
    name: str
    split: str
    raw: Path
    dataset: Path
    settings: BuildSettings
    requested: str
    limit: int | None
    jobs: tuple[PartJob, ...]
    schema: Schema
    notes: tuple[str, ...] = ()


def dataset_folder(out: Path, name: str, split: str) -> Path:
    """`OUT/<dataset>/<split>`; a part of a multi-task source gets a folder of its own: `OUT/rmd17/aspirin/<split>`."""
    return out.joinpath(*name.split(":"), split)


def plan_split(
    source_name: str, raw: Path, out: Path, split: str, settings: BuildSettings, limit: int | None
) -> SplitBuild:
    """Parts of one split, cut to the first `limit` records.

    Raises:
        RawFileError: raw files are missing or not in the published layout.
    """
    source = settings.open_source(source_name)
    plan = source.plan(raw, split)
    folder = dataset_folder(out, source.name, plan.split)
    jobs, left = [], limit
    for part in plan.parts:
        if left is not None and left <= 0:
            break
        cut = left if left is not None and left < part.num_records else None
        jobs.append(PartJob(source_name, raw, folder, part, settings, cut, plan.schema, plan.required))
        left = None if left is None else left - part.num_records
    return SplitBuild(
        source=source_name,
        name=source.name,
        split=plan.split,
        raw=raw,
        dataset=folder,
        settings=settings,
        requested=split,
        limit=limit,
        jobs=tuple(jobs),
        schema=source.schema if plan.schema is None else plan.schema,
        notes=plan.notes,
    )


def _present_parts(source: str, raw: Path, settings: BuildSettings, note: Callable[[str], None]) -> list[str]:
    """The name itself, or of a source named without its part those parts whose files are there."""
    names = expand_source(source)
    if len(names) == 1:
        return list(names)
    absent: list[str] = []
    for name in names:
        try:
            settings.open_source(name).splits(raw)
        except MissingFileError:
            absent.append(name)
    if len(absent) == len(names):
        raise MissingFileError(
            f"{source}: no files of any of its parts below {raw}; run `jmp-data download {source}` "
            "or put the published files there"
        )
    if absent:
        parts = ", ".join(name.partition(":")[2] for name in absent)
        note(f"{source}: no files of {parts} below {raw}; these parts are left out")
    return [name for name in names if name not in absent]


def plan_build(
    sources: Sequence[str],
    raw: Path,
    out: Path,
    *,
    splits: Sequence[str] = (),
    settings: BuildSettings,
    limit: int | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> list[SplitBuild]:
    """All splits of all sources.

    Args:
        sources: source names, a name without its part means all parts whose files are there; or YAML files of a user's
            own data.
        raw: folder with the published files; a user's own are looked for beside their YAML first.
        out: folder for the data sets.
        splits: splits to build; every split whose files are there by default.
        settings: what to write.
        limit: convert only the first records of each split.
        note: told which parts are left out because their files are not there.

    Raises:
        ManifestError: unknown source, or the same source twice.
        RawFileError: raw files are missing or malformed; of a source named without its part, all are missing.
    """
    names = [name for source in sources for name in _present_parts(source, raw, settings, note)]
    if len(set(names)) != len(names):
        raise ManifestError(f"a source is named twice: {' '.join(sources)}")
    builds: list[SplitBuild] = []
    for name in names:
        folder = raw_folder(name, raw).resolve()
        present = settings.open_source(name).splits(folder)
        builds += [plan_split(name, folder, out, split, settings, limit) for split in (splits or present)]
    folders = [build.dataset for build in builds]
    twice = next((folder for folder in folders if folders.count(folder) > 1), None)
    if twice is not None:
        raise ManifestError(f"two sources would both be written to {twice}; give one of them another name")
    return builds
