"""MD22's xyz flavour: frames of one molecule with `Energy=` in the comment line, in a zip or plain.

`Energy` has a capital letter, so common readers do not take it for the energy. Values have six digits, fewer than the
`.npz` flavour's.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from ase.data import atomic_numbers

from jmp_data.errors import MissingFileError, RawFileError
from jmp_data.sources.trajectory import Trajectory

Array = npt.NDArray[Any]

_COMMENT = re.compile(rb"(?:^|\s)Energy=(\S+)\s.*Properties=species:S:1:pos:R:3:forces:R:3")
_FRAMES_PER_CHUNK = 512
_COLUMNS = 7
_CHUNK_BYTES = 1 << 20


def count_frames(path: Path) -> int:
    """Number of frames, from the number of lines.

    Raises:
        RawFileError: the file ends within a frame, or is damaged.
    """
    with _open(path) as file:
        natoms = _read_natoms(file.readline(), path, 1)
        lines, last = 1, b"\n"
        while chunk := file.read(_CHUNK_BYTES):
            lines += chunk.count(b"\n")
            last = chunk[-1:]
    lines += last != b"\n"
    if lines % (natoms + 2):
        raise RawFileError(f"{path}: {lines} lines are no whole number of frames of {natoms} atoms; get the file again")
    return lines // (natoms + 2)


def read_frames(path: Path) -> Trajectory:
    """All frames.

    Raises:
        RawFileError: a frame is malformed or has other atoms than the first.
    """
    energies: list[Array] = []
    numbers: list[Array] = []
    symbols: list[bytes] = []
    with _open(path) as file:
        first = file.readline()
        natoms = _read_natoms(first, path, 1)
        height = natoms + 2
        lines = [first, *islice(file, _FRAMES_PER_CHUNK * height - 1)]
        line_number = 1
        while lines:
            some, words = _parse_chunk(lines, natoms, path, line_number)
            symbols = symbols or words[0, :, 0].tolist()
            if not (words[:, :, 0] == np.array(symbols)).all():
                raise RawFileError(f"{path}: frames from line {line_number} on have other atoms than the first frame")
            energies.append(some)
            numbers.append(_to_float(words[:, :, 1:], path, line_number))
            line_number += len(lines)
            lines = list(islice(file, _FRAMES_PER_CHUNK * height))
    try:
        elements = np.array([atomic_numbers[symbol.decode()] for symbol in symbols], np.uint8)
    except KeyError as error:
        raise RawFileError(f"{path}: there is no element {error}") from None
    values = np.concatenate(numbers)
    return Trajectory(elements, values[:, :, :3], np.concatenate(energies), values[:, :, 3:])


def _parse_chunk(lines: list[bytes], natoms: int, path: Path, line_number: int) -> tuple[Array, Array]:
    """Energies (n,) and words (n, natoms, 7) of whole frames."""
    height = natoms + 2
    energies = np.empty(len(lines) // height)
    rows: list[bytes] = []
    for frame in range(len(energies)):
        at = frame * height
        if _read_natoms(lines[at], path, line_number + at) != natoms:
            raise RawFileError(f"{path}: line {line_number + at}: a frame of another size than {natoms} atoms")
        match = _COMMENT.search(lines[at + 1])
        if match is None:
            text = lines[at + 1].decode("utf-8", "replace").strip()
            raise RawFileError(f"{path}: line {line_number + at + 1}: no `Energy=... Properties=...`, but {text!r}")
        energies[frame] = _to_float(np.array([match[1]]), path, line_number + at + 1)[0]
        rows += lines[at + 2 : at + height]
    words = b" ".join(rows).split()
    if len(lines) % height or len(words) != len(rows) * _COLUMNS:
        raise RawFileError(f"{path}: frames from line {line_number} on are no tables of {_COLUMNS} columns")
    return energies, np.array(words).reshape(len(energies), natoms, _COLUMNS)


def _to_float(words: Array, path: Path, line_number: int) -> Array:
    try:
        return words.astype(np.float64)
    except ValueError as error:
        raise RawFileError(f"{path}: in the frames from line {line_number} on: {error}") from None


def _read_natoms(line: bytes, path: Path, line_number: int) -> int:
    try:
        return int(line)
    except ValueError:
        text = line.decode("utf-8", "replace").strip()
        raise RawFileError(f"{path}: line {line_number}: {text!r} is no number of atoms") from None


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    """The text of a plain file, or of the one `.xyz` in a zip."""
    try:
        if path.suffix.lower() != ".zip":
            with path.open("rb") as file:
                yield file
            return
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(".xyz") and "__MACOSX" not in name]
            if len(names) != 1:
                raise RawFileError(f"{path}: holds {len(names)} .xyz files, expected one; it has {archive.namelist()}")
            with archive.open(names[0]) as member:
                yield member
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file; it was there when the work was planned") from None
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise RawFileError(f"{path}: not a whole zip archive ({error}); get the file again") from error
