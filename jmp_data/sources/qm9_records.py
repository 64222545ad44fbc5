"""One molecule of QM9 from its text: the published `dsgdb9nsd` files, and the SDF and CSV pair of MoleculeNet."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from ase.data import atomic_numbers

from jmp_data.errors import RawFileError

Array = npt.NDArray[Any]

PROPERTIES = ("A", "B", "C", "mu", "alpha", "homo", "lumo", "gap", "r2", "zpve", "U0", "U", "H", "G", "cv")
"""Scalars of both flavours, in the order of the published files."""
ATOMISATION = ("U0_atom", "U_atom", "H_atom", "G_atom")
"""Scalars that only the CSV has."""

_CSV_NAMES = {"u0": "U0", "u298": "U", "h298": "H", "g298": "G"} | {
    "u0_atom": "U0_atom",
    "u298_atom": "U_atom",
    "h298_atom": "H_atom",
    "g298_atom": "G_atom",
}
_MOLECULE_ID = re.compile(r"gdb_(\d+)")
_LINES_BELOW_ATOMS = 3  # frequencies, SMILES, InChI
_SDF_HEADER = 4


@dataclass(frozen=True, slots=True, eq=False)
class Molecule:
    """One molecule in the units of its file.

    Attributes:
        index: 1-based number in GDB-9.
        atomic_numbers: (natoms,) uint8.
        positions: (natoms, 3), Å.
        properties: (19,) `PROPERTIES` then `ATOMISATION`; NaN where the flavour has none.
        charges: (natoms,) Mulliken charges, e; NaN where the flavour has none.
    """

    index: int
    atomic_numbers: Array
    positions: Array
    properties: Array
    charges: Array


def parse_xyz(text: str, index: int) -> Molecule:
    """Read one `dsgdb9nsd_NNNNNN.xyz`.

    Args:
        text: the file; numbers may be written as `7.9254*^-6`.
        index: what its name says.

    Raises:
        ValueError: the text is not in the published layout; the message says where.
    """
    lines = text.replace("*^", "e").rstrip("\n").split("\n")
    natoms = int(lines[0])
    if len(lines) < natoms + 2 + _LINES_BELOW_ATOMS:
        raise ValueError(f"{len(lines)} lines, expected {natoms + 2 + _LINES_BELOW_ATOMS} for {natoms} atoms")
    tag, number, *values = lines[1].split()
    if tag != "gdb" or int(number) != index:
        raise ValueError(f"line 2 belongs to molecule {tag} {number}, not to {index}")
    if len(values) != len(PROPERTIES):
        raise ValueError(f"line 2 has {len(values)} properties, expected {len(PROPERTIES)}")
    rows = [line.split() for line in lines[2 : natoms + 2]]
    for number_of_line, row in enumerate(rows, 3):
        if len(row) != 5:
            raise ValueError(f"line {number_of_line} has {len(row)} columns, expected 5")
    numbers = np.array([[float(word) for word in row[1:]] for row in rows])
    properties = [float(value) for value in values] + [np.nan] * len(ATOMISATION)
    elements = _elements([row[0] for row in rows])
    return Molecule(index, elements, numbers[:, :3], np.array(properties), numbers[:, 3])


def parse_molblock(lines: Sequence[str], index: int, properties: Array) -> Molecule:
    """Read the atoms of one V2000 record.

    Args:
        lines: the record, from its name on.
        index: number of the molecule.
        properties: (19,) as of `Molecule`.

    Raises:
        ValueError: the record is no V2000 molecule.
    """
    if len(lines) < _SDF_HEADER or "V2000" not in lines[3]:
        raise ValueError("is no V2000 record")
    natoms = int(lines[3][:3])
    rows = lines[_SDF_HEADER : _SDF_HEADER + natoms]
    if len(rows) != natoms:
        raise ValueError(f"has {len(rows)} atom lines, expected {natoms}")
    positions = np.array([[float(row[0:10]), float(row[10:20]), float(row[20:30])] for row in rows])
    elements = _elements([row[31:34].strip() for row in rows])
    return Molecule(index, elements, positions.reshape(-1, 3), properties, np.full(natoms, np.nan))


def read_sdf_records(file: IO[str]) -> Iterator[list[str]]:
    """The lines of each record of an SDF file; what follows the last `$$$$` counts only if it is not blank."""
    record: list[str] = []
    for line in file:
        if line.startswith("$$$$"):
            yield record
            record = []
        else:
            record.append(line.rstrip("\n"))
    if any(line.strip() for line in record):
        yield record


def read_property_table(path: Path) -> tuple[Array, Array]:
    """Read `gdb9.sdf.csv`.

    Returns:
        indices: (n,) int64 numbers of the molecules, in the order of the file.
        properties: (n, 19) as of `Molecule`, energies in hartree, atomisation energies in kcal/mol.

    Raises:
        RawFileError: columns are missing (copies with only SMILES go by the same name), or a row cannot be read.
    """
    with path.open(newline="") as file:
        rows = csv.reader(file)
        header = [_CSV_NAMES.get(name.strip().lower(), name.strip()) for name in next(rows, [])]
        missing = [name for name in ("mol_id", *PROPERTIES, *ATOMISATION) if name not in header]
        if missing:
            raise RawFileError(
                f"{path}: has no column {', '.join(missing)}; it has {', '.join(header)}. "
                "Get gdb9.sdf.csv from MoleculeNet's qm9.zip"
            )
        molecule = header.index("mol_id")
        columns = [header.index(name) for name in (*PROPERTIES, *ATOMISATION)]
        indices, values = [], []
        for line, row in enumerate(rows, 2):
            match = _MOLECULE_ID.fullmatch(row[molecule].strip()) if len(row) == len(header) else None
            try:
                values.append([float(row[column]) for column in columns] if match else [])
            except ValueError as error:
                raise RawFileError(f"{path}: line {line}: {error}; get the file again") from None
            if match is None:
                raise RawFileError(f"{path}: line {line} is not a row of {len(header)} values; get the file again")
            indices.append(int(match[1]))
    return np.array(indices, np.int64), np.array(values).reshape(len(indices), len(columns))


def molecule_id(name: str) -> int | None:
    """Number of a molecule from the name of its SDF record, such as `gdb_21`."""
    match = _MOLECULE_ID.fullmatch(name.strip())
    return int(match[1]) if match else None


def read_uncharacterized(path: Path) -> frozenset[int]:
    """Numbers of the molecules that QM9's authors could not map back to their SMILES, from `uncharacterized.txt`.

    The table lies between the second and the third ruler of equal signs; the numbers are 1-based, as in the file names.

    Raises:
        RawFileError: the rulers are missing, or a line between them does not begin with a number.
    """
    lines = path.read_text().splitlines()
    rulers = [number for number, line in enumerate(lines) if line.startswith("=====")]
    if len(rulers) < 3:
        raise RawFileError(f"{path}: has no table between rulers of '='; get uncharacterized.txt again")
    found = []
    for number in range(rulers[1] + 1, rulers[2]):
        words = lines[number].split()
        if not words:
            continue
        if not words[0].isdigit():
            raise RawFileError(f"{path}: line {number + 1} begins with {words[0]!r}, expected the number of a molecule")
        found.append(int(words[0]))
    return frozenset(found)


def _elements(symbols: Sequence[str]) -> Array:
    try:
        return np.array([atomic_numbers[symbol] for symbol in symbols], np.uint8)
    except KeyError as error:
        raise ValueError(f"there is no element {error}") from None
