"""One self-contained page about some data sets: no scripts, nothing loaded from elsewhere, readable from disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

import jmp_data
from jmp_data.errors import ManifestError
from jmp_data.references.accumulate import NUM_ELEMENTS
from jmp_data.report.axes import compact, plain
from jmp_data.report.charts import draw_charts
from jmp_data.report.page_style import SPLIT_COLORS, STYLE
from jmp_data.report.page_template import PAGE
from jmp_data.report.periodic_table import periodic_table
from jmp_data.report.statistics import SplitStatistics, collect_statistics
from jmp_data.report.structure_picture import color_definitions, draw_structure
from jmp_data.shards import ShardDataset
from jmp_data.shards.assemble import QUARANTINE_FILE
from jmp_data.shards.atomic import write_atomic
from jmp_data.trust.flags import FLAGS_FILE

Progress = Callable[[int, str], None]

_RAW_FILES = 20
_EXAMPLE_BYTES = 1 << 20


def write_report(
    datasets: Sequence[ShardDataset],
    path: Path,
    *,
    overlap: Mapping[str, Any] | None = None,
    progress: Progress = lambda count, note: None,
) -> Path:
    """Write the page.

    Args:
        datasets: splits; those with one data set name become one section.
        path: file to write.
        overlap: summary of a search for duplicates (`jmp_data.overlap.read_summary`), to be shown as a table.
        progress: called with the number of structures read and where.

    Raises:
        ManifestError: there are no data sets.
        ShardError: a block is damaged.
    """
    write_atomic(path, render_report(datasets, overlap=overlap, progress=progress).encode())
    return path


def render_report(
    datasets: Sequence[ShardDataset],
    *,
    overlap: Mapping[str, Any] | None = None,
    progress: Progress = lambda count, note: None,
) -> str:
    """The page as text; see `write_report`."""
    if not datasets:
        raise ManifestError("a report needs at least one data set")
    groups = [list(splits) for _, splits in groupby(sorted(datasets, key=_order), key=lambda d: d.name)]
    collected = [_collect(splits, progress) for splits in groups]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.from_string(PAGE).render(_page(collected) | {"overlap": _overlap(overlap)})


def _collect(splits: Sequence[ShardDataset], progress: Progress) -> list[SplitStatistics]:
    """Statistics of one data set; the references of train are subtracted everywhere, as training would."""
    train = next((split for split in splits if split.split == "train"), None)
    collected = []
    for split in splits:
        where = f"{split.name}/{split.split}"
        collected.append(collect_statistics(split, train, progress=partial(_note, progress, where)))
    return collected


def _note(progress: Progress, where: str, count: int) -> None:
    progress(count, where)


_FIRST: Final = {"train": 0, "val": 1, "test": 2}


def _order(dataset: ShardDataset) -> tuple[str, int, str]:
    return dataset.name, _FIRST.get(dataset.split.split("_")[0], 3), dataset.split


def _page(groups: Sequence[Sequence[SplitStatistics]]) -> dict[str, Any]:
    every = [split for splits in groups for split in splits]
    structures = sum(len(split.dataset) for split in every)
    names = [splits[0].dataset.name for splits in groups]
    elements = sum((split.elements for split in every), np.zeros(NUM_ELEMENTS, np.int64))
    atoms = sum((split.element_atoms for split in every), np.zeros(NUM_ELEMENTS, np.int64))
    quarantined = sum(sum(split.dataset.manifest.quarantined.values()) for split in every)
    shown = (int(number) for split in every for _, structure in split.pictures for number in structure.atomic_numbers)
    tiles = [
        (f"{len(groups)}", "data set" if len(groups) == 1 else "data sets"),
        (f"{len(every)}", "split" if len(every) == 1 else "splits"),
        (_large(structures), "structures"),
        (_large(sum(split.dataset.manifest.num_atoms for split in every)), "atoms"),
        (f"{int((elements > 0).sum())}", "elements"),
        (_large(quarantined), "records in quarantine"),
    ]
    return {
        "title": f"Data report: {', '.join(names)}" if len(names) <= 4 else f"Data report: {len(names)} data sets",
        "lead": "Energies in eV, lengths in Å, forces in eV/Å. Point at a bar or an element to see its numbers.",
        "style": Markup(STYLE),
        "colors": color_definitions(shown),
        "tiles": [{"value": value, "label": label} for value, label in tiles],
        "overview": list(_overview(groups)),
        "all_elements": periodic_table(elements, atoms, structures) if len(groups) > 1 else "",
        "sections": [_section(splits) for splits in groups],
        "footer": f"Written by jmp-data {jmp_data.__version__}.",
    }


def _large(count: int) -> str:
    return f"{count:,}" if count < 10_000_000 else compact(count)


def _anchor(name: str) -> str:
    return "data-" + "".join(c if c.isalnum() else "-" for c in name)


def _bytes_of(dataset: ShardDataset) -> int:
    return sum(digest.bytes for shard in dataset.manifest.shards for digest in shard.files.values())


def _overview(groups: Sequence[Sequence[SplitStatistics]]) -> Iterator[dict[str, Any]]:
    for splits in groups:
        for color, split in enumerate(splits):
            manifest = split.dataset.manifest
            size = _bytes_of(split.dataset)
            yield {
                "first": color == 0,
                "anchor": _anchor(manifest.name),
                "name": manifest.name,
                "split": manifest.split,
                "color": color % SPLIT_COLORS,
                "structures": f"{manifest.num_structures:,}",
                "atoms": f"{manifest.num_atoms:,}",
                "mean": f"{manifest.num_atoms / max(1, manifest.num_structures):.1f}",
                "elements": f"{int((split.elements > 0).sum())}",
                "quarantined": f"{sum(manifest.quarantined.values()):,}",
                "skipped": f"{sum(manifest.skipped.values()):,}",
                "flagged": f"{sum(manifest.flagged.values()):,}",
                "size": _size(size),
                "bytes": f"{size / max(1, manifest.num_structures):,.0f}",
                "format": manifest.format,
            }


def _overlap(summary: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The table of a search for duplicates."""
    if summary is None:
        return None
    sizes = {f"{e['dataset']}/{e['split']}": int(e["structures"]) for e in (*summary["left"], *summary["right"])}
    rows = []
    for pair in summary["pairs"]:
        row: dict[str, str] = {"left": pair["left"], "right": pair["right"]}
        for side in ("left", "right"):
            found = pair[f"{side}_exact"] + pair[f"{side}_near"]
            row |= {f"{side}_{kind}": f"{pair[f'{side}_{kind}']:,}" for kind in ("exact", "near")}
            row[f"{side}_size"] = f"{sizes[pair[side]]:,}"
            row[f"{side}_share"] = f"{100 * found / max(1, sizes[pair[side]]):.2g}%"
            row["tone"] = " warn" if found else ""
        rows.append(row)
    thresholds = summary["thresholds"]
    lead = f"exact within {plain(thresholds['exact'])} Å, near within {plain(thresholds['near'])} Å after alignment"
    return {"lead": lead, "rows": rows}


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"


def _section(splits: Sequence[SplitStatistics]) -> dict[str, Any]:
    first = splits[0]
    manifest = first.dataset.manifest
    elements = sum((split.elements for split in splits), np.zeros(NUM_ELEMENTS, np.int64))
    atoms = sum((split.element_atoms for split in splits), np.zeros(NUM_ELEMENTS, np.int64))
    structures = sum(len(split.dataset) for split in splits)
    exact = all(split.elements_exact for split in splits)
    return {
        "name": manifest.name,
        "anchor": _anchor(manifest.name),
        "summary": f"{structures:,} structures in {len(splits)} split{'s' if len(splits) > 1 else ''}",
        "elements": periodic_table(elements, atoms, structures),
        "elements_note": f"{int((elements > 0).sum())} elements; "
        + ("all structures of all splits counted" if exact else "counted on the sample"),
        "splits": [{"name": split.name, "color": color % SPLIT_COLORS} for color, split in enumerate(splits)],
        "sample_note": _sample_note(splits),
        "charts": draw_charts(splits),
        "pictures": [_picture(first, place, structure) for place, structure in first.pictures],
        "balance": [_balance(split.dataset) for split in splits],
        "reasons": [row for split in splits for row in _reasons(split.dataset)],
        "facts": list(_facts(splits)),
        "columns": [_column(entry) for entry in first.dataset.schema],
        "raw_files": _raw_files(splits)[:_RAW_FILES],
        "raw_count": _raw_count(len(_raw_files(splits))),
    }


def _sample_note(splits: Sequence[SplitStatistics]) -> str:
    sampled = [split for split in splits if not split.sample.everything]
    if not sampled:
        return "from every structure; the first split is filled, the others are outlines; bars are shares of a split"
    counts = ", ".join(f"{s.name} {s.sample.structures:,} of {len(s.dataset):,}" for s in sampled)
    return f"from blocks spread evenly over the data: {counts} structures; bars are shares of a split"


def _picture(split: SplitStatistics, place: int, structure: Any) -> dict[str, Any]:
    formula = structure.to_ase().get_chemical_formula(empirical=False)
    return {
        "figure": draw_structure(structure),
        "formula": _subscripts(formula),
        "natoms": structure.natoms,
        "source_id": structure.source_id,
        "place": f"{split.name} {place:,}",
    }


def _subscripts(formula: str) -> str:
    return formula.translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))


def _balance(dataset: ShardDataset) -> dict[str, Any]:
    manifest = dataset.manifest
    quarantined, skipped = sum(manifest.quarantined.values()), sum(manifest.skipped.values())
    closes = manifest.records_in == manifest.num_structures + quarantined + skipped
    return {
        "split": manifest.split,
        "records": f"{manifest.records_in:,}",
        "structures": f"{manifest.num_structures:,}",
        "quarantined": f"{quarantined:,}",
        "skipped": f"{skipped:,}",
        "closes": closes,
        "verdict": "closes" if closes else "does not close",
    }


def _reasons(dataset: ShardDataset) -> Iterator[dict[str, Any]]:
    manifest = dataset.manifest
    for what, counts, file in (
        ("quarantined", manifest.quarantined, QUARANTINE_FILE),
        ("skipped", manifest.skipped, ""),
        ("flagged, stored", manifest.flagged, FLAGS_FILE),
    ):
        examples = _examples(dataset, file)
        for reason, count in counts.items():
            example = examples.get(reason, "")
            yield {"split": manifest.split, "what": what, "reason": reason, "count": f"{count:,}", "example": example}


def _examples(dataset: ShardDataset, name: str) -> dict[str, str]:
    """The first message of each reason in the first lines of the quarantine, or of the flags."""
    entry = dataset.manifest.files.get(name)
    if entry is None:
        return {}
    payload = dataset.store.read(name, 0, min(entry.bytes, _EXAMPLE_BYTES))
    found: dict[str, str] = {}
    lines = payload.split(b"\n")
    for line in lines if entry.bytes <= _EXAMPLE_BYTES else lines[:-1]:
        if line.strip():
            record = json.loads(line)
            message = str(record.get("message", ""))
            # A quarantined record says itself which one it is.
            text = f"{record['source_id']}: {message}" if name == FLAGS_FILE else message
            found.setdefault(str(record.get("reason", "")), text)
    return found


_NAMED: Final = {
    "licence": "Licence",
    "citation": "Citation",
    "doi": "DOI",
    "level_of_theory": "Level of theory",
    "source": "Source",
    "notes": "Notes",
    "code_version": "Converted by",
    "source_manifest_sha256": "Source manifest",
}


def _facts(splits: Sequence[SplitStatistics]) -> Iterator[dict[str, str]]:
    manifest = splits[0].dataset.manifest
    provenance: Mapping[str, Any] = manifest.provenance
    if not provenance.get("licence"):
        yield {"name": "Licence", "value": "not recorded"}
    for key, label in _NAMED.items():
        value = provenance.get(key)
        if value:
            text = "; ".join(map(str, value)) if isinstance(value, list) else str(value)
            yield {"name": label, "value": f"jmp-data {text}" if key == "code_version" else text}
    yield {"name": "Units", "value": ", ".join(f"{name}: {unit}" for name, unit in manifest.units.items())}
    for kind, references in manifest.references.items():
        numbers = ", ".join(
            f"{name.replace('_', ' ')} {plain(value)}" for name, value in references.items() if isinstance(value, float)
        )
        if numbers:
            yield {"name": f"{kind.capitalize()} constants", "value": numbers}
    for split in splits:
        yield {"name": f"Content of {split.name}", "value": f"{split.dataset.fingerprint} (SHA-256)"}


def _column(entry: Any) -> dict[str, str]:
    shape = " × ".join(map(str, entry.shape))
    return {
        "name": entry.name,
        "level": entry.level,
        "type": f"{entry.dtype} ({shape})" if shape else entry.dtype,
        "unit": entry.unit,
        "kind": entry.kind,
        "description": entry.description,
    }


def _raw_files(splits: Sequence[SplitStatistics]) -> list[dict[str, str]]:
    files = {name: digest for split in splits for name, digest in split.dataset.manifest.raw_files.items()}
    return [
        {"name": name, "bytes": f"{digest.bytes:,}", "sha256": digest.sha256} for name, digest in sorted(files.items())
    ]


def _raw_count(count: int) -> str:
    shown = f", the first {_RAW_FILES} shown" if count > _RAW_FILES else ""
    return f"{count:,} raw file{'' if count == 1 else 's'}{shown}"
