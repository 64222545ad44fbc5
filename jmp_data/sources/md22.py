"""MD22: trajectories of seven large molecules, kcal/mol and Å, as `.npz` or as xyz text in a zip."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jmp_data.errors import MissingFileError, RawFileError
from jmp_data.schema import Schema
from jmp_data.schema.units import CODATA_2014, ConstantSet
from jmp_data.sources import md22_xyz
from jmp_data.sources.npz_arrays import NpzArrays
from jmp_data.sources.protocol import Item, Part, SplitPlan
from jmp_data.sources.raw_files import find_file, relative
from jmp_data.sources.splits import REFERENCE, RowRange, choose_rows, cut, plan_rows, shuffled, time_blocks
from jmp_data.sources.trajectory import Trajectory, frame_blocks

TRAIN_AND_VAL = {
    "Ac-Ala3-NHMe": 6000,
    "DHA": 8000,
    "stachyose": 8000,
    "AT-AT": 3000,
    "AT-AT-CG-CG": 2000,
    "buckyball-catcher": 600,
    "double-walled_nanotube": 800,
}
"""Molecule → published size of its training set, of which the reference takes 5 % to validate."""

_OTHER_NAMES = {"double-walled_nanotube": "dw_nanotube"}  # on an older mirror
_FRAMES_PER_PART = 25_000
_UNITS = {"e_unit": ("kcal/mol",), "r_unit": ("Ang", "Angstrom", "A")}

Array = npt.NDArray[Any]


class MD22:
    """One molecule of MD22 at PBE+MBD, total energies.

    Splits: `train`, `val` and `test` as the reference made them, and on request `contiguous_train`, `contiguous_val`
    and `contiguous_test`, which leak no neighbours in time; they take the rows of the file for the order of time.
    """

    parts = tuple(TRAIN_AND_VAL)
    required: tuple[str, ...] = ("energy", "forces")
    schema = Schema()

    def __init__(self, *, part: str, constants: ConstantSet = CODATA_2014) -> None:
        self.name = f"md22:{part}"
        self.molecule = part
        self.constants = constants.for_source("md22")

    def splits(self, raw: Path) -> tuple[str, ...]:
        """The reference's splits that are not empty."""
        count = _count_frames(self._find(raw))
        return tuple(name for name, rows in self._reference(count).items() if len(rows))

    def plan(self, raw: Path, split: str) -> SplitPlan:
        """Parts of one split, frames in the order of its list."""
        path = self._find(raw)
        count = _count_frames(path)
        rule, rows = self._choose(count, split)
        return plan_rows(split, (relative(path, raw),), rows, rule=rule, count=count, rows_per_part=_FRAMES_PER_PART)

    def read(self, raw: Path, part: Part) -> Iterator[Item]:
        """Frames of the part in the order of the split's list."""
        path = raw / part.files[0]
        frames = _read_npz(path) if path.suffix == ".npz" else md22_xyz.read_frames(path)
        count = len(frames.energies)
        rows = RowRange.of(part).take(self._choose(count, part.split)[1], count, str(path))
        yield from frame_blocks(frames, rows, file_name=path.name, schema=self.schema, constants=self.constants)

    def _find(self, raw: Path) -> Path:
        """The `.npz` where it is there, for it has more digits."""
        stems = [f"md22_{name}" for name in (self.molecule, _OTHER_NAMES.get(self.molecule)) if name]
        for suffix in (".npz", ".zip"):
            try:
                return find_file(raw, [stem + suffix for stem in stems], self.name)
            except MissingFileError:
                continue
        try:
            return find_file(raw, [f"{stem}.xyz" for stem in stems], self.name)
        except MissingFileError:
            raise MissingFileError(
                f"{self.name}: no {stems[0]}.npz, .zip or .xyz below {raw}; "
                f"run `jmp-data download {self.name}` or put the published file there"
            ) from None

    def _choose(self, count: int, split: str) -> tuple[str, Array]:
        if split.startswith("contiguous_"):
            blocks = time_blocks(np.arange(count), self._sizes())
            return "blocks of consecutive rows", choose_rows(blocks, split, self.name)
        return REFERENCE, choose_rows(self._reference(count), split, self.name)

    def _reference(self, count: int) -> dict[str, Array]:
        return cut(shuffled(count), self._sizes())

    def _sizes(self) -> dict[str, int]:
        both = TRAIN_AND_VAL[self.molecule]
        val = both * 5 // 100
        return {"train": both - val, "val": val, "test": -1}


def _count_frames(path: Path) -> int:
    status = path.stat()
    return _count(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=16)
def _count(path: Path, size: int, modified: int) -> int:
    """Frames of a file. Text must be read for it, so a file with the same stamp is not read again."""
    del size, modified
    return _check_npz(NpzArrays(path)) if path.suffix == ".npz" else md22_xyz.count_frames(path)


def _check_npz(archive: NpzArrays) -> int:
    """Number of frames, after a check of shapes and stated units."""
    shapes = {name: archive.shape(name) for name in ("E", "F", "R", "z")}
    frames = shapes["R"][:1]
    if (
        shapes["R"] != (*frames, *shapes["z"], 3)
        or shapes["F"] != shapes["R"]
        or shapes["E"] not in (frames, (*frames, 1))
    ):
        raise RawFileError(f"{archive.path}: shapes do not fit together: {shapes}; get the file again")
    for name, known in _UNITS.items():
        unit = archive.text(name)
        if unit is not None and unit not in known:
            raise RawFileError(f"{archive.path}: {name} is {unit!r}, MD22 is published in {known[0]}")
    return frames[0]


def _read_npz(path: Path) -> Trajectory:
    archive = NpzArrays(path)
    count = _check_npz(archive)
    # Energies come as a column of shape (n, 1).
    return Trajectory(archive.load("z"), archive.load("R"), archive.load("E").reshape(count), archive.load("F"))
