"""A user's own files as a source: planned, split and converted like any published data set.

Planning looks at the files, settles every guess and divides the records; a part carries the settled choices and its
rows as plain values, so that a worker repeats no guess.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jmp_data.errors import ManifestError
from jmp_data.own_data.formats import READERS
from jmp_data.own_data.inspection import DataFile, Inspection, has_files, inspect_data, join_table, open_table
from jmp_data.own_data.labels import Gathered, Resolved, convert_records
from jmp_data.own_data.manifest import OwnManifest, load_own_manifest
from jmp_data.own_data.records import Rows, Unreadable
from jmp_data.own_data.resolve import Choices, resolve
from jmp_data.own_data.split_choice import Division, divide
from jmp_data.own_data.units import factor_to_stored, normalise_unit
from jmp_data.schema import Schema
from jmp_data.schema.units import CODATA_2014, ConstantSet
from jmp_data.sources.facts import SourceFacts
from jmp_data.sources.protocol import Item, Part, Quarantined, SplitPlan
from jmp_data.sources.splits import index_digest

RECORDS_PER_PART = 20_000
FILES_PER_PART = 1_000
_RECORDS_PER_BLOCK = 512

Array = npt.NDArray[Any]


class OwnData:
    """The data set that a YAML manifest describes.

    Args:
        path: the manifest.
        constants: what hartree, bohr and kcal/mol are worth.
    """

    def __init__(self, path: Path, *, constants: ConstantSet = CODATA_2014) -> None:
        self.path = path
        self.constants = constants
        self.loaded = load_own_manifest(path)
        self.manifest = self.loaded.manifest
        self.name = self.manifest.name

    @property
    def schema(self) -> Schema:
        """The columns, as the files beside the manifest give them."""
        return self.look(self.home).choices.resolved.schema

    @property
    def required(self) -> tuple[str, ...]:
        """Labels without which a structure is set aside, as the files beside the manifest give them."""
        return self.look(self.home).choices.resolved.required

    @property
    def home(self) -> Path:
        """The manifest's own folder."""
        return self.path.absolute().parent

    def raw_folder(self, raw: Path) -> Path:
        """The folder that files are relative to: the manifest's own where they are there, else `raw`."""
        return self.home if has_files(self.manifest, self.home) or not has_files(self.manifest, raw) else raw

    def look(self, raw: Path) -> Settled:
        """A look at the files with every choice settled; remembered as long as no file changes."""
        try:
            return _settle(self.path, self.loaded.sha256, raw, inspect_data(self.manifest, raw))
        except ManifestError as error:
            raise ManifestError(f"{self.path}: {error}") from error

    def splits(self, raw: Path) -> tuple[str, ...]:
        """Splits that get at least one record."""
        return tuple(name for name, rows in self.look(raw).division.splits.items() if len(rows))

    def plan(self, raw: Path, split: str) -> SplitPlan:
        """Parts of one split, records in the order of the files, with a note for every guess."""
        settled = self.look(raw)
        splits = settled.division.splits
        if split not in splits or len(splits[split]) == 0:
            there = ", ".join(name for name, rows in splits.items() if len(rows))
            raise ManifestError(f"{self.path}: no split {split!r}; there are {there}")
        rows, resolved = splits[split], settled.choices.resolved
        settings = {"manifest": self.manifest.digest, "resolved": resolved.to_json()}
        parts = _pack(split, settled.inspection.files, rows, settings, self._table_files())
        stated = (
            f"splits: {settled.division.rule}: {len(rows)} of {settled.inspection.count} records; "
            f"SHA-256 of their numbers {index_digest(rows)}"
        )
        notes = (*map(str, (*settled.choices.statements, *settled.division.statements)), stated)
        return SplitPlan(split, tuple(parts), notes, resolved.schema, resolved.required)

    def read(self, raw: Path, part: Part) -> Iterator[Item]:
        """The records of a part, converted; what cannot be read or does not fit is set aside."""
        settings, pieces = part.selection
        if settings["manifest"] != self.manifest.digest:
            raise ManifestError(f"{self.path}: changed since the build was planned; run the build again")
        resolved = Resolved.from_json(settings["resolved"])
        data_files = part.files[len(self._table_files()) :]
        table = open_table(self.manifest.table, raw, data_files)
        gathered: list[Gathered] = []
        for (format, *selection), name in zip(pieces, data_files, strict=True):
            path = raw / name
            for found in READERS[format].read(path, Rows.from_selection(selection)):
                outcome = join_table(found, path, table)
                source_id = f"{name}#{outcome.label}"
                if isinstance(outcome, Unreadable):
                    yield _set_aside(outcome, source_id)
                    continue
                gathered.append(Gathered(source_id, outcome))
                if len(gathered) == _RECORDS_PER_BLOCK:
                    yield from convert_records(gathered, resolved, self.constants)
                    gathered = []
        yield from convert_records(gathered, resolved, self.constants)

    def _table_files(self) -> tuple[str, ...]:
        """The table of targets is a raw file of every part."""
        return () if self.manifest.table is None else (self.manifest.table.file,)


@dataclass(frozen=True, slots=True, eq=False)
class Settled:
    """What a build needs to know, worked out once.

    Attributes:
        inspection: of the files.
        choices: how records become columns.
        division: which record goes to which split.
    """

    inspection: Inspection
    choices: Choices
    division: Division


@lru_cache(maxsize=8)
def _settle(path: Path, sha256: str, raw: Path, inspection: Inspection) -> Settled:
    """Inspections are the same object as long as the files are the same; a changed manifest has another digest."""
    loaded = load_own_manifest(path)
    if loaded.sha256 != sha256:
        raise ManifestError("changed while it was read; run the same command again")
    choices = resolve(loaded.manifest, inspection)
    return Settled(inspection, choices, divide(loaded.manifest, inspection, raw, choices.force_sign))


def _pack(
    split: str, files: Sequence[DataFile], rows: Array, settings: dict[str, Any], table: tuple[str, ...]
) -> Iterator[Part]:
    """Parts of consecutive rows; a large file becomes several parts, small files share one."""
    names: list[str] = []
    pieces: list[list[Any]] = []
    records = 0
    for file, some in _rows_by_file(files, rows):
        if names and (records + len(some) > RECORDS_PER_PART or len(names) == FILES_PER_PART):
            yield Part(split, (*table, *names), (settings, pieces), records)
            names, pieces, records = [], [], 0
        names.append(file.name)
        pieces.append([file.format, *Rows.of(some, file.index).to_selection()])
        records += len(some)
    if names:
        yield Part(split, (*table, *names), (settings, pieces), records)


def _rows_by_file(files: Sequence[DataFile], rows: Array) -> Iterator[tuple[DataFile, Array]]:
    """The rows within each file, in stretches of at most one part."""
    ends = np.cumsum([file.index.count for file in files])
    for file, end in zip(files, ends.tolist(), strict=True):
        first = end - file.index.count
        mine = rows[np.searchsorted(rows, first) : np.searchsorted(rows, end)] - first
        for start in range(0, len(mine), RECORDS_PER_PART):
            yield file, mine[start : start + RECORDS_PER_PART]


def _set_aside(outcome: Unreadable, source_id: str) -> Quarantined:
    message = f"{source_id}: {outcome.message.removeprefix('the record: ')}"
    return Quarantined(source_id, outcome.reason, message, outcome.text, outcome.damaged_file)


def own_facts(path: Path) -> SourceFacts:
    """Provenance of a user's own data set.

    Args:
        path: its manifest.
    """
    loaded = load_own_manifest(path)
    manifest = loaded.manifest
    return SourceFacts(
        manifest=path.name,
        manifest_sha256=loaded.sha256,
        licence=manifest.licence,
        citation=manifest.citation,
        level_of_theory=manifest.level_of_theory,
        energy_kind=manifest.energy_kind,
        published=_published_references(manifest),
        trust=manifest.trust,
    )


def _published_references(manifest: OwnManifest) -> dict[str, Any]:
    """Given energies of the elements in eV; their unit is that of the energies and must be declared for them."""
    if not manifest.references:
        return {}
    factor = factor_to_stored(normalise_unit(manifest.units.energy.removesuffix("/atom")), CODATA_2014)
    return {"linear_reference": {symbol: value * factor for symbol, value in manifest.references.items()}}
