"""Proposes a manifest for files: everything that a build would guess, written out for the user to check."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jmp_data.errors import ManifestError, MissingFileError
from jmp_data.own_data.inspection import Inspection, inspect_data
from jmp_data.own_data.manifest import OwnManifest, parse_own_manifest
from jmp_data.own_data.resolve import Choices, resolve
from jmp_data.own_data.split_choice import Division, divide
from jmp_data.own_data.survey import KeyFacts
from jmp_data.sources import source_names

TABLE_SUFFIX = ".csv"
_MANY_FILES = 8
_NOT_TARGETS = ("natoms", "n_atoms", "id", "sid", "fid", "ctime", "mtime", "calc_id", "ionic_step")


@dataclass(frozen=True, slots=True, eq=False)
class Proposal:
    """A manifest with nothing left open, and what it was made from.

    Attributes:
        manifest: the proposal.
        inspection: of the files.
        choices: with the statements of guesses.
        division: of the records among splits.
        further: targets that could be added, by name.
    """

    manifest: OwnManifest
    inspection: Inspection
    choices: Choices
    division: Division
    further: dict[str, dict[str, str]]


def propose_manifest(
    files: Sequence[Path], folder: Path, *, name: str = "", wanted: Sequence[str] = (), **declared: Any
) -> Proposal:
    """Look at files and propose a manifest.

    Args:
        files: data files, folders of them, and at most one CSV table of targets.
        folder: where the manifest will lie; its file names are relative to that.
        name: of the data set; made from the first file's name by default.
        wanted: names of further targets to take; none beside energies and forces by default, else all.
        declared: entries of the manifest that are known and not to be guessed.

    Raises:
        MissingFileError: a file is not there.
        RawFileError: a file cannot be read.
        ManifestError: several tables, or a declared entry is wrong.
    """
    data, table = _sort_files(files)
    start = {
        "name": name or name_of(files[0]),
        "files": [_relative(path, folder) for path in data],
        **({"table": {"file": _relative(table, folder)}} if table else {}),
        **declared,
    }
    manifest = parse_own_manifest(start)
    inspection = inspect_data(manifest, folder)
    further = _find_targets(manifest, resolve(manifest, inspection), inspection)
    if wanted:
        taken = {name: entry for name, entry in further.items() if name in wanted}
    else:
        taken = {} if _has_labels(manifest, inspection) else further
    if taken and not manifest.targets:
        manifest = parse_own_manifest({**start, "targets": taken})
        further = {name: entry for name, entry in further.items() if name not in taken}
    choices = resolve(manifest, inspection)
    division = divide(manifest, inspection, folder, choices.force_sign)
    settled = parse_own_manifest(_write_out(manifest, inspection, choices, division, folder))
    return Proposal(settled, inspection, choices, division, further)


def name_of(path: Path) -> str:
    """A name for a data set, from a file or folder."""
    words = re.split(r"[^A-Za-z0-9]+", path.absolute().name.split(".")[0])
    name = "_".join(word for word in words if word) or "data"
    return f"my_{name}" if name in source_names() else name


def _sort_files(files: Sequence[Path]) -> tuple[list[Path], Path | None]:
    """Data files, folders opened, and the table among them."""
    found: list[Path] = []
    for path in files:
        if not path.exists():
            raise MissingFileError(f"{path}: no such file")
        found += sorted(entry for entry in path.iterdir() if entry.is_file()) if path.is_dir() else [path]
    hidden = (".", "_")
    tables = [path for path in found if path.suffix.lower() == TABLE_SUFFIX]
    data = [path for path in found if path not in tables and path.name[0] not in hidden and path.name != "lock.mdb"]
    if len(tables) > 1:
        raise ManifestError(f"{tables[1]}: is a second table of targets beside {tables[0]}; give one")
    if not data:
        raise ManifestError(f"{files[0]}: no data files among what is given")
    return data, tables[0] if tables else None


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path.absolute(), folder.absolute())).as_posix()


def _has_labels(manifest: OwnManifest, inspection: Inspection) -> bool:
    """Whether there are energies and forces, and no table: then further targets are an extra."""
    names = {rule.field.name for rule in resolve(manifest, inspection).resolved.labels}
    return {"energy", "forces"} <= names and inspection.table is None


def _find_targets(manifest: OwnManifest, choices: Choices, inspection: Inspection) -> dict[str, dict[str, str]]:
    """Numbers that differ from structure to structure and are no label yet, by the name they would get."""
    used = {rule.key for rule in choices.resolved.labels}
    columns = None if inspection.table is None else set(inspection.table.columns)
    found: dict[str, dict[str, str]] = {}
    for key, fact in choices.facts.items():
        if key in used or not _is_target(fact) or (columns is not None and key not in columns):
            continue
        name = re.sub(r"[^A-Za-z0-9_]+", "_", fact.name).strip("_")
        name = name if name[:1].isalpha() else f"target_{name}"
        name = f"{name}_target" if name in _TAKEN else name
        entry = {"key": key if key != name else "", "unit": inspection.stated.by_key.get(key, "")}
        found.setdefault(name, {field: value for field, value in entry.items() if value})
    return found


_TAKEN = {"energy", "forces", "stress", "tags", "fixed", "positions", "cell", "pbc", "atomic_numbers", "natoms", "pos"}


def _is_target(fact: KeyFacts) -> bool:
    return fact.numeric and fact.varies and fact.shape is not None and fact.name.lower() not in _NOT_TARGETS


def _write_out(
    manifest: OwnManifest, inspection: Inspection, choices: Choices, division: Division, folder: Path
) -> dict[str, Any]:
    """The manifest with every choice in place of `auto`."""
    rules = {rule.field.name: rule for rule in choices.resolved.labels}
    energy, forces, stress = (rules.get(name) for name in ("energy", "forces", "stress"))
    units = {"positions": choices.resolved.length_unit}
    if energy is not None:
        units["energy"] = f"{energy.unit}/atom" if energy.per_atom else energy.unit
    units |= {name: rules[name].unit for name in ("forces", "stress") if name in rules}
    formats = {file.format for file in inspection.files}
    written = manifest.model_dump(mode="json")
    given = division.chosen.by == "given"
    written |= {
        "files": [] if given else _shorten(manifest.files, folder),
        "format": formats.pop() if len(formats) == 1 else "auto",
        "units": units,
        "keys": {name: rules[name].key if name in rules else "none" for name in ("energy", "forces", "stress")},
        "force_sign": "gradient" if forces is not None and forces.meaning == "gradient" else "force",
        "stress_sign": stress.meaning if stress is not None else "auto",
        "energy_kind": choices.energy_kind,
        "required": list(choices.resolved.required),
        "tags": choices.resolved.tags,
        "splits": division.chosen.model_dump(mode="json"),
    }
    if inspection.table is not None and manifest.table is not None:
        written["table"] = {"file": manifest.table.file, "id": inspection.table.id_column}
    return written


def _shorten(names: Sequence[str], folder: Path) -> list[str]:
    """A pattern in place of many names, where it stands for exactly these."""
    if len(names) < _MANY_FILES:
        return list(names)
    parents = {Path(name).parent.as_posix() for name in names}
    suffixes = {Path(name).suffix for name in names}
    patterns = sorted(
        f"{glob.escape(parent)}/*{suffix}".removeprefix("./") for parent in parents for suffix in suffixes
    )
    matched = {name for pattern in patterns for name in glob.glob(pattern, root_dir=folder)}  # noqa: PTH207
    return patterns if matched == set(names) else list(names)
