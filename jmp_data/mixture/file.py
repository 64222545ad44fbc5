"""The mixture file: one YAML that names the data sets, their selections and the rule, and remembers what they held."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from jmp_data.errors import ManifestError, MissingFileError
from jmp_data.mixture.mixture import Member, Mixture
from jmp_data.mixture.rule import MixingRule
from jmp_data.mixture.selection import RowSelection
from jmp_data.mixture.subset import Subset, read_index_list, select_rows

if TYPE_CHECKING:
    from jmp_data.shards.dataset import ShardDataset

FILE_VERSION = 1


class MemberEntry(BaseModel):
    """One data set in the file."""

    model_config = ConfigDict(extra="forbid")

    path: str
    """Folder (relative to the file) or URL of one split."""
    structures: int
    """Structures of the data set when the mixture was made, before any selection."""
    fingerprint: str
    """Content digest of the data set when the mixture was made."""
    first: int | None = None
    fraction: float | None = None
    seed: int = 0
    include: str | None = None
    """File with the structures that may take part, relative to the mixture file."""
    exclude: str | None = None
    """File with the structures that may not."""
    selection: str = "all"
    """Digest of the selection; "all" without one."""


class MixtureEntry(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid")

    version: int
    temperature: float | None = None
    weights: dict[str, float] | None = None
    repeats: dict[str, float] | None = None
    datasets: dict[str, MemberEntry]


def write_mixture(mixture: Mixture, path: Path) -> Path:
    """See `Mixture.save`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    entry = MixtureEntry(
        version=FILE_VERSION,
        temperature=mixture.rule.temperature,
        weights=None if mixture.rule.weights is None else dict(mixture.rule.weights),
        repeats=None if mixture.rule.repeats is None else dict(mixture.rule.repeats),
        datasets={member.name: _entry(member, path) for member in mixture.members},
    )
    text = yaml.safe_dump(entry.model_dump(exclude_none=True, exclude_defaults=True), sort_keys=False)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text)
    temporary.replace(path)
    return path


def _entry(member: Member, path: Path) -> MemberEntry:
    selection = member.selection
    lists = {}
    for kind, rows in (("include", selection.include), ("exclude", selection.exclude)):
        if rows is not None:
            file = path.with_name(f"{path.stem}.{member.name.replace(':', '-').replace('/', '-')}.{kind}.npy")
            np.save(file, rows)
            lists[kind] = file.name
    return MemberEntry(
        path=_written_path(member.dataset, member.name, path.parent),
        structures=len(member.dataset),
        fingerprint=member.dataset.fingerprint,
        first=selection.first,
        fraction=selection.fraction,
        seed=selection.seed,
        selection=selection.fingerprint,
        **lists,
    )


def _written_path(dataset: ShardDataset, name: str, folder: Path) -> str:
    path = str(getattr(dataset, "path", "") or "")
    if not path:
        raise ManifestError(f"data set {name} has no path, so the mixture cannot be saved; write it as shards first")
    if "://" in path:
        return path
    near = folder.absolute().parent
    if not Path(path).absolute().is_relative_to(near):
        return path
    return Path(os.path.relpath(path, folder)).as_posix()


def read_mixture(path: Path) -> Mixture:
    """See `Mixture.load`."""
    entry = _parse(path)
    datasets = {name: _open(path, name, member) for name, member in entry.datasets.items()}
    selections = {name: _selection(path, name, datasets[name], member) for name, member in entry.datasets.items()}
    rule = MixingRule(temperature=entry.temperature, weights=entry.weights, repeats=entry.repeats)
    return Mixture.from_selections(datasets, selections, rule)


def _parse(path: Path) -> MixtureEntry:
    try:
        loaded: Any = yaml.safe_load(path.read_text())
    except FileNotFoundError as error:
        raise ManifestError(f"{path}: no such mixture file; jmp-data mix writes one") from error
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: not a YAML file: {str(error).splitlines()[0]}") from error
    if not isinstance(loaded, dict) or "datasets" not in loaded:
        raise ManifestError(f"{path}: not a mixture file (no 'datasets'); jmp-data mix writes one")
    if loaded.get("version", FILE_VERSION) > FILE_VERSION:
        raise ManifestError(f"{path}: mixture format {loaded['version']} is newer than this code; upgrade jmp-data")
    try:
        return MixtureEntry.model_validate(loaded)
    except ValidationError as error:
        first = error.errors()[0]
        raise ManifestError(f"{path}: {'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from error


def _open(path: Path, name: str, entry: MemberEntry) -> ShardDataset:
    from jmp_data.shards.dataset import open_dataset

    where = entry.path if "://" in entry.path else str(path.parent / entry.path)
    try:
        dataset = open_dataset(where)
    except MissingFileError as error:
        raise ManifestError(f"{path}: data set {name} is missing: {error}") from error
    if dataset.fingerprint != entry.fingerprint:
        raise ManifestError(
            f"{path}: data set {name} at {where} has changed since the mixture was made: it held {entry.structures} "
            f"structures with digest {entry.fingerprint[:12]}, now {len(dataset)} with {dataset.fingerprint[:12]}; "
            "make the mixture again with jmp-data mix"
        )
    return dataset


def _selection(path: Path, name: str, dataset: ShardDataset, entry: MemberEntry) -> RowSelection:
    lists = {
        kind: None if file is None else read_index_list(path.parent / file, name)
        for kind, file in (("include", entry.include), ("exclude", entry.exclude))
    }
    subset = Subset(first=entry.first, fraction=entry.fraction, seed=entry.seed)
    selection = select_rows(dataset, subset=subset, include=lists["include"], exclude=lists["exclude"], name=name)
    if selection.fingerprint != entry.selection:
        raise ManifestError(
            f"{path}: the subset or the index lists of data set {name} are not those that the mixture was made with; "
            "make the mixture again with jmp-data mix"
        )
    return selection
