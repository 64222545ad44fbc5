"""Extended XYZ, and plain XYZ, packed or not: frames found by a cheap walk, each parsed by ASE from its own text.

A damaged frame costs only itself. What the text leaves open is not made up: where a header has a lattice but no `pbc`,
ASE assumes a periodic cell, and the record says that the file did not.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jmp_data.errors import RawFileError
from jmp_data.own_data.ase_records import ASE_ERRORS, quiet, record_from_atoms
from jmp_data.own_data.records import FileIndex, Outcome, PlainReader, Rows, Unreadable, formula
from jmp_data.own_data.xyz_frames import XyzFrame, walk_frames

SUFFIXES = (".xyz", ".extxyz")
_MOST_TEXT = 1 << 16
_PBC = re.compile(rb"(?:^|\s)\"?pbc\"?\s*=", re.IGNORECASE)
_SIX_NUMBERS = re.compile(
    r"""(^|\s)(stress|virial)(=["'{\[]\s*(?:[^\s"'{}\[\],]+[\s,]+){5}[^\s"'{}\[\],]+\s*["'}\]])""", re.MULTILINE
)
_SPECIES_FIRST = re.compile(rb"Properties=\"?species:S:1")


class ExtXyz(PlainReader):
    """See `Reader`."""

    format = "extxyz"

    def index(self, path: Path) -> FileIndex:
        """See `Reader`."""
        seeks = np.array([frame.offset for frame in walk_frames(path)], np.int64)
        return FileIndex(len(seeks), seeks)

    def read(self, path: Path, rows: Rows) -> Iterator[Outcome]:
        """See `Reader`."""
        if len(rows.wanted) == 0:
            return
        frames = walk_frames(path, rows.seek)
        for row, wanted in enumerate(rows.wanted.tolist(), rows.start):
            frame = next(frames, None)
            if frame is None:
                raise RawFileError(f"{path}: ends before frame {row}; it changed since the build was planned")
            if wanted:
                yield _parse(frame, row)

    def formulas(self, path: Path) -> Iterator[str]:
        """See `Reader`; symbols are taken from the rows where they stand first, as they nearly always do."""
        from ase.data import atomic_numbers

        for row, frame in enumerate(walk_frames(path)):
            outcome = None
            symbols = [line.split(None, 1)[0].decode("utf-8", "replace") for line in frame.lines[2:] if line.strip()]
            known = not frame.problem and set(symbols) <= atomic_numbers.keys()
            if known and (b"Properties=" not in frame.lines[1] or _SPECIES_FIRST.search(frame.lines[1])):
                yield formula(np.array([atomic_numbers[symbol] for symbol in symbols]))
                continue
            outcome = _parse(frame, row)
            yield "" if isinstance(outcome, Unreadable) else formula(outcome.atomic_numbers)


def _decode(text: bytes) -> str:
    """The text of a frame as ASE takes it.

    ASE wants nine numbers for a stress or virial; one in Voigt's order gets a name that it leaves alone.
    """
    try:
        decoded = text.decode("utf-8-sig")
    except UnicodeDecodeError:  # numbers and symbols are the same in every code; names in a comment may suffer
        decoded = text.decode("latin-1")
    return _SIX_NUMBERS.sub(r"\1voigt_\2\3", decoded, count=2)


def _parse(frame: XyzFrame, row: int) -> Outcome:
    from ase.io.extxyz import read_xyz

    text = b"".join(frame.lines)
    reason, problem = "broken_frame", frame.problem
    if not problem:
        try:
            with quiet():
                atoms = next(iter(read_xyz(io.StringIO(_decode(text)), slice(0, 1))))
            return record_from_atoms(atoms, row, str(row), pbc_stated=bool(_PBC.search(frame.lines[1])))
        except ASE_ERRORS as error:
            reason, problem = "unreadable_frame", f"cannot be parsed ({type(error).__name__}: {error})"
    shown = text[:_MOST_TEXT].decode("utf-8", "replace")
    return Unreadable(row, str(row), reason, problem, shown, damaged_file=frame.cut)
