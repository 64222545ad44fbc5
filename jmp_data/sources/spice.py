"""SPICE: one HDF5 file, a group for each molecule or cluster, everything in atomic units, the gradient for the force.

A part is one of the published subsets (`spice:dipeptides`), told by the `subset` text of each group. Versions 1 and 2
have the same layout. Of the many labels these are kept: energies, forces, dipole, quadrupole and MBIS charges; bond
orders are per pair of atoms and higher atomic multipoles are left out. Where a group lacks one, it is NaN.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from jmp_data.errors import MissingFileError, RawFileError
from jmp_data.schema import Block, Field, Schema
from jmp_data.schema.fields import ENERGY, FORCES
from jmp_data.schema.units import CODATA_2014, ConstantSet, convert
from jmp_data.sources.hdf5_frames import open_hdf5, subgroups
from jmp_data.sources.protocol import Item, Part, SplitPlan
from jmp_data.sources.raw_files import relative, walk_folders
from jmp_data.sources.splits import REFERENCE, RowRange, choose_rows, cut, plan_rows, shuffled

Array = npt.NDArray[Any]

SUBSETS = {
    "dipeptides": "SPICE Dipeptides",
    "solvated_amino_acids": "SPICE Solvated Amino Acids",
    "pubchem": "SPICE PubChem",
    "solvated_pubchem": "SPICE Solvated PubChem",
    "des370k": "SPICE DES370K",
    "des_monomers": "SPICE DES Monomers",
    "ion_pairs": "SPICE Ion Pairs",
    "amino_acid_ligand": "SPICE Amino Acid Ligand",
    "water_clusters": "SPICE Water Clusters",
}
"""Part → how the `subset` text of its groups begins; what follows are set numbers and versions."""

FORMATION_ENERGY = Field(
    "formation_energy",
    "structure",
    "float64",
    (),
    "eV",
    "extensive",
    "energy minus that of the isolated ions and atoms",
)
_FIELDS = (
    ENERGY,
    FORCES,
    FORMATION_ENERGY,
    Field("dipole", "structure", "float32", (3,), "e·Å", "intensive", "SCF dipole moment"),
    Field("quadrupole", "structure", "float32", (3, 3), "e·Å²", "intensive", "SCF quadrupole moment, with trace"),
    Field("mbis_charges", "atom", "float32", (), "e", "intensive", "MBIS atomic charges"),
)
_REQUIRED_KEYS = ("subset", "atomic_numbers", "conformations", "dft_total_energy")
_UNITS = {
    "conformations": "bohr",
    "dft_total_energy": "hartree",
    "dft_total_gradient": "hartree/bohr",
    "formation_energy": "hartree",
}
_ROWS_PER_PART = 50_000
_STRUCTURES_PER_BLOCK = 2048
_FILE = re.compile(r"SPICE-\d+(\.\d+)*\.hdf5", re.IGNORECASE)
_WITHDRAWN = "SPICE-2.0.0.hdf5"
_OTHER = "other"  # sets that somebody added to a copy


class Spice:
    """One subset of SPICE at ωB97M-D3BJ/def2-TZVPPD, total energies.

    Splits: `train`, `val` and `test` as the reference made them, over single conformations, so that conformations of
    one molecule lie in several; on request `molecule_train`, `molecule_val` and `molecule_test`, which keep them
    together.
    """

    parts = tuple(SUBSETS)
    required: tuple[str, ...] = ("energy", "forces")
    schema = Schema(_FIELDS)

    def __init__(self, *, part: str, constants: ConstantSet = CODATA_2014) -> None:
        self.name = f"spice:{part}"
        self.subset = part
        self.constants = constants.for_source("spice")

    def splits(self, raw: Path) -> tuple[str, ...]:
        """The reference's splits that are not empty."""
        splits = _reference_splits(self._molecules(self._find(raw)))
        return tuple(name for name, rows in splits.items() if len(rows))

    def plan(self, raw: Path, split: str) -> SplitPlan:
        """Parts of one split: conformations in the order of the file, molecules in alphabetic order."""
        path = self._find(raw)
        molecules = self._molecules(path)
        rule, rows = self._choose(molecules, split)
        notes = ["SPICE 2.0.0 holds exploded molecules that 2.0.1 left out"] if path.name == _WITHDRAWN else []
        others = _scan_file(path).get(_OTHER)
        if others:
            notes.append(f"{len(others.names)} groups, {others.names[0]} first, belong to no subset of SPICE")
        return plan_rows(
            split,
            (relative(path, raw),),
            rows,
            rule=rule,
            count=molecules.num_frames,
            rows_per_part=_ROWS_PER_PART,
            notes=notes,
        )

    def read(self, raw: Path, part: Part) -> Iterator[Item]:
        """Conformations of the part, in the order of the file."""
        path = raw / part.files[0]
        molecules = self._molecules(path)
        _, rows = self._choose(molecules, part.split)
        chosen = RowRange.of(part).take(rows, molecules.num_frames, str(path))
        owners = np.searchsorted(molecules.ptr, chosen, side="right") - 1
        waiting = _Waiting(self.schema)
        with open_hdf5(path) as file:
            groups, first = np.unique(owners, return_index=True)
            for owner, rows_of_group in zip(groups.tolist(), np.split(chosen, first[1:]), strict=True):
                frames = rows_of_group - molecules.ptr[owner]
                name = molecules.names[owner]
                try:
                    columns = self._read_group(file[name], frames)
                except (OSError, KeyError) as error:
                    raise RawFileError(f"{path}: group {name} cannot be read ({error}); get the file again") from error
                waiting.add(columns, [f"{path.name}#{name}/{frame}".encode() for frame in frames.tolist()])
                if len(waiting) >= _STRUCTURES_PER_BLOCK:
                    yield waiting.pop()
        if len(waiting):
            yield waiting.pop()

    def _find(self, raw: Path) -> Path:
        return find_spice(raw, self.subset)

    def _molecules(self, path: Path) -> Molecules:
        found = _scan_file(path)
        if self.subset not in found:
            raise MissingFileError(f"{path}: has no molecules of {self.name}; it has {', '.join(found) or 'none'}")
        return found[self.subset]

    def _choose(self, molecules: Molecules, split: str) -> tuple[str, Array]:
        splits = _reference_splits(molecules)
        if split.startswith("molecule_"):
            by_molecule = _molecule_splits(molecules)
            return f"{REFERENCE} over molecules", choose_rows(by_molecule, split, self.name)
        return REFERENCE, np.sort(choose_rows(splits, split, self.name))

    def _read_group(self, group: h5py.Group, frames: Array) -> dict[str, Array]:
        """Columns of some conformations of one molecule."""
        numbers = group["atomic_numbers"][:]
        shape = (len(frames), len(numbers))

        def read(key: str, *, from_unit: str, to_unit: str, tail: tuple[int, ...]) -> Array:
            if key not in group:
                return np.full(tail, np.nan)
            return convert(group[key][:][frames].reshape(tail), from_unit, to_unit, self.constants)

        atoms = shape[0] * shape[1]
        gradient = read("dft_total_gradient", from_unit="hartree/bohr", to_unit="eV/Å", tail=(atoms, 3))
        return {
            "natoms": np.full(shape[0], shape[1]),
            "atomic_numbers": np.tile(numbers, shape[0]),
            "positions": read("conformations", from_unit="bohr", to_unit="Å", tail=(atoms, 3)),
            "energy": read("dft_total_energy", from_unit="hartree", to_unit="eV", tail=(shape[0],)),
            "forces": -gradient,  # the file holds the gradient, and a force is minus it
            "formation_energy": read("formation_energy", from_unit="hartree", to_unit="eV", tail=(shape[0],)),
            "dipole": read("scf_dipole", from_unit="e·bohr", to_unit="e·Å", tail=(shape[0], 3)),
            "quadrupole": read("scf_quadrupole", from_unit="e·bohr²", to_unit="e·Å²", tail=(shape[0], 3, 3)),
            "mbis_charges": read("mbis_charges", from_unit="e", to_unit="e", tail=(atoms,)),
        }


@dataclass(frozen=True, slots=True)
class Molecules:
    """Groups of one subset in alphabetic order.

    Attributes:
        names: of the groups.
        ptr: (n + 1,) conformations before each group.
    """

    names: tuple[str, ...]
    ptr: Array

    @property
    def num_frames(self) -> int:
        """Conformations of all groups."""
        return int(self.ptr[-1])


@dataclass(slots=True)
class _Waiting:
    """Columns of several groups until they make a block."""

    schema: Schema
    groups: list[dict[str, Array]] = field(default_factory=list)
    source_ids: list[bytes] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.source_ids)

    def add(self, columns: dict[str, Array], source_ids: list[bytes]) -> None:
        self.groups.append(columns)
        self.source_ids += source_ids

    def pop(self) -> Block:
        columns = {name: np.concatenate([group[name] for group in self.groups]) for name in self.groups[0]}
        block = Block.from_columns(self.schema, columns.pop("natoms"), np.array(self.source_ids), columns)
        self.groups, self.source_ids = [], []
        return block


def find_spice(raw: Path, subset: str) -> Path:
    """The file that holds a subset: a release of SPICE, or one subset alone as the reference downloaded it.

    Raises:
        MissingFileError: there is none.
        RawFileError: there are several.
    """
    found: dict[Path, Path] = {}
    for folder, _, files in walk_folders(raw):
        for name in files:
            if _FILE.fullmatch(name) or name.lower() == f"{subset}.h5":
                found.setdefault((folder / name).resolve(), folder / name)
    if not found:
        raise MissingFileError(
            f"spice:{subset}: no SPICE-<version>.hdf5 below {raw}; run `jmp-data download spice` or put a release there"
        )
    if len(found) > 1:
        paths = " and ".join(map(str, sorted(found.values())))
        raise RawFileError(f"spice:{subset}: found {paths}; which one is meant? Point --raw at the folder of one")
    return next(iter(found.values()))


def _scan_file(path: Path) -> dict[str, Molecules]:
    status = path.stat()
    return _scan(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4)
def _scan(path: Path, size: int, modified: int) -> dict[str, Molecules]:
    """Subset → its molecules. A release has 114,000 groups, so a file with the same stamp is not scanned again."""
    del size, modified
    names: dict[str, list[str]] = {}
    counts: dict[str, list[int]] = {}
    with open_hdf5(path) as file:
        for name, group in subgroups(file, path):
            subset = _subset_of(group, path)
            names.setdefault(subset, []).append(name)
            counts.setdefault(subset, []).append(_check_group(group, path))
    return {
        subset: Molecules(tuple(names[subset]), np.concatenate([[0], np.cumsum(counts[subset])])) for subset in names
    }


def _subset_of(group: h5py.Group, path: Path) -> str:
    """The part that a group belongs to."""
    if "subset" not in group:
        raise RawFileError(f"{path}: group {group.name} has no subset; it has {', '.join(group) or 'nothing'}")
    text = np.asarray(group["subset"][()]).reshape(-1)[0]
    label = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
    for part, beginning in SUBSETS.items():
        if label.lower().startswith(beginning.lower()):
            return part
    return _OTHER


def _check_group(group: h5py.Group, path: Path) -> int:
    """Number of conformations, from shapes alone.

    Raises:
        RawFileError: a data set is missing, has another shape, or states other units than SPICE's.
    """
    missing = [key for key in _REQUIRED_KEYS if key not in group]
    if missing:
        raise RawFileError(f"{path}: group {group.name} lacks {', '.join(missing)}; get the file again")
    numbers, positions, energy = (group[key].shape for key in _REQUIRED_KEYS[1:])
    if len(positions) != 3 or positions[1:] != (*numbers, 3) or energy != positions[:1]:
        raise RawFileError(
            f"{path}: group {group.name} has shapes that do not fit together: atomic_numbers {numbers}, "
            f"conformations {positions}, dft_total_energy {energy}"
        )
    for key, unit in _UNITS.items():
        stated = group[key].attrs.get("units", unit) if key in group else unit
        stated = stated.decode() if isinstance(stated, bytes) else stated
        if stated != unit:
            raise RawFileError(f"{path}: group {group.name} states {key} in {stated}, SPICE is published in {unit}")
    return int(positions[0])


def _reference_splits(molecules: Molecules) -> dict[str, Array]:
    count = molecules.num_frames
    return cut(shuffled(count), {"train": int(0.8 * count), "val": int(0.1 * count), "test": -1})


def _molecule_splits(molecules: Molecules) -> dict[str, Array]:
    """All conformations of a molecule in one split: a tenth of the molecules to val, a tenth to test."""
    count = len(molecules.names)
    held_out = count // 10
    sizes = {"train": count - 2 * held_out, "val": held_out, "test": -1}
    owners = np.repeat(np.arange(count), np.diff(molecules.ptr))
    return {
        f"molecule_{name}": np.flatnonzero(np.isin(owners, rows)) for name, rows in cut(shuffled(count), sizes).items()
    }
