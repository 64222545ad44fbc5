"""`jmp-data list`, `info`, `inspect`, `export`: look at sources and at what was built."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from jmp_data.manifests import load_manifest
from jmp_data.shards import ShardDataset, open_dataset
from jmp_data.shards.integrity import find_datasets
from jmp_data.sources import source_names

from .console import out, print_facts, print_json, print_table, progress


def register(app: typer.Typer) -> None:
    """Add the verbs of this module."""
    app.command(name="list")(list_sources)
    app.command()(info)
    app.command()(inspect)
    app.command()(export)


def list_sources(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the data sets that can be built.

    Example: jmp-data list
    """
    manifests = [load_manifest(name) for name in source_names()]
    if as_json:
        print_json([{"name": m.name, "title": m.title, "licence": m.licence} for m in manifests])
        return
    print_table("Sources", ["name", "what", "licence"], [[m.name, m.title, m.licence] for m in manifests])


def info(
    source: Annotated[str, typer.Argument(help="Source name.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Show a source: files, sizes, units, splits, licence, citation.

    Example: jmp-data info ani1x
    """
    manifest = load_manifest(source)
    if as_json:
        print_json(manifest.model_dump(mode="json"))
        return
    for name, value in manifest.model_dump(mode="json", exclude_none=True).items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            columns = list(dict.fromkeys(key for entry in value for key in entry))
            print_table(name, columns, [[entry.get(key, "") for key in columns] for entry in value])
        elif isinstance(value, dict):
            out.print(f"{name}:", markup=False)
            print_facts({f"  {key}": entry for key, entry in value.items()})
        else:
            out.print(f"{name}: {value}", markup=False)


def _overview(dataset: ShardDataset) -> dict[str, Any]:
    manifest = dataset.manifest
    nbytes = sum(digest.bytes for shard in manifest.shards for digest in shard.files.values())
    return {
        "data set": f"{manifest.name}/{manifest.split}",
        "path": dataset.path,
        "structures": manifest.num_structures,
        "atoms": manifest.num_atoms,
        "records_in": manifest.records_in,
        "quarantined": dict(manifest.quarantined),
        "skipped": dict(manifest.skipped),
        "flagged": dict(manifest.flagged),
        "format": f"{manifest.format} v{manifest.format_version}",
        "shards": len(manifest.shards),
        "blocks": dataset.num_blocks,
        "MB": round(nbytes / 1e6, 3),
        "columns": list(dataset.schema.names),
        "units": dict(manifest.units),
        "statistics": dict(manifest.statistics),
        "references": dict(manifest.references),
        "raw_files": list(manifest.raw_files),
        "provenance": dict(manifest.provenance),
        "content_sha256": manifest.content_sha256,
    }


def _structure_facts(dataset: ShardDataset, index: int) -> dict[str, Any]:
    structure = dataset[index]
    facts: dict[str, Any] = {
        "source_id": structure.source_id,
        "natoms": structure.natoms,
        "formula": structure.to_ase().get_chemical_formula(),
        "pbc": structure.pbc,
        "cell": structure.cell,
        "energy": structure.energy,
        "atomic_numbers": structure.atomic_numbers,
        "positions": structure.positions,
        "forces": structure.forces,
        "tags": structure.tags,
        "fixed": structure.fixed,
        **structure.targets,
    }
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in facts.items()}


def inspect(
    directory: Annotated[Path, typer.Argument(help="A data set, or a folder of data sets.")],
    index: Annotated[int | None, typer.Argument(help="Show this structure, of one data set.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a data set holds, or one of its structures.

    Example: jmp-data inspect shards/ani1x/train 7
    """
    if index is not None:
        dataset = open_dataset(directory)
        if not -len(dataset) <= index < len(dataset):
            raise typer.BadParameter(f"{directory} holds {len(dataset)} structures, 0 to {len(dataset) - 1}")
        facts = _structure_facts(dataset, index)
        print_json(facts) if as_json else print_facts(facts)
        return
    overviews = [_overview(open_dataset(path)) for path in find_datasets(directory)]
    if as_json:
        print_json(overviews if len(overviews) > 1 else overviews[0])
    elif len(overviews) == 1:
        print_facts(overviews[0])
    else:
        columns = ["data set", "structures", "atoms", "format", "shards", "MB"]
        print_table("Data sets", columns, [[overview[name] for name in columns] for overview in overviews])


def export(
    directory: Annotated[Path, typer.Argument(help="A data set.")],
    target: Annotated[Path, typer.Argument(help="File to write; ASE chooses the format by its name.")],
    start: Annotated[int, typer.Option(help="First structure.")] = 0,
    stop: Annotated[int | None, typer.Option(help="One past the last structure.")] = None,
) -> None:
    """Write structures to a file that ASE and others read (extxyz, traj, db ...).

    Example: jmp-data export shards/ani1x/train ani1x.extxyz --stop 1000
    """
    from jmp_data.shards.export import export_structures

    dataset = open_dataset(directory)
    rows = range(len(dataset))[start:stop]
    with progress(f"export {target}", len(rows), "structures") as advance:
        export_structures(dataset, rows, target, lambda count: advance(count, ""))
    out.print(f"{target}: {len(rows)} structures", markup=False)
