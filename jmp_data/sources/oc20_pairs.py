"""One pair of OC20 files: frames in `N.extxyz.xz`, and in `N.txt.xz` who they are.

Line i of the text file names the system and step of frame i and its reference energy; nothing in the frame itself does.
So no frame is used unless its line is certain: where frames are lost (a damaged or truncated file), the frames around
the loss are matched from the front and from the back of the file, and the rest is quarantined.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jmp_data.errors import RawFileError
from jmp_data.schema import Block, Schema
from jmp_data.sources.extxyz_fast import FrameIndex, index_frames, parse_frames
from jmp_data.sources.protocol import Item, Quarantined
from jmp_data.sources.xz_text import XzText, read_xz

Array = npt.NDArray[Any]

FRAMES_PER_BLOCK = 2_500
_MAX_RECORD_TEXT = 1 << 16


def count_systems(path: Path) -> int:
    """Records that a pair holds: the lines of its `N.txt.xz`.

    Raises:
        RawFileError: the file is damaged.
    """
    return len(_read_systems(path))


def _read_systems(path: Path) -> list[bytes]:
    content = read_xz(path)
    if content.state != "whole":
        raise RawFileError(f"{path}: {content.message} (without it no frame of the pair can be identified)")
    text = content.text.rstrip()
    return text.split(b"\n") if text else []


def match_frames(num_frames: int, num_lines: int, broken: Sequence[int], *, cut: bool) -> Array:
    """Line of the text file for each frame of a pair; -1 where it is not certain.

    A broken frame may hide others that lost their headers. Frames before the first broken one are matched from the
    front; frames behind the last one from the back, unless the file is cut.

    Args:
        num_frames: frames found.
        num_lines: lines of the text file.
        broken: frames whose lines do not add up, ascending.
        cut: the frames end before the file should.

    Returns:
        (num_frames,) int64.
    """
    if num_frames == num_lines:
        return np.arange(num_frames)
    lines = np.full(num_frames, -1)
    if num_frames > num_lines or not (broken or cut):
        return lines
    front = broken[0] + 1 if broken else num_frames
    lines[:front] = np.arange(front)
    if not cut:
        behind = num_frames - 1 - broken[-1]
        lines[num_frames - behind :] = np.arange(num_lines - behind, num_lines)
    return lines


@dataclass(frozen=True, slots=True)
class _Systems:
    """The lines of `N.txt`: identities as published, reference energies in eV (NaN where malformed)."""

    file: str
    lines: list[bytes]
    source_ids: list[bytes]
    reference_energy: Array
    malformed: set[int]

    @classmethod
    def parse(cls, lines: list[bytes], systems_file: str, name: str) -> _Systems:
        prefix = name.encode()
        source_ids: list[bytes] = []
        energies = np.full(len(lines), np.nan)
        malformed: set[int] = set()
        for row, line in enumerate(lines):
            try:
                system, frame, energy = line.split(b",")
                energies[row] = float(energy)
                source_ids.append(b"%s#%d:%s/%s" % (prefix, row, system.strip(), frame.strip()))
            except ValueError:
                malformed.add(row)
                source_ids.append(b"%s#%d" % (prefix, row))
        return cls(systems_file, lines, source_ids, energies, malformed)

    def quarantine(self, row: int, reason: str, message: str, *, damaged: bool = False) -> Quarantined:
        line = self.lines[row].decode("utf-8", "replace")
        return Quarantined(self.source_ids[row].decode("utf-8", "replace"), reason, message, line, damaged)


def read_pair(raw: Path, frames_file: str, systems_file: str, schema: Schema) -> Iterator[Item]:
    """The frames of one pair as blocks; each line of the text file is accounted for exactly once.

    Args:
        raw: raw folder.
        frames_file: `N.extxyz.xz`, relative to it.
        systems_file: `N.txt.xz`, relative to it.
        schema: energy, forces and reference_energy.
    """
    path = (raw / frames_file).absolute()
    systems = _Systems.parse(_read_systems(raw / systems_file), systems_file, f"{path.parent.name}/{path.name}")
    content = read_xz(path)
    if content.state == "corrupt":
        # What came out before the error may be wrong too: the check sum stands at the end of the stream.
        for row in range(len(systems.lines)):
            yield systems.quarantine(row, "corrupt_file", f"{frames_file}: {content.message}", damaged=True)
        return
    yield from _Pair.match(frames_file, content, systems).read(schema)


@dataclass(frozen=True, slots=True)
class _Pair:
    """Both files of a pair, frames matched to lines (`lines`: (num_frames,), -1 where not certain)."""

    file: str
    content: XzText
    index: FrameIndex
    systems: _Systems
    lines: Array
    cut: bool

    @classmethod
    def match(cls, file: str, content: XzText, systems: _Systems) -> _Pair:
        num_lines = len(systems.lines)
        cut = content.state == "truncated"
        index = index_frames(content.text, complete=not cut)
        if not cut and len(index) < num_lines and not content.text.endswith(b"\n"):
            cut, index = True, index_frames(content.text, complete=False)
        return cls(file, content, index, systems, match_frames(len(index), num_lines, list(index.broken), cut=cut), cut)

    def read(self, schema: Schema) -> Iterator[Item]:
        usable = self.lines >= 0
        usable[list(self.index.broken)] = False
        usable[np.isin(self.lines, list(self.systems.malformed))] = False
        frames = np.flatnonzero(usable)
        for start in range(0, len(frames), FRAMES_PER_BLOCK):
            yield from self._parse(frames[start : start + FRAMES_PER_BLOCK], schema)
        yield from self._quarantine_broken()
        yield from self._quarantine_malformed_systems()
        yield from self._quarantine_unmatched()

    def _parse(self, chosen: Array, schema: Schema) -> Iterator[Item]:
        frames = parse_frames(self.index, chosen)
        if len(frames.frames):
            rows = self.lines[frames.frames]
            yield Block.from_columns(
                schema,
                frames.natoms,
                np.array([self.systems.source_ids[row] for row in rows.tolist()]),
                {
                    "atomic_numbers": frames.atoms.atomic_numbers,
                    "positions": frames.atoms.positions,
                    "cell": frames.cell,
                    "pbc": frames.pbc,
                    "tags": frames.atoms.tags,
                    "fixed": ~frames.atoms.move_mask,
                    "energy": frames.energy,
                    "forces": frames.atoms.forces,
                    "reference_energy": self.systems.reference_energy[rows],
                },
            )
        for frame, error in sorted(frames.failures.items()):
            yield self._malformed_frame(frame, str(error), line=error.line)

    def _malformed_frame(self, frame: int, reason: str, *, line: int = 1, damaged: bool = False) -> Quarantined:
        where = f"{self.file}: frame {frame}, line {self.index.line_number(frame, line)}"
        text = self.index.frame_text(frame, limit=_MAX_RECORD_TEXT)
        source_id = self.systems.source_ids[self.lines[frame]].decode("utf-8", "replace")
        return Quarantined(source_id, "malformed_frame", f"{where}: {reason}", text, damaged)

    def _quarantine_broken(self) -> Iterator[Quarantined]:
        for frame, reason in self.index.broken.items():
            if self.lines[frame] >= 0:
                yield self._malformed_frame(frame, reason, damaged=self.cut)

    def _quarantine_malformed_systems(self) -> Iterator[Quarantined]:
        broken = set(self.lines[list(self.index.broken)].tolist())
        for row in sorted(self.systems.malformed & set(self.lines.tolist()) - broken):
            message = f"{self.systems.file}: line {row + 1} is not system,frame,energy"
            yield self.systems.quarantine(row, "malformed_system", message)

    def _quarantine_unmatched(self) -> Iterator[Quarantined]:
        num_lines = len(self.systems.lines)
        found = f"{len(self.index)} frames found for {num_lines} lines of {self.systems.file}"
        if self.cut:
            reason = "truncated_file"
            message = f"{self.file}: {self.content.message or 'the text ends inside a frame'}; {found}"
        else:
            reason, message = "pair_mismatch", f"{self.file}: {found}, so which frame this line names is not certain"
        for row in np.setdiff1d(np.arange(num_lines), self.lines).tolist():
            yield self.systems.quarantine(row, reason, message, damaged=True)
