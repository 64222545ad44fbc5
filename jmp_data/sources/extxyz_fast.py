"""Frames of an extended-XYZ text as columns: found by their headers, parsed in bulk, none misaligned.

Building an object for each frame costs more than unpacking its text, so the text of a whole file is indexed first
(where each frame's header and rows lie), headers are read one by one, and atom rows by the kernel of `extxyz_rows`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from jmp_data.sources.extxyz_rows import TRUE_WORDS, AtomTable, FrameError, count_rows, parse_rows

Array = npt.NDArray[Any]

_MARK = b"Properties="
_NO_HEADER = "no header line with Properties="
_HEADER = re.compile(
    rb'(?:^|\s)(?:Lattice="([^"]*)"|Properties="?([^\s"]+)"?|energy="?([^\s"]+)"?|pbc="([^"]*)")(?=\s|$)'
)
# The header as published, matched in one go; any other order or spelling takes the search above.
_PUBLISHED_HEADER = re.compile(
    rb'Lattice="([^"]*)" Properties=([^\s"]+) energy=([^\s"]+) (?:free_energy=[^\s"]+ )?pbc="([^"]*)"\s*'
)


@dataclass(frozen=True, slots=True)
class FrameIndex:
    """Where the frames of a text lie: byte offsets, one row a frame.

    Attributes:
        text: the whole text.
        start: (n,) first byte, of the line with the number of atoms.
        header: (n,) first byte of the second line.
        rows: (n,) first byte of the atom rows.
        end: (n,) one past the last byte.
        natoms: (n,) atoms that the frame announces.
        broken: frame → why its lines do not add up; such a frame may hide others.
    """

    text: bytes
    start: Array
    header: Array
    rows: Array
    end: Array
    natoms: Array
    broken: dict[int, str]

    def __len__(self) -> int:
        return len(self.start)

    def frame_text(self, frame: int, limit: int) -> str:
        """The lines of one frame as they stand, at most `limit` bytes."""
        end = min(int(self.end[frame]), int(self.start[frame]) + limit)
        return self.text[self.start[frame] : end].decode("utf-8", "replace")

    def line_number(self, frame: int, line: int = 1) -> int:
        """Line of the file (from 1) of one line of a frame."""
        return self.text.count(b"\n", 0, int(self.start[frame])) + line


@dataclass(frozen=True, slots=True)
class Frames:
    """Parsed frames as columns.

    Attributes:
        frames: (n,) numbers of the frames that could be read.
        natoms: (n,).
        cell: (n, 3, 3) float64, Å.
        pbc: (n, 3) bool.
        energy: (n,) float64, eV.
        atoms: the atom columns of these frames.
        failures: frame → why it cannot be read.
    """

    frames: Array
    natoms: Array
    cell: Array
    pbc: Array
    energy: Array
    atoms: AtomTable
    failures: dict[int, FrameError]


def index_frames(text: bytes, *, complete: bool = True) -> FrameIndex:
    """Find every frame of a text.

    A frame whose lines do not add up is marked as broken and the search goes on at the next header. A frame that lost
    its header is found by its line with the number of atoms.

    Args:
        text: the text of a file.
        complete: false where the text is known to be cut; its last line then counts only with its newline.

    Returns:
        The frames in file order.
    """
    starts, headers, rows, natoms = _find_headers(text)
    ends = [*starts[1:], len(text)] if starts else []
    broken: dict[int, str] = {}
    if text[: starts[0] if starts else None].strip():
        ends.insert(0, starts[0] if starts else len(text))
        for column in (starts, headers, rows, natoms):
            column.insert(0, 0)
        broken[0] = _NO_HEADER
    columns = [np.array(column, np.int64) for column in (starts, headers, rows, ends, natoms)]
    counts = count_rows(np.frombuffer(text, np.uint8), columns[2], columns[3])
    hidden: list[tuple[int, int]] = []
    for frame in np.flatnonzero((counts != columns[4]) | (columns[4] == 0)).tolist():
        offset = _find_hidden_frame(text, rows[frame], ends[frame], natoms[frame])
        if offset:
            hidden.append((frame, offset))
        elif natoms[frame] == 0:
            broken.setdefault(frame, "the line before the header is no number of atoms")
        else:
            broken.setdefault(frame, f"{natoms[frame]} atom rows announced, {counts[frame]} lines found")
    ends_inside = not complete and not text.endswith(b"\n") and len(starts) - 1 not in dict(hidden)
    if starts and ends_inside:
        broken.setdefault(len(starts) - 1, "the text ends inside the frame")
    return _insert_hidden_frames(text, columns, broken, hidden)


def _find_headers(text: bytes) -> tuple[list[int], list[int], list[int], list[int]]:
    """Offsets of first line, header and rows of each frame with a header, and its number of atoms (0 if unreadable)."""
    starts, headers, rows, natoms = [], [], [], []
    position = text.find(_MARK)
    while position >= 0:
        header = text.rfind(b"\n", 0, position) + 1
        line_end = text.find(b"\n", position)
        line_end = len(text) if line_end < 0 else line_end
        start = text.rfind(b"\n", 0, max(header - 1, 0)) + 1
        count = text[start:header].strip()
        natoms.append(int(count) if count.isdigit() and len(count) < 7 else 0)
        # An atom row of the frame before: this frame has lost its count line altogether.
        starts.append(header if len(count) > 6 and len(count.split()) > 3 else start)
        headers.append(header)
        rows.append(min(line_end + 1, len(text)))
        position = text.find(_MARK, line_end)
    return starts, headers, rows, natoms


def _find_hidden_frame(text: bytes, start: int, end: int, natoms: int) -> int:
    """Offset of a frame without header that follows the complete rows of another; 0 if there is none."""
    position = start
    for _ in range(natoms):
        position = text.find(b"\n", position, end) + 1
        if position == 0:
            return 0
    line_end = text.find(b"\n", position, end)
    count = text[position : end if line_end < 0 else line_end]
    return position if natoms > 0 and count.strip().isdigit() else 0


def _insert_hidden_frames(
    text: bytes, columns: list[Array], broken: dict[int, str], hidden: list[tuple[int, int]]
) -> FrameIndex:
    start, header, rows, end, natoms = columns
    if hidden:
        after, offsets = np.array(hidden).T
        hidden_end, end = end[after], end.copy()
        end[after] = offsets
        start, header, rows = (np.insert(column, after + 1, offsets) for column in (start, header, rows))
        end, natoms = np.insert(end, after + 1, hidden_end), np.insert(natoms, after + 1, 0)
        broken = {frame + int((after < frame).sum()): reason for frame, reason in broken.items()}
        broken |= {int(frame) + 1 + rank: _NO_HEADER for rank, frame in enumerate(after)}
    return FrameIndex(text, start, header, rows, end, natoms, dict(sorted(broken.items())))


def parse_frames(index: FrameIndex, frames: Array) -> Frames:
    """Parse the given frames.

    Args:
        index: the frames of the text.
        frames: (n,) frame numbers, none of them broken.

    Returns:
        What could be read as columns, and the failures by frame.
    """
    failures: dict[int, FrameError] = {}
    headers: list[tuple[list[float], list[bool], float]] = []
    chosen: list[int] = []
    members: dict[bytes, list[int]] = {}
    for frame in frames.tolist():
        try:
            cell, pbc, energy, properties = _parse_header(index.text[index.header[frame] : index.rows[frame]])
        except FrameError as error:
            failures[frame] = error
            continue
        members.setdefault(properties, []).append(len(chosen))
        headers.append((cell, pbc, energy))
        chosen.append(frame)
    numbers = np.array(chosen, np.int64)
    natoms = index.natoms[numbers]
    table = AtomTable.empty(natoms)
    good = np.ones(len(numbers), bool)
    for properties, slots in members.items():
        which = np.array(slots)
        spans = index.rows[numbers[which]], index.end[numbers[which]]
        for slot, failure in parse_rows(index.text, *spans, which, properties, table):
            good[slot] = False
            failures[chosen[slot]] = failure
    return Frames(
        frames=numbers[good],
        natoms=natoms[good],
        cell=np.array([cell for cell, _, _ in headers], np.float64).reshape(-1, 3, 3)[good],
        pbc=np.array([pbc for _, pbc, _ in headers], bool).reshape(-1, 3)[good],
        energy=np.array([energy for _, _, energy in headers], np.float64)[good],
        atoms=table if good.all() else table.take(good),
        failures=failures,
    )


def _header_values(line: bytes) -> tuple[bytes | None, bytes | None, bytes | None, bytes | None]:
    """Lattice, Properties, energy and pbc as text; the first where a key is repeated."""
    match = _PUBLISHED_HEADER.fullmatch(line)
    if match:
        return match[1], match[2], match[3], match[4]
    lattice = properties = energy = pbc = None
    for match in _HEADER.finditer(line):
        lattice, properties = lattice or match[1], properties or match[2]
        energy, pbc = energy or match[3], pbc or match[4]
    return lattice, properties, energy, pbc


def _parse_header(line: bytes) -> tuple[list[float], list[bool], float, bytes]:
    lattice, properties, energy, pbc = _header_values(line)
    if lattice is None or properties is None or energy is None:
        values = {"Lattice": lattice, "Properties": properties, "energy": energy}
        raise FrameError(f"header lacks {', '.join(key for key, value in values.items() if value is None)}", 2)
    try:
        cell = list(map(float, lattice.split()))
        value = float(energy)
    except ValueError as error:
        raise FrameError(f"header is malformed: {error}", 2) from None
    flags = [word in TRUE_WORDS for word in pbc.split()] if pbc else [True] * 3
    if len(cell) != 9 or len(flags) != 3:
        raise FrameError(f"header has {len(cell)} lattice numbers and {len(flags)} pbc flags, expected 9 and 3", 2)
    return cell, flags, value, properties
