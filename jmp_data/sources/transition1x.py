"""Transition-1x: one HDF5 file, a group for each reaction, eV and Å already.

The frames of a reaction are those of its path. Its sub-groups `reactant`, `product` and `transition_state` repeat
frames of the path exactly (the authors' loader therefore yields the endpoints twice): a sub-group's frame becomes a
structure only where it is no exact repeat, in positions and energy, of one that is already there, and the repeats are
counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from jmp_data.errors import ManifestError, MissingFileError, RawFileError
from jmp_data.schema import Schema
from jmp_data.schema.units import CODATA_2014, ConstantSet
from jmp_data.sources.hdf5_frames import (
    FrameGatherer,
    GroupFrames,
    Unit,
    check_frames,
    open_hdf5,
    pack_parts,
    read_array,
    subgroups,
)
from jmp_data.sources.protocol import Item, Part, Skipped, SplitPlan
from jmp_data.sources.raw_files import find_file, relative

FILE_NAMES = ("Transition1x.h5", "transition1x-release.h5")
ENDPOINTS = ("reactant", "product", "transition_state")
_KEYS = ("atomic_numbers", "positions", "wB97x_6-31G(d).energy", "wB97x_6-31G(d).forces")
_SPLITS = ("train", "val", "test")


class Transition1x:
    """Transition-1x at ωB97X/6-31G(d), total energies, its own splits."""

    name = "transition1x"
    required: tuple[str, ...] = ("energy", "forces")
    schema = Schema()

    def __init__(self, *, constants: ConstantSet = CODATA_2014) -> None:
        self.constants = constants  # the file is in eV and Å already

    def splits(self, raw: Path) -> tuple[str, ...]:
        """The splits that the file has and that hold a reaction; never `data`, which holds all of them again."""
        path = find_file(raw, FILE_NAMES, self.name)
        with open_hdf5(path) as file:
            found = tuple(split for split in _SPLITS if isinstance(file.get(split), h5py.Group) and len(file[split]))
            if not found:
                raise RawFileError(f"{path}: has no reactions in train, val or test; it has {', '.join(file)}")
        return found

    def plan(self, raw: Path, split: str) -> SplitPlan:
        """Parts of one split: reactions in alphabetic order of formula and name, none divided."""
        if split not in _SPLITS:
            raise ManifestError(f"transition1x has no split {split!r}; choose from {', '.join(_SPLITS)}")
        path = find_file(raw, FILE_NAMES, self.name)
        with open_hdf5(path) as file:
            if split not in file:
                raise MissingFileError(f"{path}: has no group {split}; it has {', '.join(file)}")
            units = [
                _plan_reaction(group, path, formula, reaction)
                for formula, formula_group in subgroups(file[split], path)
                for reaction, group in subgroups(formula_group, path)
            ]
        return SplitPlan(split, pack_parts(split, relative(path, raw), units), ("as published",))

    def read(self, raw: Path, part: Part) -> Iterator[Item]:
        """Reaction by reaction: the path's frames, then those of the sub-groups that are no repeats."""
        path = raw / part.files[0]
        gatherer = FrameGatherer(self.schema)
        repeats = 0
        with open_hdf5(path) as file:
            for formula, reaction in part.selection:
                name = f"{part.split}/{formula}/{reaction}"
                try:
                    sets = _read_reaction(file[name], path, name)
                except (OSError, KeyError) as error:
                    raise RawFileError(f"{path}: {name} cannot be read ({error}); get the file again") from error
                kept, found = _without_repeats(sets)
                repeats += found
                for frames in kept:
                    yield from gatherer.add(frames)
        yield from gatherer.flush()
        if repeats:
            yield Skipped("repeats_path_frame", repeats)


def _plan_reaction(group: h5py.Group, path: Path, formula: str, reaction: str) -> Unit:
    frames, natoms = check_frames(group, path, _KEYS)
    try:
        # One data set tells the count; its neighbours are met, or missed, when they are read.
        records = frames + sum(len(group[name][_KEYS[2]]) for name in ENDPOINTS if name in group)
    except KeyError as error:
        raise RawFileError(f"{path}: a sub-group of {group.name} lacks {_KEYS[2]} ({error})") from None
    return Unit((formula, reaction), records, records * natoms)


def _read_reaction(group: h5py.Group, path: Path, name: str) -> list[GroupFrames]:
    """The path, and each sub-group that is there."""
    prefix = f"{path.name}#{name}"
    endpoints = [endpoint for endpoint in ENDPOINTS if endpoint in group]
    for endpoint in endpoints:
        check_frames(group[endpoint], path, _KEYS)
    return [_read_frames(group, prefix), *(_read_frames(group[each], f"{prefix}/{each}") for each in endpoints)]


def _read_frames(group: h5py.Group, prefix: str) -> GroupFrames:
    numbers, positions, energy, forces = (read_array(group, key) for key in _KEYS)
    start = prefix.encode()
    source_ids = [b"%s/%d" % (start, row) for row in range(len(energy))]
    return GroupFrames(numbers, positions, energy, forces, source_ids)


def _without_repeats(sets: list[GroupFrames]) -> tuple[list[GroupFrames], int]:
    """All frames but those of later sets that repeat an earlier one exactly, and how many were repeats."""
    kept, repeats = sets[:1], 0
    for frames in sets[1:]:
        new = np.array([not any(_holds(earlier, frames, row) for earlier in kept) for row in range(len(frames))], bool)
        repeats += int((~new).sum())
        if new.any():
            kept.append(frames.take(new))
    return kept, repeats


def _holds(earlier: GroupFrames, frames: GroupFrames, row: int) -> bool:
    if not np.array_equal(earlier.atomic_numbers, frames.atomic_numbers):
        return False
    same_energy = np.flatnonzero(earlier.energy == frames.energy[row])
    return bool((earlier.positions[same_energy] == frames.positions[row]).all(axis=(1, 2)).any())
