"""Where the frames of an (extended) XYZ text begin and end, and which of them do not add up.

A frame is its number of atoms, a comment, and that many rows. The same walk finds the frames when a build is planned
and when a part is read, so both see the same frames from any frame on. A frame with too few or too many rows is marked
and the walk goes on at the next header: its text is kept, and the frames behind it are not misread.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

from jmp_data.errors import RawFileError

_MOST_ATOMS = 10_000_000
_OPENERS: Mapping[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
PACKED = tuple(_OPENERS)
"""Endings of names of packed texts."""
UNPACKING_ERRORS = (OSError, EOFError, lzma.LZMAError, zlib.error)


@dataclass(frozen=True, slots=True)
class XyzFrame:
    """The text of one frame.

    Attributes:
        offset: of its first byte in the unpacked text.
        lines: its lines; of a broken frame, all lines up to the next header.
        problem: why it is broken; empty for a sound one.
        cut: the text ends inside it, or without a line end, so that it may.
    """

    offset: int
    lines: list[bytes]
    problem: str = ""
    cut: bool = False


def open_text(path: Path) -> IO[bytes]:
    """Open a text that may be packed with gzip, bzip2 or xz.

    Raises:
        RawFileError: it cannot be opened.
    """
    try:
        return cast("IO[bytes]", _OPENERS.get(path.suffix.lower(), open)(path, "rb"))
    except OSError as error:
        raise RawFileError(f"{path}: cannot be opened ({error.strerror or error})") from error


def walk_frames(path: Path, offset: int = 0) -> Iterator[XyzFrame]:
    """The frames of a text from a frame's offset on.

    Raises:
        RawFileError: the file is no text that can be unpacked.
    """
    with open_text(path) as file:
        try:
            file.seek(offset)
            yield from _walk(file, offset)
        except UNPACKING_ERRORS as error:
            raise RawFileError(f"{path}: cannot be unpacked ({error}); get the file again") from error


def _walk(file: IO[bytes], offset: int) -> Iterator[XyzFrame]:
    offset, line = _next_line(file, offset)
    while line:
        natoms = _parse_count(line)
        lines = [line, *islice(file, natoms + 1 if natoms else 0)]
        problem = _find_problem(lines, natoms)
        if not problem and not lines[-1].endswith(b"\n") and _is_cut_in_a_number(lines[2:]):
            problem = "the text ends in its last number, which is shorter than others; add a line end if it is whole"
        cut = natoms > 0 and (len(lines) < natoms + 2 or not lines[-1].endswith(b"\n"))
        end = offset + sum(map(len, lines))
        following, line = _next_line(file, end)
        if not problem and _is_atom_row(line):
            problem = f"{natoms} atoms announced, more rows found"
        if problem:
            following = _find_header(file, offset, lines[: 2 if natoms else 1])
            cut = cut and following < 0
            lines = _reread(file, offset, following)
            following, line = _next_line(file, offset + sum(map(len, lines)))
        yield XyzFrame(offset, lines, problem, cut)
        offset = following


def _next_line(file: IO[bytes], offset: int) -> tuple[int, bytes]:
    """The next line that is not blank, and its offset; an empty line at the end of the text."""
    line = file.readline()
    while line and not line.strip():
        offset += len(line)
        line = file.readline()
    return offset, line


def _parse_count(line: bytes) -> int:
    """The number of atoms that a line announces; 0 where it announces none."""
    word = line.removeprefix(codecs.BOM_UTF8).strip()
    return int(word) if word.isdigit() and len(word) < 9 and 0 < int(word) <= _MOST_ATOMS else 0


def _is_atom_row(line: bytes) -> bool:
    """Whether a line is neither a number of atoms nor a header."""
    return len(line.split()) > 3 and b"=" not in line


def _find_problem(lines: list[bytes], natoms: int) -> str:
    if not natoms:
        return f"expected the number of atoms, found {lines[0].strip()[:40].decode('utf-8', 'replace')!r}"
    rows = lines[2:]
    if len(rows) < natoms:
        return f"{natoms} atoms announced, the file ends after {len(rows)} rows"
    # A header among the rows, or a lone number as the last of them: the next frame has begun.
    if b"=" in b"".join(rows) or len(rows[-1].split()) < 4:
        return f"{natoms} atoms announced, fewer rows found"
    return ""


def _is_cut_in_a_number(rows: list[bytes]) -> bool:
    """Whether a last row without a line end is cut in its last number, as far as the digits of others tell."""
    last = rows[-1]
    if last[-1:].isspace():
        return False
    words = last.split()
    others = [row.split()[-1] for row in rows[:-1]] or words[1:-1]
    return bool(others) and _decimals(words[-1]) < min(map(_decimals, others))


def _decimals(word: bytes) -> int:
    return len(word.partition(b".")[2])


def _find_header(file: IO[bytes], offset: int, skipped: list[bytes]) -> int:
    """Offset of the next line that announces a frame, behind the first lines of a broken one; -1 if there is none."""
    place = offset + sum(map(len, skipped))
    file.seek(place)
    for line in file:
        if _parse_count(line):
            return place
        place += len(line)
    return -1


def _reread(file: IO[bytes], offset: int, end: int) -> list[bytes]:
    file.seek(offset)
    lines: list[bytes] = []
    place = offset
    while end < 0 or place < end:
        line = file.readline()
        if not line:
            break
        lines.append(line)
        place += len(line)
    return lines
