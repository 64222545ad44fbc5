"""`jmp-data build` and `verify`: convert raw files, and check what was converted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from jmp_data.build import (
    BuildSettings,
    PartDone,
    SplitDone,
    choose_engine,
    plan_build,
    run_array_part,
    run_build,
    run_finalize,
)
from jmp_data.build.engines import Engine
from jmp_data.build.plan import SplitBuild
from jmp_data.build.quarantine import first_messages
from jmp_data.build.repair import repair_dataset
from jmp_data.errors import ManifestError
from jmp_data.shards.assemble import QUARANTINE_FILE
from jmp_data.shards.integrity import Damage, find_datasets, verify_dataset
from jmp_data.shards.manifest import MANIFEST_NAME
from jmp_data.trust.flags import FLAGS_FILE

from .console import EXIT_BAD_INPUT, EXIT_DAMAGED_RAW, err, fail, out, print_json, print_table, progress

_SHUFFLE_SEED = 0


def register(app: typer.Typer) -> None:
    """Add the verbs of this module."""
    app.command()(build)
    app.command()(verify)


def _parse_share(part: str | None) -> tuple[int, int] | None:
    if part is None:
        return None
    try:
        number, total = (int(text) for text in part.split("/"))
    except ValueError:
        raise ManifestError(f"--part {part}: give I/N, for instance 3/100") from None
    if not 1 <= number <= total:
        raise ManifestError(f"--part {part}: I runs from 1 to N")
    return number, total


def _print_done(done: list[SplitDone]) -> None:
    rows = []
    for split in done:
        manifest = split.manifest
        rate = manifest.num_structures / max(split.seconds, 1e-9)
        rows.append(
            [
                manifest.name,
                manifest.split,
                f"{manifest.num_structures:,}",
                f"{sum(manifest.quarantined.values()):,}",
                f"{sum(manifest.skipped.values()):,}",
                f"{len(manifest.shards)}",
                f"{split.bytes / 1e6:.2f}",
                f"{split.bytes / max(1, manifest.num_structures):.0f}",
                f"{rate:,.0f}",
            ]
        )
    columns = ["data set", "split", "structures", "quarantined", "skipped", "shards", "MB", "bytes each", "per second"]
    print_table("Built", columns, rows)


def _print_quarantined(done: list[SplitDone]) -> None:
    """For each reason, how many records and the first of them."""
    for split in done:
        counts = split.manifest.quarantined
        messages = first_messages(split.dataset, counts)
        for reason, count in counts.items():
            where = split.dataset / QUARANTINE_FILE
            err.print(f"quarantined: {count} x {reason} (see {where}), first {messages.get(reason, '')}", markup=False)
        for reason, count in split.manifest.flagged.items():
            where = split.dataset / FLAGS_FILE
            err.print(f"flagged, and stored: {count} x {reason} (see {where})", markup=False)


def _fail_on_empty(done: list[SplitDone]) -> bool:
    """Complain about splits of which nothing could be kept, and about a build that found nothing at all."""
    nothing = not any(split.manifest.num_structures for split in done)
    empty = [split for split in done if not split.manifest.num_structures]
    for split in empty:
        count = sum(split.manifest.quarantined.values())
        if count:
            fail(f"{split.dataset}: all {count} records are quarantined; see {QUARANTINE_FILE} there")
        elif nothing:
            fail(f"{split.dataset}: the raw files hold no records")
    return bool(done) and (nothing or any(split.manifest.quarantined for split in empty))


def _as_json(split: SplitDone) -> dict[str, object]:
    manifest = split.manifest
    return {
        "dataset": manifest.name,
        "split": manifest.split,
        "path": str(split.dataset),
        "structures": manifest.num_structures,
        "atoms": manifest.num_atoms,
        "records_in": manifest.records_in,
        "quarantined": dict(manifest.quarantined),
        "skipped": dict(manifest.skipped),
        "flagged": dict(manifest.flagged),
        "bytes": split.bytes,
        "seconds": round(split.seconds, 3),
    }


def build(
    sources: Annotated[list[str], typer.Argument(help="Sources such as oc20, rmd17:aspirin, or a my.yaml.")],
    raw: Annotated[Path, typer.Option(help="Folder with the published files, in their published layout.")] = Path(
        "raw"
    ),
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for the data sets.")] = Path("shards"),
    split: Annotated[list[str] | None, typer.Option(help="Split to build; repeat for several. Default: all.")] = None,
    format: Annotated[Literal["zarr", "webdataset"], typer.Option(help="Storage format.")] = "zarr",
    graphs: Annotated[Literal["none", "main", "all"], typer.Option(help="Radius graphs to store as well.")] = "none",
    workers: Annotated[int, typer.Option(min=0, help="Local processes; 0 means one per core.")] = 0,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a Dask scheduler, instead of local processes.")
    ] = None,
    part: Annotated[str | None, typer.Option(help="I/N: convert the I-th of N shares, for a job array.")] = None,
    finalize: Annotated[bool, typer.Option("--finalize", help="Assemble after all --part jobs are done.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N records of each split.")] = None,
    on_error: Annotated[
        Literal["quarantine", "fail"], typer.Option(help="What to do with a bad record.")
    ] = "quarantine",
    shuffle: Annotated[
        bool, typer.Option("--shuffle", help="Store each split in a fixed random order; takes twice the disk.")
    ] = False,
    constants: Annotated[str, typer.Option(help="Unit constants: codata2014 or jmp_reference.")] = "codata2014",
    as_json: Annotated[bool, typer.Option("--json", help="Print figures as JSON.")] = False,
) -> None:
    """Convert raw files to checked shards in eV and Å; start it again after a crash and it goes on.

    Example: jmp-data build oc20 ani1x --raw raw --out shards --workers 8
    """
    settings = BuildSettings(
        format=format,
        graphs=graphs,
        constants=constants,
        on_error=on_error,
        shuffle=_SHUFFLE_SEED if shuffle else None,
    )
    share = _parse_share(part)
    if share is not None and finalize:
        raise ManifestError("--part converts and --finalize assembles: run them one after the other")
    builds = plan_build(
        sources,
        raw,
        out_dir,
        splits=split or (),
        settings=settings,
        limit=limit,
        note=lambda text: err.print(f"note: {text}", markup=False),
    )
    _print_notes(builds)
    engine = choose_engine(workers=workers or _cores(), scheduler=scheduler)
    finished = _run(builds, engine, share, finalize=finalize)
    planned_order = [planned.dataset for planned in builds]
    done = sorted(finished, key=lambda entry: planned_order.index(entry.dataset))
    if as_json:
        print_json([_as_json(entry) for entry in done])
    elif done:
        _print_done(done)
    _print_quarantined(done)
    # The last message about a file says what is wrong with the file itself, those before it what that broke.
    damaged = {message.partition(": ")[0]: message for entry in done for message in entry.damaged_files}
    for message in damaged.values():
        fail(message)
    empty = _fail_on_empty(done)
    if damaged or empty:
        raise typer.Exit(EXIT_DAMAGED_RAW if damaged else EXIT_BAD_INPUT)


def _print_notes(builds: list[SplitBuild]) -> None:
    """Each note once, with the splits that it holds for."""
    splits: dict[tuple[str, str], list[str]] = {}
    for planned in builds:
        for note in planned.notes:
            splits.setdefault((planned.name, note), []).append(planned.split)
    for (name, note), those in splits.items():
        err.print(f"note: {name}/{', '.join(those)}: {note}", markup=False)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run(builds: list[SplitBuild], engine: Engine, share: tuple[int, int] | None, *, finalize: bool) -> list[SplitDone]:
    """Run what was asked for, with a bar or a log line for the parts, then one for the shards of a second pass."""
    jobs = sum(len(planned.jobs) for planned in builds)
    total = None if finalize else jobs if share is None else len(range(share[0] - 1, jobs, share[1]))
    structures = {"convert": 0, "shuffle": 0}
    with progress("build", total, "parts") as advance:

        def report(entry: PartDone) -> None:
            structures[entry.stage] += entry.structures
            done = "converted" if entry.stage == "convert" else "shuffled"
            note = f"{structures[entry.stage]:,} structures {done}, at {Path(entry.source).name}/{entry.split}"
            advance(1 if entry.stage == "convert" else 0, note)

        if share is not None:
            run_array_part(builds, share, engine, report)
            count = structures["convert"]
            err.print(f"part {share[0]}/{share[1]}: {count:,} structures; assemble with --finalize", markup=False)
            return []
        return list(run_finalize(builds, engine, report) if finalize else run_build(builds, engine, report))


def _verify(dataset: Path) -> list[Damage]:
    with progress(f"verify {dataset}", None, "shards") as advance:
        try:
            return verify_dataset(dataset, lambda done, total: advance(1, f"of {total}"))
        except ManifestError as error:  # the others are still worth checking
            return [Damage(MANIFEST_NAME, None, f"{error}; the command that built it writes it again")]


def _repair(dataset: Path, raw: Path, damage: list[Damage]) -> list[Damage]:
    """Rebuild what is damaged; returns what is still wrong. A damaged index hides what it leads to at first."""
    for _ in range(2):
        if damage and not any(finding.file == MANIFEST_NAME for finding in damage):
            rebuilt = repair_dataset(dataset, raw, damage)
            out.print(f"{dataset}: rebuilt {rebuilt} part{'s' * (rebuilt != 1)}", markup=False)
            damage = _verify(dataset)
    return damage


def verify(
    directory: Annotated[Path, typer.Argument(help="A data set, or a folder of data sets.")],
    repair: Annotated[bool, typer.Option("--repair", help="Rebuild damaged shards from --raw.")] = False,
    raw: Annotated[Path | None, typer.Option(help="Raw files, for --repair.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print findings as JSON.")] = False,
) -> None:
    """Check every byte of one or more data sets; each finding names shard, array and block.

    Example: jmp-data verify shards/ani1x
    """
    if repair and raw is None:
        raise ManifestError("--repair needs --raw, the folder with the published files")
    findings = []
    datasets = find_datasets(directory)
    for dataset in datasets:
        damage = _verify(dataset)
        if repair and raw is not None:
            damage = _repair(dataset, raw, damage)
        findings += damage
    if as_json:
        print_json(
            {
                "datasets": [str(path) for path in datasets],
                "damage": [{"file": d.file, "shard": d.shard, "message": d.message} for d in findings],
            }
        )
    for damage_entry in findings:
        fail(damage_entry.message)
    if findings:
        raise typer.Exit(EXIT_BAD_INPUT)
    if not as_json:
        out.print(f"{len(datasets)} data sets verified, no damage", markup=False)
