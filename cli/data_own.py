"""`jmp-data init-manifest`: look at files of one's own and write the YAML that `jmp-data build` takes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from jmp_data.errors import ManifestError

from .console import err, out, print_json, print_table


def register(app: typer.Typer) -> None:
    """Add the verbs of this module."""
    app.command(name="init-manifest")(init_manifest)


def init_manifest(
    files: Annotated[
        list[Path], typer.Argument(help="Data files, folders of them, and at most one CSV table of targets.")
    ],
    output: Annotated[Path, typer.Option("--out", "-o", help="Manifest to write.")] = Path("my.yaml"),
    name: Annotated[str, typer.Option(help="Name of the data set. Default: from the first file.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Look at files, guess formats, keys, units and signs, and write a manifest with the evidence, for you to check.

    Example: jmp-data init-manifest frames.extxyz --out my.yaml
    """
    from jmp_data.own_data import propose_manifest
    from jmp_data.own_data.manifest_text import manifest_text
    from jmp_data.shards.atomic import write_atomic

    if output.suffix not in (".yaml", ".yml"):
        raise ManifestError(f"{output}: a manifest ends in .yaml, or build would not know it for one")
    if output.exists():
        raise ManifestError(f"{output}: exists; give another --out, or delete it")
    proposal = propose_manifest(files, output.absolute().parent, name=name)
    output.absolute().parent.mkdir(parents=True, exist_ok=True)
    write_atomic(output, manifest_text(proposal, output.name).encode())
    if as_json:
        print_json(_as_json(proposal, output))
        return
    _print_found(proposal)
    for statement in (*proposal.choices.statements, *proposal.division.statements):
        err.print(f"{'warning' if statement.kind == 'warning' else 'note'}: {statement}", markup=False)
    out.print(f"written to {output}; check it, then: jmp-data build {output}", markup=False)


def _print_found(proposal: Any) -> None:
    files = proposal.inspection.files
    if len(files) <= 20:
        rows = [[file.name, file.format, f"{file.index.count:,}"] for file in files]
        print_table("Files", ["file", "format", "structures"], rows)
    else:
        counts = Counter(file.format for file in files)
        structures = Counter[str]()
        for file in files:
            structures[file.format] += file.index.count
        rows = [[f"{count:,} files", format, f"{structures[format]:,}"] for format, count in counts.items()]
        print_table("Files", ["files", "format", "structures"], rows)
    labels = [
        [rule.field.name, rule.key, rule.unit, rule.meaning, rule.field.unit, "yes" if rule.required else "no"]
        for rule in proposal.choices.resolved.labels
    ]
    print_table("Labels", ["column", "key in the files", "unit there", "read as", "unit on disk", "required"], labels)
    splits = [[split, f"{len(rows):,}"] for split, rows in proposal.division.splits.items()]
    print_table(f"Splits {proposal.division.rule}", ["split", "structures"], splits)


def _as_json(proposal: Any, output: Path) -> dict[str, Any]:
    said = (*proposal.choices.statements, *proposal.division.statements)
    return {
        "written": str(output),
        "manifest": proposal.manifest.model_dump(mode="json", exclude_none=True),
        "files": [
            {"name": file.name, "format": file.format, "structures": file.index.count}
            for file in proposal.inspection.files
        ],
        "structures": proposal.inspection.count,
        "splits": {split: len(rows) for split, rows in proposal.division.splits.items()},
        "statements": [{"kind": entry.kind, "about": entry.about, "text": entry.text} for entry in said],
    }
