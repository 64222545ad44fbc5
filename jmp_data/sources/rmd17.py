"""rMD17: one `.npz` file a molecule, kcal/mol and Å, beside five published pairs of index lists.

The archive's `old_*` arrays hold the labels of the older MD17 at another level of theory. They are not read, but for
`old_indices`, which give each frame's place in the trajectory: the file itself is shuffled.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from ase.data import atomic_numbers, chemical_symbols

from jmp_data.errors import ManifestError, MissingFileError, RawFileError
from jmp_data.schema import Schema
from jmp_data.schema.units import CODATA_2014, ConstantSet
from jmp_data.sources.npz_arrays import NpzArrays
from jmp_data.sources.protocol import Item, Part, SplitPlan
from jmp_data.sources.raw_files import find_file, relative, walk_folders
from jmp_data.sources.splits import REFERENCE, RowRange, choose_rows, cut, plan_rows, shuffled, time_blocks
from jmp_data.sources.trajectory import Trajectory, frame_blocks

MOLECULES = {
    "aspirin": "C9H8O4",
    "azobenzene": "C12H10N2",
    "benzene": "C6H6",
    "ethanol": "C2H6O",
    "malonaldehyde": "C3H4O2",
    "naphthalene": "C10H8",
    "paracetamol": "C8H9NO2",
    "salicylic": "C7H6O3",
    "toluene": "C7H8",
    "uracil": "C4H4N2O2",
}
"""The ten molecules, named as in the file names, and their formulas."""

REFERENCE_SIZES = {"train": 950, "val": 50, "test": -1}
_FRAMES_PER_PART = 50_000
_INDEX_FILE = re.compile(r"index_(train|test)_(\d\d)\.csv")

Rows = npt.NDArray[np.int64]


class RMD17:
    """One molecule of rMD17 at PBE/def2-SVP, total energies.

    Splits: `train`, `val` and `test` as the reference made them, `split01_train` to `split05_test` as published where
    the lists lie beside the molecules, and on request `contiguous_train`, `contiguous_val` and `contiguous_test`, which
    leak no neighbours in time.
    """

    parts = tuple(MOLECULES)
    required: tuple[str, ...] = ("energy", "forces")
    schema = Schema()

    def __init__(self, *, part: str, constants: ConstantSet = CODATA_2014) -> None:
        self.name = f"rmd17:{part}"
        self.molecule = part
        self.constants = constants.for_source("rmd17")

    def splits(self, raw: Path) -> tuple[str, ...]:
        """The reference's splits that are not empty, then the published ones whose rows the file has."""
        count = _count_frames(NpzArrays(self._find(raw)))
        reference = [name for name, rows in cut(shuffled(count), REFERENCE_SIZES).items() if len(rows)]
        lists = _find_index_lists(raw)
        return (*reference, *(name for name in sorted(lists, key=_train_first) if _fits(lists[name], count)))

    def plan(self, raw: Path, split: str) -> SplitPlan:
        """Parts of one split, frames in the order of its list."""
        path = self._find(raw)
        archive = NpzArrays(path)
        files, rule, rows = self._choose(raw, archive, split)
        notes = _check_molecule(archive, MOLECULES[self.molecule])
        count = _count_frames(archive)
        return plan_rows(split, files, rows, rule=rule, count=count, rows_per_part=_FRAMES_PER_PART, notes=notes)

    def read(self, raw: Path, part: Part) -> Iterator[Item]:
        """Frames of the part in the order of the split's list."""
        path = raw / part.files[0]
        archive = NpzArrays(path)
        _, _, rows = self._choose(raw, archive, part.split)
        chosen = RowRange.of(part).take(rows, _count_frames(archive), str(path))
        numbers, _ = _complete_elements(archive, MOLECULES[self.molecule])
        frames = Trajectory(numbers, archive.load("coords"), archive.load("energies"), archive.load("forces"))
        yield from frame_blocks(frames, chosen, file_name=path.name, schema=self.schema, constants=self.constants)

    def _find(self, raw: Path) -> Path:
        return find_file(raw, [f"rmd17_{self.molecule}.npz"], self.name)

    def _choose(self, raw: Path, archive: NpzArrays, split: str) -> tuple[tuple[str, ...], str, Rows]:
        """Raw files, rule and rows of a split."""
        file = relative(archive.path, raw)
        count = _count_frames(archive)
        if split in REFERENCE_SIZES:
            return (file,), REFERENCE, choose_rows(cut(shuffled(count), REFERENCE_SIZES), split, self.name)
        if split.startswith("contiguous_"):
            blocks = time_blocks(archive.load("old_indices"), REFERENCE_SIZES)
            return (file,), "blocks of time by old_indices", choose_rows(blocks, split, self.name)
        lists = _find_index_lists(raw)
        if split not in lists:
            known = ", ".join((*REFERENCE_SIZES, *lists, "contiguous_train, contiguous_val, contiguous_test"))
            raise ManifestError(f"{self.name} has no split {split!r} below {raw}; choose from {known}")
        rows = _read_index_list(lists[split])
        if len(rows) and (rows.min() < 0 or rows.max() >= count):
            raise RawFileError(
                f"{lists[split]}: names row {rows.max()}, but {archive.path.name} has rows 0 to {count - 1}; "
                "a file that was cut down has no published splits"
            )
        return (file, relative(lists[split], raw)), f"published list {lists[split].name}", rows


def _count_frames(archive: NpzArrays) -> int:
    coords = archive.shape("coords")
    shapes = {name: archive.shape(name) for name in ("energies", "forces")}
    if len(coords) != 3 or coords[2] != 3 or shapes != {"energies": coords[:1], "forces": coords}:
        raise RawFileError(f"{archive.path}: shapes do not fit together: coords {coords}, {shapes}; get the file again")
    return coords[0]


def _formula(numbers: npt.NDArray[np.uint8]) -> Counter[str]:
    return Counter(chemical_symbols[int(number)] for number in numbers)


def _parse_formula(formula: str) -> Counter[str]:
    return Counter({symbol: int(count or 1) for symbol, count in re.findall(r"([A-Z][a-z]?)(\d*)", formula)})


def _complete_elements(archive: NpzArrays, formula: str) -> tuple[npt.NDArray[np.uint8], bool]:
    """The elements of the atoms, and whether the file lists fewer of them than it has atoms.

    Copies that others cut down to ten frames list only ten elements. The rest is known where the molecule's formula
    leaves one element only.
    """
    numbers = np.asarray(archive.load("nuclear_charges"), np.uint8)
    natoms = archive.shape("coords")[1]
    if numbers.shape == (natoms,):
        return numbers, False
    rest = _parse_formula(formula) - _formula(numbers)
    if numbers.ndim == 1 and len(rest) == 1 and len(numbers) + rest.total() == natoms:
        (symbol,) = rest
        return np.concatenate([numbers, np.full(rest.total(), atomic_numbers[symbol], np.uint8)]), True
    raise RawFileError(
        f"{archive.path}: lists elements of shape {numbers.shape} for {natoms} atoms, "
        f"and the formula {formula} does not tell the rest; get the file again"
    )


def _check_molecule(archive: NpzArrays, formula: str) -> tuple[str, ...]:
    numbers, completed = _complete_elements(archive, formula)
    notes = []
    if completed:
        listed = archive.shape("nuclear_charges")[0]
        notes.append(f"{archive.path.name} lists {listed} elements for {len(numbers)} atoms; completed to {formula}")
    if _formula(numbers) != _parse_formula(formula):
        found = "".join(f"{symbol}{count}" for symbol, count in sorted(_formula(numbers).items()))
        notes.append(f"{archive.path.name} holds {found}, the published molecule is {formula}")
    return tuple(notes)


def _find_index_lists(raw: Path) -> dict[str, Path]:
    """Split name → the published list of its rows."""
    found: dict[str, Path] = {}
    for folder, _, files in walk_folders(raw):
        for name in files:
            match = _INDEX_FILE.fullmatch(name)
            if match:
                split = f"split{match[2]}_{match[1]}"
                if split in found:
                    raise RawFileError(
                        f"rmd17: found {found[split]} and {folder / name}; remove one, or point --raw at one"
                    )
                found[split] = folder / name
    return found


def _train_first(split: str) -> tuple[str, bool]:
    number, _, kind = split.partition("_")
    return number, kind != "train"


def _read_index_list(path: Path) -> Rows:
    """0-based row numbers, one a line, no header."""
    try:
        return np.array([int(line) for line in path.read_text().split()], np.int64)
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file; it was there when the work was planned") from None
    except (ValueError, OverflowError) as error:
        raise RawFileError(f"{path}: not a list of row numbers, one a line ({error})") from error


def _fits(path: Path, count: int) -> bool:
    rows = _read_index_list(path)
    return bool(len(rows) and rows.min() >= 0 and rows.max() < count)
