"""ANI-1x: one HDF5 file, a group for each molecular formula, labels in hartree and hartree/Å.

The release has no splits, and the one of the reference cannot be regenerated (its shuffle had no seed). Here a formula
goes to test, val or train by the SHA-256 of its name alone, so that all conformations of a formula stay together and a
formula never changes its split, whatever else the file holds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import h5py

from jmp_data.errors import ManifestError, RawFileError
from jmp_data.schema import Schema
from jmp_data.schema.units import CODATA_2014, ConstantSet, convert
from jmp_data.sources.hdf5_frames import (
    FRAMES_PER_BLOCK,
    MAX_ATOMS_PER_PART,
    MAX_STRUCTURES_PER_PART,
    FrameGatherer,
    GroupFrames,
    Unit,
    check_frames,
    open_hdf5,
    pack_parts,
    subgroups,
)
from jmp_data.sources.protocol import Item, Part, SplitPlan
from jmp_data.sources.raw_files import find_file, relative

FILE_NAME = "ani1x-release.h5"
_KEYS = ("atomic_numbers", "coordinates", "wb97x_dz.energy", "wb97x_dz.forces")
_SPLITS = ("train", "val", "test")


def split_of_formula(formula: str) -> str:
    """`test` for a tenth of all formulas, `val` for another tenth, else `train`.

    The first eight bytes of the SHA-256 of the group's name, read as a big-endian integer and divided by 2^64, are a
    number u in [0, 1): test below 0.1, val below 0.2.
    """
    u = int.from_bytes(hashlib.sha256(formula.encode()).digest()[:8], "big") / 2**64
    return "test" if u < 0.1 else "val" if u < 0.2 else "train"


class ANI1x:
    """ANI-1x at ωB97X/6-31G(d), total energies."""

    name = "ani1x"
    required: tuple[str, ...] = ("energy", "forces")
    schema = Schema()

    def __init__(self, *, constants: ConstantSet = CODATA_2014) -> None:
        self.constants = constants.for_source(self.name)

    def splits(self, raw: Path) -> tuple[str, ...]:
        """The splits that the formulas in the file fall into."""
        path = find_file(raw, [FILE_NAME], self.name)
        with open_hdf5(path) as file:
            splits = _assign_splits(list(file))
        if not splits:
            raise RawFileError(f"{path}: has no groups, one for each formula; get the file again")
        return tuple(split for split in _SPLITS if split in splits.values())

    def plan(self, raw: Path, split: str) -> SplitPlan:
        """Parts of one split: formulas in alphabetic order, large ones as several ranges of rows."""
        if split not in _SPLITS:
            raise ManifestError(f"ani1x has no split {split!r}; choose from {', '.join(_SPLITS)}")
        path = find_file(raw, [FILE_NAME], self.name)
        with open_hdf5(path) as file:
            groups = subgroups(file, path)
            splits = _assign_splits([formula for formula, _ in groups])
            units = [
                unit
                for formula, group in groups
                if splits[formula] == split
                for unit in _ranges(formula, *check_frames(group, path, _KEYS))
            ]
        return SplitPlan(split, pack_parts(split, relative(path, raw), units), ("by SHA-256 of the formula",))

    def read(self, raw: Path, part: Part) -> Iterator[Item]:
        """Conformations of the part's formulas in file order."""
        path = raw / part.files[0]
        gatherer = FrameGatherer(self.schema)
        with open_hdf5(path) as file:
            for formula, start, stop in part.selection:
                for first in range(start, stop, FRAMES_PER_BLOCK):
                    rows = slice(first, min(first + FRAMES_PER_BLOCK, stop))
                    yield from gatherer.add(self._read_rows(path, file, formula, rows))
        yield from gatherer.flush()

    def _read_rows(self, path: Path, file: h5py.File, formula: str, rows: slice) -> GroupFrames:
        group = b"%s#%s" % (path.name.encode(), formula.encode())
        try:
            numbers, positions, energy, forces = (file[formula][key] for key in _KEYS)
            return GroupFrames(
                numbers[:],
                positions[rows],
                convert(energy[rows], "hartree", "eV", self.constants),
                # The release gives forces per Å although its energies are atomic units.
                convert(forces[rows], "hartree/Å", "eV/Å", self.constants),
                [b"%s/%d" % (group, row) for row in range(rows.start, rows.stop)],
            )
        except (OSError, KeyError) as error:
            where = f"group {formula}, rows {rows.start} to {rows.stop - 1}"
            raise RawFileError(f"{path}: {where} cannot be read ({error}); get the file again") from error


def _assign_splits(formulas: list[str]) -> dict[str, str]:
    splits = {formula: split_of_formula(formula) for formula in formulas}
    # A file of one or two formulas may leave nothing to train on.
    return splits if "train" in splits.values() else dict.fromkeys(formulas, "train")


def _ranges(formula: str, num_frames: int, natoms: int) -> Iterator[Unit]:
    step = max(1, min(MAX_STRUCTURES_PER_PART, MAX_ATOMS_PER_PART // max(natoms, 1)))
    for start in range(0, num_frames, step):
        stop = min(start + step, num_frames)
        yield Unit((formula, start, stop), stop - start, (stop - start) * natoms)
