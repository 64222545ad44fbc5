"""OC22 S2EF-total: LMDB files of pickled PyTorch Geometric objects, read without executing a pickle.

Files of several generations circulate: labels are called `y` and `force`, or `energy` and `forces` since June 2024
(fairchem#726), ids are numbers or tensors, and older files have no `pbc`, which then is periodic along all three axes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from jmp_data.errors import ManifestError, MissingFileError, RawFileError, UnsafePickleError
from jmp_data.raw.lmdb_records import LmdbRecords, open_lmdb
from jmp_data.raw.restricted_pickle import load_record
from jmp_data.raw.safe_archive import extract
from jmp_data.schema import Block, Schema
from jmp_data.schema.structure import MAX_ATOMIC_NUMBER
from jmp_data.schema.units import CODATA_2014, ConstantSet
from jmp_data.sources.protocol import Item, Part, Quarantined, SplitPlan
from jmp_data.sources.raw_files import relative, walk_folders

Array = npt.NDArray[Any]

FOLDER = "s2ef-total"
ARCHIVE = "s2ef_total_train_val_test_lmdbs.tar.gz"
SPLITS = ("train", "val_id", "val_ood")
MAX_STRUCTURES_PER_PART = 30_000
RECORDS_PER_BLOCK = 2_500

_PERIODIC = np.ones(3, bool)
_ENERGY_NAMES = ("y", "energy")
_FORCE_NAMES = ("force", "forces")


class OC22:
    """The S2EF-total training and validation sets of Open Catalyst 2022, total energies in eV."""

    name = "oc22"
    required: tuple[str, ...] = ("energy", "forces")
    schema = Schema()

    def __init__(self, *, constants: ConstantSet = CODATA_2014) -> None:
        self.constants = constants  # the files are in eV and Å already

    def splits(self, raw: Path) -> tuple[str, ...]:
        """The labelled splits that are there; the test sets have no labels and are not among them.

        Where only the published archive is there, it is unpacked beside itself first.
        """
        found = _find_splits(raw, unpack=True)
        return tuple(split for split in SPLITS if split in found)

    def plan(self, raw: Path, split: str) -> SplitPlan:
        """Parts of a split (`val` stands for `val_id`): ranges of records of each LMDB file."""
        split = "val_id" if split == "val" else split
        if split not in SPLITS:
            unlabelled = " (test sets are published without labels)" if split.startswith("test") else ""
            raise ManifestError(f"oc22 has no split {split!r}{unlabelled}; choose from {', '.join(SPLITS)}")
        found = _find_splits(raw, unpack=True)
        if split not in found:
            raise MissingFileError(f"oc22: no {FOLDER}/{split}/*.lmdb below {raw}; it holds {', '.join(found)}")
        parts: list[Part] = []
        for path in found[split]:
            with open_lmdb(path) as records:
                count = len(records)
            for start in range(0, count, MAX_STRUCTURES_PER_PART):
                stop = min(start + MAX_STRUCTURES_PER_PART, count)
                parts.append(Part(split, (relative(path, raw),), (start, stop), stop - start))
        return SplitPlan(split, tuple(parts), ("as published",))

    def read(self, raw: Path, part: Part) -> Iterator[Item]:
        """Records in key order; one that cannot be decoded or lacks a label is quarantined."""
        start, stop = part.selection
        file = f"{part.split}/{PurePosixPath(part.files[0]).name}"
        with open_lmdb(raw / part.files[0]) as records:
            for first in range(start, stop, RECORDS_PER_BLOCK):
                gathered = _Gathered()
                for key in range(first, min(first + RECORDS_PER_BLOCK, stop)):
                    problem = _read_record(records, file, key, gathered)
                    if problem:
                        yield problem
                yield from gathered.block(self.schema)


def _find_splits(raw: Path, *, unpack: bool) -> dict[str, list[Path]]:
    """Split → its LMDB files."""
    found: dict[str, list[Path]] = {}
    archives: list[Path] = []
    for folder, _, files in walk_folders(raw):
        archives += [folder / name for name in files if name == ARCHIVE]
        databases = [folder / name for name in files if name.endswith(".lmdb")]
        published = folder.absolute()  # the raw folder itself may be one, given as a relative path
        split = published.name
        if published.parent.name != FOLDER or not databases:
            continue
        if split in found:
            raise RawFileError(f"oc22: found {found[split][0].parent} and {folder}; remove one, or point --raw at one")
        found[split] = databases
    if not any(split in found for split in SPLITS):
        if archives and unpack:
            extract(archives[0], archives[0].parent)
            return _find_splits(raw, unpack=False)
        raise MissingFileError(
            f"oc22: no {FOLDER}/train, val_id or val_ood folder with *.lmdb files, nor {ARCHIVE}, below {raw}; "
            "run `jmp-data download oc22`"
        )
    return found


@dataclass(frozen=True, slots=True)
class _Record:
    """One decoded record, shapes checked, values not."""

    source_id: str
    atomic_numbers: Array
    positions: Array
    cell: Array
    pbc: Array
    tags: Array
    fixed: Array
    energy: float
    forces: Array


@dataclass(slots=True)
class _Gathered:
    """Records of one block on their way into columns."""

    records: list[_Record] = field(default_factory=list)

    def block(self, schema: Schema) -> Iterator[Item]:
        """One block; records with atomic numbers or tags that do not fit their type are quarantined before."""
        if not self.records:
            return
        natoms = np.array([len(r.atomic_numbers) for r in self.records])
        numbers = np.concatenate([r.atomic_numbers for r in self.records])
        tags = np.concatenate([r.tags for r in self.records])
        if not _fit_their_types(numbers, tags):
            bad = np.array([not _fit_their_types(r.atomic_numbers, r.tags) for r in self.records])
            yield from (_quarantine_values(self.records[row]) for row in np.flatnonzero(bad).tolist())
            yield from _Gathered([r for r, is_bad in zip(self.records, bad, strict=True) if not is_bad]).block(schema)
            return
        yield Block.from_columns(
            schema,
            natoms,
            [r.source_id for r in self.records],
            {
                "atomic_numbers": numbers,
                "positions": np.concatenate([r.positions for r in self.records]),
                "cell": np.stack([r.cell for r in self.records]),
                "pbc": np.stack([r.pbc for r in self.records]),
                "tags": tags,
                "fixed": np.concatenate([r.fixed for r in self.records]) != 0,
                "energy": np.array([r.energy for r in self.records]),
                "forces": np.concatenate([r.forces for r in self.records]),
            },
        )


def _fit_their_types(numbers: Array, tags: Array) -> bool:
    """Whether casting changes nothing: both are stored as floats or wide integers, of which many would wrap."""
    return _are_integers(numbers, 1, MAX_ATOMIC_NUMBER) and _are_integers(tags, 0, 255)


def _are_integers(values: Array, low: int, high: int) -> bool:
    if values.size == 0:
        return True
    whole = values.dtype.kind in "iub" or bool((values == np.rint(values)).all())
    return whole and bool(values.min() >= low and values.max() <= high)


def _read_record(records: LmdbRecords, file: str, key: int, gathered: _Gathered) -> Quarantined | None:
    source_id = f"{file}#{key}"
    where = f"{file}: record {key}"  # quarantine files must not depend on where the raw folder lies
    try:
        payload = records.read(key)
    except RawFileError as error:
        return Quarantined(source_id, "missing_record", str(error).replace(str(records.path), file), damaged_file=True)
    try:
        values = load_record(payload, where=where)
    except UnsafePickleError as error:
        return Quarantined(source_id, "unsafe_pickle", str(error), payload.hex())
    except RawFileError as error:
        return Quarantined(source_id, "damaged_record", str(error), payload.hex())
    source_id = f"{source_id}:{_identity(values, 'sid')}/{_identity(values, 'fid')}"
    try:
        gathered.records.append(_check_record(values, source_id))
    except ValueError as error:
        return Quarantined(source_id, "malformed_record", f"{where}: {error}", json.dumps(values, default=_as_json))
    return None


def _check_record(values: Mapping[str, Any], source_id: str) -> _Record:
    numbers = np.asarray(_value(values, "atomic_numbers")).reshape(-1)
    vectors = (len(numbers), 3)
    has_pbc = values.get("pbc") is not None
    return _Record(
        source_id,
        numbers,
        _array(values, vectors, "pos"),
        _array(values, (3, 3), "cell"),
        _array(values, (3,), "pbc") != 0 if has_pbc else _PERIODIC,
        _array(values, vectors[:1], "tags"),
        _array(values, vectors[:1], "fixed"),
        _scalar(_value(values, *_ENERGY_NAMES), "energy"),
        _array(values, vectors, *_FORCE_NAMES),
    )


def _value(values: Mapping[str, Any], *names: str) -> Any:
    for name in names:
        if values.get(name) is not None:
            return values[name]
    raise ValueError(f"no {' or '.join(names)} (a test set has no labels); it has {', '.join(values)}")


def _array(values: Mapping[str, Any], shape: tuple[int, ...], *names: str) -> Array:
    array = np.asarray(_value(values, *names))
    if array.shape != shape and array.size == math.prod(shape):
        array = array.reshape(shape)
    if array.dtype.kind not in "fiub" or array.shape != shape:
        raise ValueError(f"{names[0]} is {array.dtype}{array.shape}, expected numbers of shape {shape}")
    return array


def _scalar(value: Any, name: str) -> float:
    if isinstance(value, float):
        return value
    array = np.asarray(value)
    if array.dtype.kind not in "fiu" or array.size != 1:
        raise ValueError(f"{name} is {array.dtype}{array.shape}, expected one number")
    return float(array.reshape(()))


def _identity(values: Mapping[str, Any], name: str) -> Any:
    value = values.get(name)
    return value.item() if isinstance(value, np.ndarray) and value.size == 1 else value


def _quarantine_values(record: _Record) -> Quarantined:
    message = f"{record.source_id}: atomic numbers must be integers from 1 to {MAX_ATOMIC_NUMBER}, tags 0, 1 or 2"
    values = {name: getattr(record, name).tolist() for name in ("atomic_numbers", "tags", "positions", "cell")}
    return Quarantined(record.source_id, "atomic_number", message, json.dumps({**values, "energy": record.energy}))


def _as_json(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else repr(value)
