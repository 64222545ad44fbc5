"""OC20 S2EF: the published training and validation sets, straight from their compressed files.

A set is a folder of numbered pairs, `N.extxyz.xz` and `N.txt.xz`, of 5,000 frames each; `oc20_pairs` reads a pair.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jmp_data.errors import ManifestError, MissingFileError, RawFileError
from jmp_data.raw.safe_archive import extract
from jmp_data.schema import Field, Schema
from jmp_data.schema.fields import ENERGY, FORCES
from jmp_data.schema.units import CODATA_2014, ConstantSet
from jmp_data.sources.oc20_pairs import count_systems, read_pair
from jmp_data.sources.protocol import Item, Part, SplitPlan
from jmp_data.sources.raw_files import relative, walk_folders

REFERENCE_ENERGY = Field(
    "reference_energy",
    "structure",
    "float64",
    (),
    "eV",
    "extensive",
    "clean slab plus gas-phase adsorbate; energy minus this is the adsorption energy",
)
TRAIN_SETS = ("train_all", "train_20M", "train_2M", "train_200K")
"""Published training sets, largest first; each holds the smaller ones."""
VALIDATION_SETS = ("val_id", "val_ood_ads", "val_ood_cat", "val_ood_both")
MAX_STRUCTURES_PER_PART = 30_000
_PAIRS_PER_TASK = 64  # a task a pair would cost more than counting

_ARCHIVE = re.compile(r"s2ef_(\w+)\.tar")
_NUMBERED = re.compile(r"(\d+)\.(extxyz|txt)\.xz")


class OC20:
    """The S2EF training and validation sets of Open Catalyst 2020, total energies in eV."""

    name = "oc20"
    required: tuple[str, ...] = ("energy", "forces")
    schema = Schema((ENERGY, FORCES, REFERENCE_ENERGY))

    def __init__(self, *, constants: ConstantSet = CODATA_2014) -> None:
        self.constants = constants  # the files are in eV and Å already

    def splits(self, raw: Path) -> tuple[str, ...]:
        """`train` (the largest training set there) and the validation sets that are there."""
        found = _find_sets(raw)
        train = ("train",) if any(name in found for name in TRAIN_SETS) else ()
        return (*train, *(name for name in VALIDATION_SETS if name in found))

    def plan(self, raw: Path, split: str) -> SplitPlan:
        """Parts of a split: `train`, `val` (for `val_id`), or a published set by its name, such as `train_2M`.

        A set that is there as the published `.tar` alone is unpacked beside it first.
        """
        found = _find_sets(raw)
        place, split, notes = _choose_set(found, split, raw)
        if place.is_file():
            extract(place, place.parent)
            place = _choose_set(_find_sets(raw), split, raw)[0]
        pairs = _find_pairs(place)
        counts = _count_systems([texts for _, texts in pairs])
        parts: list[Part] = []
        members: list[str] = []
        records = 0
        for pair, count in zip(pairs, counts, strict=True):
            if members and records + count > MAX_STRUCTURES_PER_PART:
                parts.append(Part(split, tuple(members), num_records=records))
                members, records = [], 0
            members.extend(relative(path, raw) for path in pair)
            records += count
        if members:
            parts.append(Part(split, tuple(members), num_records=records))
        return SplitPlan(split, tuple(parts), notes)

    def read(self, raw: Path, part: Part) -> Iterator[Item]:
        """Frames file by file; what cannot be read or matched to its line is quarantined."""
        for frames, systems in zip(part.files[::2], part.files[1::2], strict=True):
            yield from read_pair(raw, frames, systems, self.schema)


def _find_sets(raw: Path) -> dict[str, Path]:
    """Set name → the folder with its numbered files, or its `.tar` where there is no such folder.

    The published folders are doubled (`name/name/`).
    """
    found: dict[str, Path] = {}
    packed: dict[str, Path] = {}
    for folder, _, files in walk_folders(raw):
        for file in files:
            match = _ARCHIVE.fullmatch(file)
            if match and match[1] in (*TRAIN_SETS, *VALIDATION_SETS):
                packed[match[1]] = folder / file
        published = folder.absolute().name  # the raw folder itself may be one, given as a relative path
        name = published.removeprefix("s2ef_")
        if published == name or name not in (*TRAIN_SETS, *VALIDATION_SETS):
            continue
        if any(_NUMBERED.fullmatch(file) for file in files):
            if name in found:
                raise RawFileError(f"oc20: found {found[name]} and {folder}; remove one, or point --raw at one")
            found[name] = folder
    if not found and not packed:
        raise MissingFileError(
            f"oc20: no s2ef_train_200K, _2M, _20M, _all or s2ef_val_* folder with N.extxyz.xz files below {raw}, "
            "nor the .tar of one; run `jmp-data download oc20`"
        )
    return packed | found


def _choose_set(found: dict[str, Path], split: str, raw: Path) -> tuple[Path, str, tuple[str, ...]]:
    if split == "val":
        split = "val_id"
    if split == "train":
        present = [name for name in TRAIN_SETS if name in found]
        if not present:
            raise MissingFileError(f"oc20: no s2ef_train_* folder below {raw}; it holds {', '.join(found)}")
        unused = f"; {', '.join(present[1:])} left out, for it holds them" if present[1:] else ""
        return found[present[0]], split, (f"train is the published set {present[0]}{unused}",)
    if split not in (*TRAIN_SETS, *VALIDATION_SETS):
        known = ", ".join(("train", *TRAIN_SETS, *VALIDATION_SETS))
        raise ManifestError(
            f"oc20 has no split {split!r} (test sets are published without labels); choose from {known}"
        )
    if split not in found:
        raise MissingFileError(f"oc20: no s2ef_{split} folder with N.extxyz.xz files below {raw}; download that set")
    return found[split], split, ()


def _find_pairs(folder: Path) -> list[tuple[Path, Path]]:
    numbers: dict[int, set[str]] = {}
    for path in folder.iterdir():
        match = _NUMBERED.fullmatch(path.name)
        if match:
            numbers.setdefault(int(match[1]), set()).add(match[2])
    for number, kinds in sorted(numbers.items()):
        for kind in sorted({"extxyz", "txt"} - kinds):
            present = folder / f"{number}.{next(iter(kinds))}.xz"
            raise MissingFileError(
                f"{folder / f'{number}.{kind}.xz'} is missing, but {present.name} is there: "
                "frames and systems come in pairs; unpack the archive again"
            )
    return [(folder / f"{number}.extxyz.xz", folder / f"{number}.txt.xz") for number in sorted(numbers)]


def _count_systems(paths: Sequence[Path]) -> list[int]:
    """Records of each pair. Unpacking releases the interpreter lock, so threads help."""
    batches = [paths[start : start + _PAIRS_PER_TASK] for start in range(0, len(paths), _PAIRS_PER_TASK)]
    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
        counted = pool.map(lambda batch: [count_systems(path) for path in batch], batches)
        return [count for counts in counted for count in counts]
