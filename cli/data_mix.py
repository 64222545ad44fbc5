"""`jmp-data mix`: data sets and a temperature → mixture file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jmp_data.errors import ManifestError
from jmp_data.shards.integrity import find_datasets
from jmp_data.shards.manifest import MANIFEST_NAME

from .console import out, print_json, print_table


def register(app: typer.Typer) -> None:
    """Add the verbs of this module."""
    app.command()(mix)


def _train_folder(directory: Path) -> Path:
    """The data set at a folder, or its train split."""
    if "://" in str(directory) or (directory / MANIFEST_NAME).exists():
        return directory
    if (directory / "train" / MANIFEST_NAME).exists():
        return directory / "train"
    return find_datasets(directory)[0]


def mix(
    directories: Annotated[
        list[str], typer.Argument(help="Data sets: folders or URLs; a folder with splits means train.")
    ],
    temperature: Annotated[float, typer.Option(min=1e-3, help="1 samples by size, 2 is the paper's choice.")] = 2.0,
    output: Annotated[Path, typer.Option("--out", "-o", help="Mixture file to write.")] = Path("mix.yaml"),
    exclude: Annotated[
        Path | None, typer.Option(help="Structures to leave out: exclude.yaml of jmp-data overlap.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Mix data sets by temperature; prints what one epoch holds.

    Example: jmp-data mix shards/oc20/train shards/ani1x/train --temperature 2 --out mix.yaml
    """
    from jmp_data.mixture import Mixture
    from jmp_data.shards import open_dataset

    datasets: dict[str, str] = {}
    for directory in directories:
        path = directory if "://" in directory else str(_train_folder(Path(directory)))
        name = open_dataset(path).name
        if name in datasets:
            raise ManifestError(f"{path}: data set {name} is in the mixture already ({datasets[name]})")
        datasets[name] = path
    opened = {name: open_dataset(path) for name, path in datasets.items()}
    if exclude is not None:
        from jmp_data.overlap import check_exclusions

        check_exclusions(exclude, opened)
    mixture = Mixture.from_datasets(opened, temperature=temperature, exclusions=exclude)
    mixture.save(output)
    rows = mixture.table()
    if as_json:
        print_json(
            {"mixture": str(output), "temperature": temperature, "epoch_size": mixture.epoch_size, "datasets": rows}
        )
        return
    table = [
        [
            row["dataset"],
            f"{row['structures']:,}",
            f"{row['share']:.4f}",
            f"{row['probability']:.4f}",
            f"{row['repeats']:.4f}",
            f"{row['samples']:,}",
        ]
        for row in rows
    ]
    columns = ["data set", "structures", "share", "probability", "repeats", "structures an epoch"]
    print_table(f"Mixture at T = {temperature:g}", columns, table)
    out.print(f"one epoch: {mixture.epoch_size:,} structures; written to {output}", markup=False)
