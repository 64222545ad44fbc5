"""`jmp-data download`: published files, verified, resumable, unpacked where a reader needs it."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from jmp_data.manifests import FileEntry
from jmp_data.raw.download import DownloadPlan, DownloadResult, PlannedFile, TransferProgress, download, plan_download
from jmp_data.sources.published_files import WantedFiles, choose_files, remote_file, unpack_files

from .console import err, out, print_json, print_table, progress

_LOG_INTERVAL = 10.0


def register(app: typer.Typer) -> None:
    """Add the verbs of this module."""
    app.command(name="download")(download_sources)


def download_sources(
    sources: Annotated[
        list[str], typer.Argument(help="Sources such as ani1x or rmd17:aspirin, or the path of a source manifest.")
    ],
    raw: Annotated[Path, typer.Option(help="Folder for the files.")] = Path("raw"),
    split: Annotated[
        list[str] | None,
        typer.Option(help="Only the files of this split; repeat for several. Default: the usual ones."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Files that come at once.")] = 4,
    mirror: Annotated[
        str, typer.Option(help="Address that holds the same files under the same names; they come from URL/NAME.")
    ] = "",
    extract: Annotated[
        bool, typer.Option("--extract/--no-extract", help="Unpack archives that readers need unpacked.")
    ] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would come, and stop.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Download published files; each is complete and verified, or absent. Start it again and it goes on.

    Size and digest are checked where they are published; where no digest is, the first one is recorded and binding from
    then on. Unfinished files are NAME.part. Most sources are read as they are published; the others are unpacked
    beside their archives.

    Example: jmp-data download oc20 --split train_200K --split val_id --raw raw
    """
    wanted = choose_files(sources, split or ())
    entries = [entry for source in wanted for entry in source.files]
    files = [remote_file(entry, mirror) for entry in entries]
    plan = plan_download(files, raw)
    if not as_json:
        _print_plan(wanted, plan, raw)
    if dry_run:
        if as_json:
            print_json(_plan_json(wanted, plan, raw))
        return
    with _bars() as report:
        results = download(files, raw, workers=workers, progress=report)
    unpacked = _unpack(entries, raw) if extract else {}
    if as_json:
        print_json(_result_json(wanted, results, unpacked))
        return
    rows = [[r.file.name, r.status, _bytes(r.size), r.sha256, unpacked.get(r.file.name, "")] for r in results]
    print_table("Downloaded", ["file", "", "size", "sha256", "files unpacked"], rows)


def _bytes(count: int | None) -> str:
    if count is None:
        return "?"
    size, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{count} B" if units[0] == "B" else f"{size:.1f} {units[0]}"


def _free_bytes(folder: Path) -> int:
    while not folder.exists():
        folder = folder.absolute().parent
    return shutil.disk_usage(folder).free


def _known_digest(entry: FileEntry) -> str:
    return "sha256" if entry.sha256 else "md5" if entry.md5 else "recorded when it comes"


def _print_plan(wanted: list[WantedFiles], plan: DownloadPlan, raw: Path) -> None:
    planned = {entry.file.name: entry for entry in plan.files}
    for source in wanted:
        manifest = source.manifest
        out.print(f"{manifest.name}: {manifest.title}", style="bold", markup=False)
        note = f" ({manifest.licence_note})" if manifest.licence_note else ""
        out.print(f"  licence: {manifest.licence}{note}", markup=False)
        out.print(f"  cite: {manifest.citation}, doi {manifest.doi}", markup=False)
        rows = [_plan_row(entry, planned[entry.name]) for entry in source.files]
        print_table(f"{manifest.name} to {raw}", ["file", "size", "digest", "what happens", "still to come"], rows)
        for entry in source.files:
            if entry.note:
                err.print(f"note: {entry.name}: {entry.note}", markup=False)
    unknown = f", and {plan.files_of_unknown_size} files of unknown size" if plan.files_of_unknown_size else ""
    out.print(f"{_bytes(plan.missing_bytes)} to come{unknown}; {_bytes(_free_bytes(raw))} free", markup=False)


def _plan_row(entry: FileEntry, planned: PlannedFile) -> list[str]:
    size = _bytes(entry.size) if entry.size is not None else entry.size_text or "?"
    then = ", unpack" if entry.unpack != "none" else ""
    return [entry.name, size, _known_digest(entry), planned.action + then, _bytes(planned.missing_bytes)]


def _sources_json(wanted: list[WantedFiles]) -> list[dict[str, str]]:
    facts = ("name", "title", "licence", "citation", "doi")
    return [{name: getattr(source.manifest, name) for name in facts} for source in wanted]


def _plan_json(wanted: list[WantedFiles], plan: DownloadPlan, raw: Path) -> dict[str, Any]:
    entries = {entry.name: (source.manifest.name, entry) for source in wanted for entry in source.files}
    files = []
    for planned in plan.files:
        source, entry = entries[planned.file.name]
        files.append(
            {
                "source": source,
                "name": entry.name,
                "urls": list(planned.file.urls),
                "size": entry.size,
                "size_text": entry.size_text,
                "md5": entry.md5,
                "sha256": entry.sha256,
                "action": planned.action,
                "missing_bytes": planned.missing_bytes,
                "unpack": entry.unpack,
            }
        )
    totals = {
        "missing_bytes": plan.missing_bytes,
        "files_of_unknown_size": plan.files_of_unknown_size,
        "free_bytes": _free_bytes(raw),
    }
    return {"raw": str(raw), "sources": _sources_json(wanted), "files": files, **totals}


def _result_json(wanted: list[WantedFiles], results: list[DownloadResult], unpacked: dict[str, int]) -> dict[str, Any]:
    files = [
        {
            "name": result.file.name,
            "path": str(result.path),
            "status": result.status,
            "size": result.size,
            "sha256": result.sha256,
            "md5": result.md5,
            "url": result.url,
            "unpacked_files": unpacked.get(result.file.name),
        }
        for result in results
    ]
    return {"sources": _sources_json(wanted), "files": files}


def _unpack(entries: list[FileEntry], raw: Path) -> dict[str, int]:
    with progress("unpack", None, "files") as advance:
        unpacked = unpack_files(entries, raw, lambda archive, member: advance(1, f"{archive}: {member.name}"))
    return {name: len(paths) for name, paths in unpacked.items()}


@contextmanager
def _bars() -> Iterator[Any]:
    """A bar for each file on a terminal; a line for each file every ten seconds in a log."""
    if not err.is_terminal:
        yield _LogLines().report
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=err) as bars:
        tasks: dict[str, Any] = {}

        def report(event: TransferProgress) -> None:
            if event.name not in tasks:
                tasks[event.name] = bars.add_task(event.name, total=event.total, note="")
            note = (
                event.note
                if event.stage in ("retrying", "waiting")
                else ""
                if event.stage == "downloading"
                else event.stage
            )
            bars.update(tasks[event.name], completed=event.received, total=event.total, note=note)

        yield report


class _LogLines:
    """Progress as lines, with what went wrong on the way."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[str, float]] = {}
        self._lock = threading.Lock()

    def report(self, event: TransferProgress) -> None:
        """Print the event, unless the same stage of the same file was printed a moment ago."""
        with self._lock:
            stage, at = self._last.get(event.name, ("", 0.0))
            now = time.monotonic()
            if stage == event.stage and event.stage != "retrying" and now - at < _LOG_INTERVAL:
                return
            self._last[event.name] = (event.stage, now)
        of = f" of {_bytes(event.total)}" if event.total is not None else ""
        note = f" ({event.note})" if event.note else ""
        err.print(f"{event.name}: {event.stage}, {_bytes(event.received)}{of}{note}", markup=False)
