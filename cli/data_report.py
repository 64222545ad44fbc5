"""`jmp-data overlap` and `report`: what data sets share, and what they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from jmp_data.errors import ManifestError
from jmp_data.shards import ShardDataset, open_dataset
from jmp_data.shards.integrity import find_datasets

from .console import err, out, print_json, print_table, progress

_WITH = "--with"


class SpreadWith(TyperCommand):
    """`--with A B C` means `--with A --with B --with C`, up to the next option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the option before each of its values."""
        spread: list[str] = []
        inside = False
        for arg in args:
            if arg.startswith("-"):
                inside = arg == _WITH
            elif inside and spread[-1] != _WITH:
                spread.append(_WITH)
            spread.append(arg)
        return super().parse_args(ctx, spread)


def register(app: typer.Typer) -> None:
    """Add the verbs of this module."""
    app.command()(report)
    app.command(cls=SpreadWith)(overlap)


def report(
    directories: Annotated[
        list[str], typer.Argument(metavar="DIR", help="Data sets, or folders of data sets, or URLs.")
    ],
    output: Annotated[Path, typer.Option("--out", "-o", help="Page to write.")] = Path("report.html"),
    overlap_dir: Annotated[
        Path | None, typer.Option("--overlap", help="Folder that jmp-data overlap wrote, to show its table.")
    ] = None,
) -> None:
    """Write one self-contained page about data sets: counts, elements, energies, forces, pictures, provenance.

    Example: jmp-data report shards --out report.html
    """
    from jmp_data.overlap.output import read_summary
    from jmp_data.report import write_report
    from jmp_data.report.sample import choose_blocks

    datasets = _open_all(directories)
    summary = None if overlap_dir is None else read_summary(overlap_dir)
    total = sum(choose_blocks(dataset).structures for dataset in datasets)
    with progress("report", total, "structures") as advance:
        write_report(datasets, output, overlap=summary, progress=advance)
    out.print(f"{output}: {len(datasets)} data sets, {output.stat().st_size / 1e3:.0f} kB", markup=False)


def _open_all(directories: list[str]) -> list[ShardDataset]:
    """Each data set once, also where one folder lies in another."""
    found: dict[str, ShardDataset] = {}
    for directory in directories:
        for path in [directory] if "://" in directory else find_datasets(directory):
            dataset = open_dataset(path)
            found.setdefault(dataset.path, dataset)
    return list(found.values())


def overlap(
    pretrain: Annotated[
        list[str], typer.Argument(metavar="PRETRAIN", help="Data sets to clean; a folder with splits means train.")
    ],
    downstream: Annotated[
        list[str],
        typer.Option(_WITH, metavar="DOWNSTREAM...", help="Data sets to keep apart from; a folder means all splits."),
    ],
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for the list and the exclusion file.")] = Path(
        "overlap"
    ),
    rmsd: Annotated[float, typer.Option(help="Å; near duplicates lie within this after the best alignment.")] = 0.1,
    as_json: Annotated[bool, typer.Option("--json", help="Print figures as JSON.")] = False,
) -> None:
    """Find structures that two data sets share, exactly or nearly, and write a list and an exclusion file.

    Molecules are compared over rotations, translations and order of atoms (mirror images differ), crystals over cells
    as well.

    Example: jmp-data overlap shards/ani1x shards/transition1x --with shards/qm9 shards/spice --out overlap
    """
    from jmp_data.overlap import OverlapSettings, count_reads, find_overlap, open_sides, summarize, write_overlap

    left, right, dropped = open_sides(pretrain, downstream)
    for dataset in dropped:
        err.print(f"note: {dataset.path}: is on both sides; not compared with itself", markup=False)
    if not right:
        raise ManifestError("--with names nothing but data sets of the other side; give downstream data")
    settings = OverlapSettings(near=rmsd)
    with progress("overlap", count_reads(left, right, settings), "structures") as advance:
        found = find_overlap(left, right, settings, progress=advance)
    files = write_overlap(found, out_dir)
    summary = summarize(found)
    if as_json:
        print_json(summary | {"files": {what: str(path) for what, path in files.items()}})
        return
    _print_overlap(summary, files)


def _print_overlap(summary: dict[str, Any], files: dict[str, Path]) -> None:
    sizes = {
        f"{entry['dataset']}/{entry['split']}": entry["structures"] for entry in summary["left"] + summary["right"]
    }
    counts = ("left_exact", "left_near", "right_exact", "right_near")
    rows = [
        [pair["left"], f"{sizes[pair['left']]:,}", pair["right"], f"{sizes[pair['right']]:,}"]
        + [f"{pair[name]:,}" for name in counts]
        for pair in summary["pairs"]
    ]
    columns = ["pre-training", "structures", "downstream", "structures", "exact", "near", "d. exact", "d. near"]
    thresholds = summary["thresholds"]
    title = f"Duplicates: exact ≤ {thresholds['exact']:g} Å, near ≤ {thresholds['near']:g} Å after alignment"
    print_table(title, columns, rows)
    for pair in summary["pairs"]:
        if pair["unresolved"]:
            err.print(
                f"note: {pair['left']}: {pair['unresolved']} structures have more look-alikes in {pair['right']} than "
                "were tried, and no match among those",
                markup=False,
            )
    for entry in summary["left"]:
        out.print(f"{entry['dataset']}/{entry['split']}: {entry['excluded']:,} to leave out", markup=False)
    out.print(f"list: {files['matches']}; exclude with jmp-data mix --exclude {files['exclusions']}", markup=False)
