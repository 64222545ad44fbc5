"""The two forms in which QMOF lies on a disk: two JSON lists, or a table and a folder (or zip) of CIF files."""

from __future__ import annotations

import csv
import math
import re
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from jmp_data.errors import MissingFileError, RawFileError
from jmp_data.sources.cif_p1 import parse_cif
from jmp_data.sources.json_elements import list_elements, open_json
from jmp_data.sources.pymatgen_json import Crystal, StructureError, parse_json, parse_structure
from jmp_data.sources.raw_files import find_file, walk_folders

Array = npt.NDArray[Any]

PROPERTY_LIST, STRUCTURE_LIST = "qmof.json", "qmof_structure_data.json"
TABLE, CIF_ARCHIVE = "qmof.csv", "relaxed_structures.zip"
SITE_PROPERTIES = {"ddec_charges": "pbe_ddec_charge", "cm5_charges": "pbe_cm5_charge", "magmoms": "pbe_magmom"}
"""Target of each atom → published site property."""

_CIF = re.compile(r"(?:.*/)?(qmof-[0-9a-f]+)\.cif")
_ID = re.compile(rb'"qmof_id"\s*:\s*"([^"]*)"')


@dataclass(frozen=True, slots=True)
class Properties:
    """Properties of one entry.

    Attributes:
        qmof_id: identity.
        values: flattened published name → number, without those that are null.
    """

    qmof_id: str
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class FoundStructure:
    """One structure as far as it could be read.

    Attributes:
        qmof_id: identity.
        source_id: raw file and record.
        raw: its text.
        crystal: None where it could not be read.
        sites: target of each atom → (natoms,).
        reason: short reason code where it could not be read.
        message: what is wrong with it.
    """

    qmof_id: str
    source_id: str
    raw: bytes
    crystal: Crystal | None = None
    sites: Mapping[str, Array] = field(default_factory=dict)
    reason: str = ""
    message: str = ""

    def text(self) -> str:
        """The record as text."""
        return self.raw.decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class JsonLists:
    """`qmof.json` and `qmof_structure_data.json`.

    Attributes:
        property_file: the first.
        structure_file: the second.
        per_structure: whether each structure is a file of its own.
    """

    property_file: Path
    structure_file: Path
    per_structure: bool = False

    def properties(self) -> tuple[Properties, ...]:
        """All entries with their properties, in the order of the file."""
        return _properties(self.property_file, *_stamp(self.property_file))

    def structure_ids(self) -> frozenset[str]:
        """Identities of all structures."""
        return _listed_ids(self.structure_file, *_stamp(self.structure_file))

    def files_of(self, wanted: Collection[str]) -> tuple[Path, ...]:
        """Raw files that hold the given entries."""
        del wanted
        return self.property_file, self.structure_file

    def structures(self, wanted: Collection[str]) -> Iterator[FoundStructure]:
        """The given structures, in the order of the file."""
        for text in _elements(self.structure_file):
            qmof_id = _element_id(text, self.structure_file)
            if qmof_id in wanted:
                yield _read_entry(qmof_id, f"{self.structure_file.name}#{qmof_id}", text)


@dataclass(frozen=True, slots=True)
class CifFiles:
    """`qmof.csv` and CIF files, in `relaxed_structures.zip` or beside each other.

    Attributes:
        property_file: the table.
        archive: the zip; None where the files are unpacked.
        unpacked: identity → unpacked file.
    """

    property_file: Path
    archive: Path | None
    unpacked: Mapping[str, Path]

    @property
    def per_structure(self) -> bool:
        """Whether each structure is a file of its own."""
        return self.archive is None

    def properties(self) -> tuple[Properties, ...]:
        """All entries with their properties, in the order of the table."""
        return _properties(self.property_file, *_stamp(self.property_file))

    def structure_ids(self) -> frozenset[str]:
        """Identities of all structures."""
        if self.archive is None:
            return frozenset(self.unpacked)
        with _open_zip(self.archive) as archive:
            return frozenset(_members(archive, self.archive))

    def files_of(self, wanted: Collection[str]) -> tuple[Path, ...]:
        """Raw files that hold the given entries."""
        if self.archive is not None:
            return self.property_file, self.archive
        return self.property_file, *(path for qmof_id, path in sorted(self.unpacked.items()) if qmof_id in wanted)

    def structures(self, wanted: Collection[str]) -> Iterator[FoundStructure]:
        """The given structures, in alphabetic order."""
        if self.archive is None:
            for qmof_id, path in sorted(self.unpacked.items()):
                if qmof_id in wanted:
                    yield _read_cif(qmof_id, path.name, path.read_bytes())
            return
        with _open_zip(self.archive) as archive:
            for qmof_id, name in sorted(_members(archive, self.archive).items()):
                if qmof_id in wanted:
                    try:
                        text = archive.read(name)
                    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                        raise RawFileError(f"{self.archive}: {name}: {error}; get the file again") from error
                    yield _read_cif(qmof_id, f"{self.archive.name}#{qmof_id}.cif", text)


Flavour: TypeAlias = JsonLists | CifFiles


def find_flavour(raw: Path) -> Flavour:
    """The form of QMOF below a folder: the JSON lists, which have more digits, else table and CIF files.

    Raises:
        MissingFileError: there is neither.
    """
    structures = _find_if_there(raw, STRUCTURE_LIST)
    if structures is not None:
        return JsonLists(find_file(raw, [PROPERTY_LIST], "qmof"), structures)
    table = _find_if_there(raw, TABLE)
    archive = _find_if_there(raw, CIF_ARCHIVE)
    unpacked = {} if archive else _find_cifs(raw)
    if table is None or (archive is None and not unpacked):
        raise MissingFileError(
            f"qmof: neither {PROPERTY_LIST} with {STRUCTURE_LIST} nor {TABLE} with {CIF_ARCHIVE} below {raw}; "
            "run `jmp-data download qmof`, or unpack qmof_database.zip there"
        )
    return CifFiles(table, archive, unpacked)


def _find_if_there(raw: Path, name: str) -> Path | None:
    try:
        return find_file(raw, [name], "qmof")
    except MissingFileError:
        return None


def _find_cifs(raw: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for folder, _, names in walk_folders(raw):
        for name in names:
            match = _CIF.fullmatch(name)
            if match:
                if match[1] in found:
                    raise RawFileError(f"qmof: found {found[match[1]]} and {folder / name}; which one is meant?")
                found[match[1]] = folder / name
    return found


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=4)
def _properties(path: Path, size: int, modified: int) -> tuple[Properties, ...]:
    """Entries of a property file; read once as long as its stamp is the same."""
    del size, modified
    entries = tuple(_read_table(path) if path.suffix == ".csv" else _read_list(path))
    _check_once([entry.qmof_id for entry in entries], path)
    if not entries:
        raise RawFileError(f"{path}: has no entries; get the file again")
    return entries


def _read_table(path: Path) -> Iterator[Properties]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        names = rows.fieldnames or []
        if "qmof_id" not in names or "outputs.pbe.bandgap" not in names:
            raise RawFileError(f"{path}: has no columns qmof_id and outputs.pbe.bandgap; it has {', '.join(names[:5])}")
        for row in rows:
            yield Properties(row["qmof_id"], dict(_finite((name, row[name]) for name in names)))


def _read_list(path: Path) -> Iterator[Properties]:
    for text in _elements(path):
        entry = parse_json(text)
        if not isinstance(entry, dict) or "qmof_id" not in entry or "outputs" not in entry:
            raise RawFileError(
                f"{path}: has an entry without qmof_id and outputs; is it {STRUCTURE_LIST} under another name?"
            )
        groups = {f"outputs.{theory}": values for theory, values in entry["outputs"].items()}
        groups["info"] = entry.get("info")
        numbers = (
            (f"{group}.{name}", value)
            for group, values in groups.items()
            if isinstance(values, dict)
            for name, value in values.items()
        )
        yield Properties(entry["qmof_id"], dict(_finite(numbers)))


def _finite(values: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, float]]:
    """The entries that are finite numbers, or text of such."""
    for name, value in values:
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            try:
                number = float(value)
            except ValueError:
                continue
            if math.isfinite(number):
                yield name, number


@lru_cache(maxsize=4)
def _listed_ids(path: Path, size: int, modified: int) -> frozenset[str]:
    """Identities in the structure list, of up to a gigabyte: read once as long as its stamp is the same."""
    del size, modified
    ids = [_element_id(text, path) for text in _elements(path)]
    _check_once(ids, path)
    return frozenset(ids)


def _check_once(ids: list[str], path: Path) -> None:
    if len(set(ids)) < len(ids):
        repeated = next(qmof_id for qmof_id in ids if ids.count(qmof_id) > 1)
        raise RawFileError(f"{path}: holds {repeated} more than once; get the file again")


def _elements(path: Path) -> Iterator[bytes]:
    """Text of each element of a file that is one list."""
    with open_json(path) as file:
        begun = file.read(1 << 16).lstrip()
        if not begun.startswith(b"["):
            raise RawFileError(f"{path}: is no JSON list; this is another file than its name says")
        yield from list_elements(file, path, begun[1:])


def _element_id(text: bytes, path: Path) -> str:
    match = _ID.search(text)
    if match is None:
        raise RawFileError(f"{path}: has an entry without qmof_id: {text[:80]!r}")
    return match[1].decode()


def _read_entry(qmof_id: str, source_id: str, text: bytes) -> FoundStructure:
    try:
        entry = parse_json(text)
        structure = entry.get("structure")
        crystal = parse_structure(structure if isinstance(structure, dict) else {})
    except StructureError as error:
        return FoundStructure(qmof_id, source_id, text, reason=error.reason, message=str(error))
    except ValueError as error:
        return FoundStructure(qmof_id, source_id, text, reason="malformed_record", message=f"is no JSON ({error})")
    sites = {}
    for target, name in SITE_PROPERTIES.items():
        values = [(site.get("properties") or {}).get(name) for site in structure["sites"]]
        sites[target] = np.array([np.nan if value is None else value for value in values], np.float64)
    return FoundStructure(qmof_id, source_id, text, crystal, sites)


def _read_cif(qmof_id: str, source_id: str, text: bytes) -> FoundStructure:
    try:
        crystal, columns = parse_cif(text.decode("utf-8", "replace"))
    except StructureError as error:
        return FoundStructure(qmof_id, source_id, text, reason=error.reason, message=str(error))
    sites = {target: columns[name] for target, name in SITE_PROPERTIES.items() if name in columns}
    return FoundStructure(qmof_id, source_id, text, crystal, sites)


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file; it was there when the work was planned") from None
    except zipfile.BadZipFile as error:
        raise RawFileError(f"{path}: not a whole zip archive ({error}); get the file again") from error


def _members(archive: zipfile.ZipFile, path: Path) -> dict[str, str]:
    """Identity → name in the archive."""
    names = [name for name in archive.namelist() if _CIF.fullmatch(name) and "__MACOSX" not in name]
    matches = {match[1]: name for name in names if (match := _CIF.fullmatch(name))}
    if len(matches) < len(names):
        raise RawFileError(f"{path}: holds a structure more than once; get the file again")
    return matches
