"""What readers hand over: records under the names and in the units of their file, and what could not be read.

A reader knows one file format and nothing about units, splits or columns; everything that needs a judgement (which key
is the energy, in which unit, with which sign) is decided elsewhere, for all formats alike.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One structure as its file has it.

    Attributes:
        row: its place in the file, from 0.
        label: what the file itself calls it: a row number, a database id, a path of groups.
        atomic_numbers: (natoms,) integers.
        positions: (natoms, 3), unit of the file.
        cell: (3, 3), rows are lattice vectors, unit of the file; zeros where there is none.
        pbc: (3,) bool, or None where the file does not say.
        tags: (natoms,) integers, or None where the file has none.
        fixed: (natoms,) bool, or None where the file has no constraints.
        values: everything else by its key.
    """

    row: int
    label: str
    atomic_numbers: Array
    positions: Array
    cell: Array
    pbc: Array | None
    tags: Array | None
    fixed: Array | None
    values: Mapping[str, Any]

    @property
    def natoms(self) -> int:
        """Number of atoms."""
        return len(self.atomic_numbers)


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A record that could not be read.

    Attributes:
        row: its place in the file.
        label: what the file calls it.
        reason: short reason code.
        message: what is wrong, without the file's name.
        text: as much of it as there is.
        damaged_file: the file itself is damaged, not only this record.
        unsafe: it is refused because reading it would mean running code.
    """

    row: int
    label: str
    reason: str
    message: str
    text: str = ""
    damaged_file: bool = False
    unsafe: bool = False


Outcome: TypeAlias = Record | Unreadable


@dataclass(frozen=True, slots=True, eq=False)
class FileIndex:
    """How many records a file holds, and where reading may start.

    Attributes:
        count: records, unreadable ones included.
        seeks: (count,) byte offset of each record in the (unpacked) text; None where the format finds rows itself.
    """

    count: int
    seeks: Array | None = None

    def seek(self, row: int) -> int:
        """Where to start reading for a row."""
        return 0 if self.seeks is None else int(self.seeks[row])


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Some rows of one file.

    Attributes:
        start: first row looked at.
        seek: byte offset of that row, 0 where the format finds rows itself.
        wanted: (n,) bool, which of the rows from `start` on are wanted.
    """

    start: int
    seek: int
    wanted: Array

    @property
    def stop(self) -> int:
        """One past the last row looked at."""
        return self.start + len(self.wanted)

    @property
    def numbers(self) -> list[int]:
        """The wanted rows, ascending."""
        return (self.start + np.flatnonzero(self.wanted)).tolist()

    @classmethod
    def of(cls, rows: Array, index: FileIndex) -> Rows:
        """The given rows, ascending, of a file."""
        start = int(rows[0])
        wanted = np.zeros(int(rows[-1]) - start + 1, bool)
        wanted[rows - start] = True
        return cls(start, index.seek(start), wanted)

    def to_selection(self) -> list[Any]:
        """Plain values for a part: start, number of rows, offset, and a bit mask where some are not wanted."""
        whole = bool(self.wanted.all())
        mask = "" if whole else base64.b64encode(np.packbits(self.wanted).tobytes()).decode()
        return [self.start, len(self.wanted), self.seek, mask]

    @classmethod
    def from_selection(cls, entry: list[Any]) -> Rows:
        """Inverse of `to_selection`."""
        start, length, seek, mask = entry
        if not mask:
            return cls(start, seek, np.ones(length, bool))
        bits = np.frombuffer(base64.b64decode(mask), np.uint8)
        return cls(start, seek, np.unpackbits(bits, count=length).astype(bool))


@dataclass(frozen=True, slots=True)
class StatedUnits:
    """Units that a file states about itself.

    Attributes:
        where: what states them, for people.
        length: of positions and cells; empty where it is not stated.
        by_key: key → unit.
    """

    where: str = ""
    length: str = ""
    by_key: Mapping[str, str] = field(default_factory=dict)


class Reader(Protocol):
    """Reads one file format.

    Attributes:
        format: its name in a manifest.
    """

    format: str

    def index(self, path: Path) -> FileIndex:
        """Count the records. Raises RawFileError where the file cannot be read at all."""
        ...

    def read(self, path: Path, rows: Rows) -> Iterator[Outcome]:
        """The wanted rows in order, one outcome each."""
        ...

    def formulas(self, path: Path) -> Iterator[str]:
        """The composition of every record, cheaply where the format allows; empty for an unreadable one."""
        ...

    def stated_units(self, path: Path) -> StatedUnits:
        """What the file says about its units."""
        ...


class PlainReader:
    """What most readers share: no stated units, compositions by reading everything."""

    format = ""

    def index(self, path: Path) -> FileIndex:
        """See `Reader`."""
        raise NotImplementedError

    def read(self, path: Path, rows: Rows) -> Iterator[Outcome]:
        """See `Reader`."""
        raise NotImplementedError

    def formulas(self, path: Path) -> Iterator[str]:
        """See `Reader`."""
        everything = Rows(0, 0, np.ones(self.index(path).count, bool))
        for outcome in self.read(path, everything):
            yield formula(outcome.atomic_numbers) if isinstance(outcome, Record) else ""

    def stated_units(self, path: Path) -> StatedUnits:
        """See `Reader`."""
        return StatedUnits()


def formula(atomic_numbers: Array) -> str:
    """Composition as text: symbols in alphabetic order with their counts, as in `C2H6O`."""
    from ase.data import chemical_symbols

    numbers, counts = np.unique(np.asarray(atomic_numbers, np.int64), return_counts=True)
    symbols = {
        chemical_symbols[number] if 0 < number < len(chemical_symbols) else f"Z{number}": count
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True)
    }
    return "".join(symbol + (str(count) if count > 1 else "") for symbol, count in sorted(symbols.items()))


def as_pbc(value: Any) -> Array | None:
    """Three flags from one or three, or None."""
    if value is None:
        return None
    flags = np.asarray(value).astype(bool).reshape(-1)
    return np.repeat(flags, 3) if flags.size == 1 else flags
