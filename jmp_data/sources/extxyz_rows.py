"""The atom rows of extended-XYZ frames, parsed from bytes into columns by a compiled kernel.

The kernel takes only what the writers of the Open Catalyst data sets produce, fixed-point numbers of at most 18 digits;
any other row goes to Python's own `float`, which also decides what is malformed. A mantissa up to 2^53 divided by a
power of ten up to 10^22 is correctly rounded, so both ways give the same doubles (W. D. Clinger, "How to read floating
point numbers accurately", 1990).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from ase.data import atomic_numbers as elements
from numba import njit

Array = npt.NDArray[Any]

_SKIP, _SPECIES, _POSITION, _MASK, _TAG, _FORCE = 0, 1, 2, 5, 6, 7
_COLUMN_CODES: dict[tuple[str, str, int], tuple[int, ...]] = {
    ("species", "S", 1): (_SPECIES,),
    ("pos", "R", 3): (_POSITION, _POSITION + 1, _POSITION + 2),
    ("move_mask", "L", 1): (_MASK,),
    ("tags", "I", 1): (_TAG,),
    ("forces", "R", 3): (_FORCE, _FORCE + 1, _FORCE + 2),
}
_ALL_CODES = sorted(code for codes in _COLUMN_CODES.values() for code in codes)
TRUE_WORDS = {b"T", b"True", b"TRUE", b"true", b"1"}
FALSE_WORDS = {b"F", b"False", b"FALSE", b"false", b"0"}
_ELEMENTS = {symbol: number for symbol, number in elements.items() if number > 0}  # X, a dummy, is 0
_POWERS_OF_TEN = 10.0 ** np.arange(23)


class FrameError(ValueError):
    """A frame cannot be read. `line` counts from 1 at the frame's first line."""

    def __init__(self, message: str, line: int = 1) -> None:
        super().__init__(message)
        self.line = line


@dataclass(frozen=True, slots=True)
class AtomTable:
    """Columns of the atoms of many frames, one frame after another.

    Attributes:
        ptr: (n + 1,) boundaries of the frames.
        atomic_numbers: (N,) uint8.
        positions: (N, 3) float32, Å.
        move_mask: (N,) bool, true where the atom may move.
        tags: (N,) uint8.
        forces: (N, 3) float32, eV/Å.
    """

    ptr: Array
    atomic_numbers: Array
    positions: Array
    move_mask: Array
    tags: Array
    forces: Array

    @classmethod
    def empty(cls, natoms: Array) -> AtomTable:
        """A table with room for frames of these sizes."""
        ptr = np.concatenate([[0], np.cumsum(natoms)]).astype(np.int64)
        n = int(ptr[-1])
        vectors = (np.zeros((n, 3), np.float32) for _ in range(2))
        return cls(ptr, np.zeros(n, np.uint8), next(vectors), np.ones(n, bool), np.zeros(n, np.uint8), next(vectors))

    def take(self, frames: Array) -> AtomTable:
        """The frames that a boolean mask marks."""
        sizes = np.diff(self.ptr)
        atoms = np.repeat(frames, sizes)
        return AtomTable(
            np.concatenate([[0], np.cumsum(sizes[frames])]),
            self.atomic_numbers[atoms],
            self.positions[atoms],
            self.move_mask[atoms],
            self.tags[atoms],
            self.forces[atoms],
        )


def parse_rows(
    text: bytes, starts: Array, ends: Array, slots: Array, properties: bytes, table: AtomTable
) -> Iterator[tuple[int, FrameError]]:
    """Parse the rows of frames that share one set of columns.

    Args:
        text: the text of the file.
        starts: (k,) first byte of each frame's rows.
        ends: (k,) one past the last byte of each frame.
        slots: (k,) which frame of the table each one fills.
        properties: the value of `Properties=` in their headers.
        table: filled in place.

    Yields:
        (slot, error) for each frame that cannot be read.
    """
    try:
        program = _column_program(properties)
    except FrameError as error:
        yield from ((slot, error) for slot in slots.tolist())
        return
    irregular = np.zeros(len(slots), bool)
    _parse_regular_rows(
        np.frombuffer(text, np.uint8),
        starts,
        ends,
        table.ptr[slots],
        table.ptr[slots + 1],
        program,
        _SYMBOLS,
        _POWERS_OF_TEN,
        table.atomic_numbers,
        table.positions,
        table.move_mask,
        table.tags,
        table.forces,
        irregular,
    )
    for member in np.flatnonzero(irregular).tolist():
        slot = int(slots[member])
        atoms = range(int(table.ptr[slot]), int(table.ptr[slot + 1]))
        try:
            _parse_any_rows(text[starts[member] : ends[member]], atoms, program.tolist(), table)
        except FrameError as error:
            yield slot, error


def _column_program(properties: bytes) -> Array:
    """Codes of the words of an atom row."""
    text = properties.decode("utf-8", "replace")
    words = text.split(":")
    if len(words) % 3 or not all(word.isdecimal() for word in words[2::3]):
        raise FrameError(f"Properties={text} is not made of name:type:count triples", 2)
    program: list[int] = []
    for name, kind, count in zip(words[::3], words[1::3], map(int, words[2::3]), strict=True):
        program.extend(_COLUMN_CODES.get((name, kind, count), (_SKIP,) * count))
    # ASE leaves move_mask out where nothing is fixed.
    implied = [] if _MASK in program else [_MASK]
    if sorted([*filter(None, program), *implied]) != _ALL_CODES:
        wanted = ":".join(f"{name}:{kind}:{count}" for name, kind, count in _COLUMN_CODES)
        raise FrameError(f"Properties={text} must hold each column of {wanted} once", 2)
    return np.array(program, np.int64)


def _parse_any_rows(text: bytes, atoms: range, codes: list[int], table: AtomTable) -> None:
    for number, (atom, line) in enumerate(zip(atoms, text.split(b"\n"), strict=False), start=3):
        words = line.split()
        if len(words) != len(codes):
            raise FrameError(f"{len(words)} columns, expected {len(codes)}", number)
        for code, word in zip(codes, words, strict=True):
            try:
                _store_word(table, atom, code, word.decode("ascii"))
            except (ValueError, OverflowError, KeyError):
                raise FrameError(f"cannot read {word.decode('utf-8', 'replace')!r}", number) from None


def _store_word(table: AtomTable, atom: int, code: int, word: str) -> None:
    if code == _SPECIES:
        table.atomic_numbers[atom] = _ELEMENTS[word]
    elif _POSITION <= code < _MASK:
        table.positions[atom, code - _POSITION] = float(word)
    elif code >= _FORCE:
        table.forces[atom, code - _FORCE] = float(word)
    elif code == _TAG:
        table.tags[atom] = int(word)
    elif code == _MASK:
        if word.encode() not in TRUE_WORDS | FALSE_WORDS:
            raise ValueError(word)
        table.move_mask[atom] = word.encode() in TRUE_WORDS


def _symbol_table() -> Array:
    """(26, 27) atomic numbers by capital letter and small letter (0 for none); 0 where there is no such element."""
    table = np.zeros((26, 27), np.uint8)
    for symbol, number in _ELEMENTS.items():
        table[ord(symbol[0]) - 65, ord(symbol[1]) - 96 if len(symbol) > 1 else 0] = number
    return table


_SYMBOLS = _symbol_table()


def count_rows(text: Array, starts: Array, ends: Array) -> Array:
    """Lines of each frame below its header; blank lines at the end of the frame are not counted.

    Args:
        text: (n,) uint8.
        starts: (k,) first byte below each header.
        ends: (k,) one past the last byte of each frame.

    Returns:
        (k,) int64.
    """
    counts = np.zeros(len(starts), np.int64)
    is_newline = text == 10  # NumPy compares and counts 32 bytes at a time, which a compiled loop does not
    for frame, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        while end > start and text[end - 1] <= 32:
            end -= 1
        if end > start:
            counts[frame] = np.count_nonzero(is_newline[start:end]) + 1
    return counts


@njit(cache=True, nogil=True)
def _read_fixed_point(text: Array, at: int, end: int, powers: Array) -> tuple[int, float]:
    """Position behind a fixed-point word and its value; position -1 where it is anything else."""
    negative = at < end and text[at] == 45
    if negative:
        at += 1
    mantissa, digits, point = 0, 0, -1
    while at < end and text[at] > 32:
        byte = text[at]
        if byte >= 48 and byte <= 57:
            mantissa = mantissa * 10 + (byte - 48)
            digits += 1
        elif byte == 46 and point < 0:
            point = digits
        else:
            return -1, 0.0
        at += 1
    if digits == 0 or digits > 18 or mantissa > 9007199254740992:
        return -1, 0.0
    value = float(mantissa)
    if point >= 0:
        value /= powers[digits - point]
    return at, -value if negative else value


@njit(cache=True, nogil=True)
def _read_species(text: Array, at: int, length: int, symbols: Array) -> int:
    """Atomic number of a symbol; 0 where there is no such element."""
    capital = np.int64(text[at]) - 65
    small = np.int64(text[at + 1]) - 96 if length == 2 else 0
    if length > 2 or capital < 0 or capital > 25 or small < 0 or small > 26 or (length == 2 and small == 0):
        return 0
    return int(symbols[capital, small])


@njit(cache=True, nogil=True)
def _parse_regular_rows(
    text: Array,
    starts: Array,
    ends: Array,
    first_atoms: Array,
    last_atoms: Array,
    program: Array,
    symbols: Array,
    powers: Array,
    atomic_numbers: Array,
    positions: Array,
    move_mask: Array,
    tags: Array,
    forces: Array,
    irregular: Array,
) -> None:
    """Parse the rows of each frame; a frame with anything out of the ordinary is only marked as irregular."""
    for frame in range(len(starts)):
        at, end = starts[frame], ends[frame]
        regular = True
        for atom in range(first_atoms[frame], last_atoms[frame]):
            for code in program:
                while at < end and text[at] <= 32 and text[at] != 10:
                    at += 1
                word = at
                if code >= _FORCE or (code >= _POSITION and code < _MASK):
                    at, value = _read_fixed_point(text, at, end, powers)
                    if at < 0:
                        regular = False
                        break
                    if code >= _FORCE:
                        forces[atom, code - _FORCE] = value
                    else:
                        positions[atom, code - _POSITION] = value
                    continue
                while at < end and text[at] > 32:
                    at += 1
                length = at - word
                regular = length > 0
                if not regular:
                    break
                if code == _SPECIES:
                    atomic_numbers[atom] = _read_species(text, word, length, symbols)
                    regular = atomic_numbers[atom] > 0
                elif code == _MASK:
                    move_mask[atom] = text[word] == 84
                    regular = length == 1 and (text[word] == 84 or text[word] == 70)
                elif code == _TAG:
                    tags[atom] = text[word] - 48
                    regular = length == 1 and text[word] >= 48 and text[word] <= 57
                if not regular:
                    break
            while regular and at < end and text[at] <= 32 and text[at] != 10:
                at += 1
            if not regular or (at < end and text[at] != 10):
                regular = False
                break
            at += 1
        irregular[frame] = not regular
