"""`jmp-data demo-raw`: raw files without a download."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from .console import out, print_json, print_table, progress


def register(app: typer.Typer) -> None:
    """Add the verbs of this module."""
    app.command(name="demo-raw")(demo_raw)


def demo_raw(
    directory: Annotated[Path, typer.Argument(help="Folder to write to.")],
    seed: Annotated[int, typer.Option(help="Seed of geometries and splits.")] = 0,
    scale: Annotated[
        float, typer.Option(min=0.01, help="Size, relative to the default few thousand structures.")
    ] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write miniatures of five archives in their published layouts, labelled with real physics.

    Example: jmp-data demo-raw raw
    """
    from jmp_data.demo import write_demo_raw

    counted: dict[str, int] = {}
    with progress("demo data", None, "structures") as advance:

        def report(name: str, done: int, total: int) -> None:
            advance(done - counted.get(name, 0), f"{name} {done}/{total}")
            counted[name] = done

        summary = write_demo_raw(directory, seed=seed, scale=scale, progress=report)
    if as_json:
        print_json(dataclasses.asdict(summary))
        return
    rows = [
        [archive.name, split, count, archive.labels, "reused" if archive.reused else ""]
        for archive in summary.archives
        for split, count in archive.structures.items()
    ]
    print_table("Demo archives", ["archive", "split", "structures", "labels", ""], rows)
    out.print(f"written to {directory}", markup=False)
