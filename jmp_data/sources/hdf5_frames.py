"""Frames from HDF5 groups: each group holds many conformations of one list of atoms.

Shared by the sources that are published so. Groups are read in slices and gathered into blocks; a frame with NaN in a
label that was asked for is quarantined, NaN in any other data set of the group plays no part.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
from h5py import h5d, h5s

from jmp_data.errors import JmpDataError, RawFileError
from jmp_data.schema import Block, Schema
from jmp_data.sources.protocol import Item, Part, Quarantined

Array = npt.NDArray[Any]

MAX_STRUCTURES_PER_PART = 150_000
MAX_ATOMS_PER_PART = 4_000_000
FRAMES_PER_BLOCK = 4_096


@dataclass(frozen=True, slots=True)
class Unit:
    """What a part is made of: an entry of its selection, with the records and atoms that it stands for."""

    selection: tuple[Any, ...]
    num_records: int
    num_atoms: int


@dataclass(frozen=True, slots=True)
class GroupFrames:
    """Frames of one group, in eV and Å.

    Attributes:
        atomic_numbers: (natoms,).
        positions: (n, natoms, 3).
        energy: (n,) float64.
        forces: (n, natoms, 3).
        source_ids: n identities.
    """

    atomic_numbers: Array
    positions: Array
    energy: Array
    forces: Array
    source_ids: list[bytes]

    def __len__(self) -> int:
        return len(self.energy)

    def take(self, rows: Array) -> GroupFrames:
        """The frames that a boolean mask marks."""
        ids = [self.source_ids[row] for row in np.flatnonzero(rows).tolist()]
        return GroupFrames(self.atomic_numbers, self.positions[rows], self.energy[rows], self.forces[rows], ids)


@dataclass(slots=True)
class FrameGatherer:
    """Gathers the frames of many groups into blocks of a few thousand.

    Attributes:
        schema: energy and forces.
    """

    schema: Schema
    _waiting: list[GroupFrames] = field(default_factory=list)

    def add(self, frames: GroupFrames) -> Iterator[Item]:
        """Take frames in; yields a block when enough are there, and quarantines frames with a NaN label."""
        if not (np.isfinite(frames.energy).all() and np.isfinite(frames.forces).all()):
            labelled = np.isfinite(frames.energy) & np.isfinite(frames.forces).all(axis=(1, 2))
            yield from (_quarantine(frames, row) for row in np.flatnonzero(~labelled).tolist())
            frames = frames.take(labelled)
        if len(frames):
            self._waiting.append(frames)
        if sum(map(len, self._waiting)) >= FRAMES_PER_BLOCK:
            yield from self.flush()

    def flush(self) -> Iterator[Block]:
        """The block of what is left."""
        groups, self._waiting = self._waiting, []
        if not groups:
            return
        yield Block.from_columns(
            self.schema,
            np.concatenate([np.full(len(g), len(g.atomic_numbers)) for g in groups]),
            np.array([source_id for g in groups for source_id in g.source_ids]),
            {
                "atomic_numbers": np.concatenate([np.tile(g.atomic_numbers, len(g)) for g in groups]),
                "positions": np.concatenate([g.positions.reshape(-1, 3) for g in groups]),
                "energy": np.concatenate([g.energy for g in groups]),
                "forces": np.concatenate([g.forces.reshape(-1, 3) for g in groups]),
            },
        )


def _quarantine(frames: GroupFrames, row: int) -> Quarantined:
    source_id = frames.source_ids[row].decode()
    missing = "energy" if not np.isfinite(frames.energy[row]) else "forces"
    record = {
        "atomic_numbers": frames.atomic_numbers.tolist(),
        "positions": frames.positions[row].tolist(),
        "energy": float(frames.energy[row]),
        "forces": frames.forces[row].tolist(),
    }
    return Quarantined(source_id, "nan_label", f"{source_id}: {missing} not finite", json.dumps(record))


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """A file for reading.

    Raises:
        RawFileError: it is damaged, truncated or no HDF5 file, which may show only once its groups are looked at.
    """
    try:
        with h5py.File(path, "r") as file:
            yield file
    except JmpDataError:
        raise
    except (
        OSError,
        RuntimeError,
        KeyError,
        TypeError,
        ValueError,
    ) as error:  # what h5py makes of broken links and names
        raise RawFileError(f"{path}: cannot be read as HDF5 ({error}); get the file again") from error


def subgroups(group: h5py.Group, path: Path) -> list[tuple[str, h5py.Group]]:
    """Names and groups below a group in alphabetic order, links followed.

    Raises:
        RawFileError: an entry is no group, or a link leads nowhere.
    """
    found: list[tuple[str, h5py.Group]] = []
    for name in sorted(group):
        try:
            entry = group[name]
        except (KeyError, OSError) as error:
            raise RawFileError(f"{path}: {group.name}/{name} cannot be opened ({error}); get the file again") from error
        if not isinstance(entry, h5py.Group):
            raise RawFileError(f"{path}: {group.name.rstrip('/')}/{name} should be a group; this is another layout")
        found.append((name, entry))
    return found


def check_frames(group: h5py.Group, path: Path, keys: Sequence[str]) -> tuple[int, int]:
    """Number of frames and atoms of a group, from shapes alone.

    Args:
        group: holds the four data sets.
        path: for error messages.
        keys: names of atomic numbers (natoms,), positions (n, natoms, 3), energies (n,) and forces (n, natoms, 3).

    Raises:
        RawFileError: a data set is missing, holds no numbers or has another shape.
    """
    try:
        # Ten thousand groups of four data sets: the high-level interface takes several times as long.
        datasets = [h5d.open(group.id, key.encode()) for key in keys]
    except KeyError:
        missing = ", ".join(key for key in keys if key not in group)
        found = ", ".join(map(str, group)) or "nothing"
        raise RawFileError(f"{path}: group {group.name} lacks {missing}; it has {found}") from None
    textual = [f"{key} {each.dtype}" for key, each in zip(keys, datasets, strict=True) if each.dtype.kind not in "iuf"]
    if textual:
        raise RawFileError(f"{path}: group {group.name} holds other things than numbers: {', '.join(textual)}")
    numbers, positions, energy, forces = (each.shape for each in datasets)
    if len(positions) != 3 or (positions[1:], energy, forces) != ((*numbers, 3), positions[:1], positions):
        shapes = ", ".join(f"{key} {group[key].shape}" for key in keys)
        raise RawFileError(f"{path}: group {group.name} has shapes that do not fit together: {shapes}")
    return positions[0], numbers[0]


def read_array(group: h5py.Group, key: str) -> Array:
    """A whole data set; for small ones several times faster than `group[key][:]`."""
    dataset = h5d.open(group.id, key.encode())
    array = np.empty(dataset.shape, dataset.dtype)
    dataset.read(h5s.ALL, h5s.ALL, array)
    return array


def pack_parts(split: str, file: str, units: Iterable[Unit]) -> tuple[Part, ...]:
    """Parts of consecutive units, each as large as the limits allow.

    Args:
        split: output split.
        file: the HDF5 file, relative to the raw folder.
        units: in their final order; none is divided.

    Returns:
        Parts of at most 150,000 structures and four million atoms, unless one unit alone is larger.
    """
    parts: list[Part] = []
    members: list[Unit] = []
    records = atoms = 0
    for unit in units:
        records, atoms = records + unit.num_records, atoms + unit.num_atoms
        if members and (records > MAX_STRUCTURES_PER_PART or atoms > MAX_ATOMS_PER_PART):
            parts.append(_part(split, file, members))
            members, records, atoms = [], unit.num_records, unit.num_atoms
        members.append(unit)
    if members:
        parts.append(_part(split, file, members))
    return tuple(parts)


def _part(split: str, file: str, members: list[Unit]) -> Part:
    return Part(split, (file,), tuple(unit.selection for unit in members), sum(unit.num_records for unit in members))
