"""QM9: 133,885 relaxed molecules with a dozen properties each, from either of its two published flavours.

The `dsgdb9nsd` archive is read as it is, file by file; where it is not there, MoleculeNet's `gdb9.sdf` and
`gdb9.sdf.csv` are. Left out, for no column can hold them: vibrational frequencies (their number varies), SMILES and
InChI. The molecules that the authors list as uncharacterised are skipped and counted, with the train split.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jmp_data.errors import MissingFileError
from jmp_data.schema import Block, Field, Schema
from jmp_data.schema.fields import Kind
from jmp_data.schema.units import CODATA_2014, ConstantSet, convert
from jmp_data.sources.protocol import Item, Part, Quarantined, Skipped, SplitPlan
from jmp_data.sources.qm9_flavours import Flavour, find_flavour
from jmp_data.sources.qm9_records import ATOMISATION, PROPERTIES, Molecule, read_uncharacterized
from jmp_data.sources.raw_files import find_file, relative
from jmp_data.sources.splits import REFERENCE, RowRange, choose_rows, cut, plan_rows, shuffled

EXCLUDED = "uncharacterized.txt"
NUM_PUBLISHED = 133_885

_HELD_OUT = 10_000  # each of val and test
_MOLECULES_PER_PART = 150_000
_FILES_PER_PART = 5_000
_MOLECULES_PER_BLOCK = 2048

Rows = npt.NDArray[np.int64]


def _scalar(name: str, unit: str, kind: Kind, description: str) -> Field:
    return Field(name, "structure", "float64", (), unit, kind, description)


_FIELDS = (
    _scalar("A", "GHz", "intensive", "rotational constant"),
    _scalar("B", "GHz", "intensive", "rotational constant"),
    _scalar("C", "GHz", "intensive", "rotational constant"),
    _scalar("mu", "D", "intensive", "norm of the dipole moment"),
    _scalar("alpha", "a0³", "extensive", "isotropic polarisability"),
    _scalar("homo", "eV", "intensive", "energy of the highest occupied orbital"),
    _scalar("lumo", "eV", "intensive", "energy of the lowest unoccupied orbital"),
    _scalar("gap", "eV", "intensive", "lumo minus homo"),
    _scalar("r2", "a0²", "extensive", "electronic spatial extent"),
    _scalar("zpve", "eV", "extensive", "zero-point vibrational energy"),
    _scalar("U0", "eV", "extensive", "internal energy at 0 K"),
    _scalar("U", "eV", "extensive", "internal energy at 298.15 K"),
    _scalar("H", "eV", "extensive", "enthalpy at 298.15 K"),
    _scalar("G", "eV", "extensive", "free energy at 298.15 K"),
    _scalar("cv", "cal/(mol K)", "extensive", "heat capacity at 298.15 K"),
    _scalar("U0_atom", "eV", "extensive", "atomisation energy at 0 K; only in the SDF flavour"),
    _scalar("U_atom", "eV", "extensive", "atomisation energy at 298.15 K; only in the SDF flavour"),
    _scalar("H_atom", "eV", "extensive", "atomisation enthalpy at 298.15 K; only in the SDF flavour"),
    _scalar("G_atom", "eV", "extensive", "atomisation free energy at 298.15 K; only in the SDF flavour"),
    Field("mulliken_charges", "atom", "float32", (), "e", "intensive", "only in the xyz flavour"),
)
_RAW_UNITS = dict.fromkeys(("homo", "lumo", "gap", "zpve", "U0", "U", "H", "G"), "hartree") | dict.fromkeys(
    ATOMISATION, "kcal/mol"
)


class QM9:
    """QM9 at B3LYP/6-31G(2df,p), one split rule for both flavours."""

    name = "qm9"
    required: tuple[str, ...] = PROPERTIES
    schema = Schema(_FIELDS)

    def __init__(self, *, constants: ConstantSet = CODATA_2014) -> None:
        self.constants = constants.for_source(self.name)

    def splits(self, raw: Path) -> tuple[str, ...]:
        """`train`, `val` and `test`, as far as the molecules that are there fill them."""
        kept, _, _ = _list_kept(raw, find_flavour(raw))
        return tuple(name for name, rows in _cut_kept(len(kept)).items() if len(rows))

    def plan(self, raw: Path, split: str) -> SplitPlan:
        """One split; molecules in the order of the file."""
        flavour = find_flavour(raw)
        kept, excluded, notes = _list_kept(raw, flavour)
        rows = _choose(kept, split)
        per_part = _FILES_PER_PART if flavour.per_molecule else _MOLECULES_PER_PART
        plan = plan_rows(split, (), rows, rule=REFERENCE, count=len(kept), rows_per_part=per_part, notes=notes)
        parts = [replace(part, files=_part_files(raw, flavour, kept[rows], part)) for part in plan.parts]
        if split == "train":
            parts[0] = replace(parts[0], num_records=parts[0].num_records + excluded)
        return replace(plan, parts=tuple(parts))

    def read(self, raw: Path, part: Part) -> Iterator[Item]:
        """Molecules of the part; the first of the train split also accounts for those that are left out."""
        flavour = find_flavour(raw)
        kept, excluded, _ = _list_kept(raw, flavour)
        rows = RowRange.of(part)
        wanted = set(kept[rows.take(_choose(kept, part.split), len(kept), part.files[0])].tolist())
        if part.split == "train" and rows.start == 0 and excluded:
            yield Skipped("uncharacterized", excluded)
        waiting: list[Molecule] = []
        for item in flavour.read(wanted):
            if isinstance(item, Quarantined):
                yield item
                continue
            waiting.append(item)
            if len(waiting) == _MOLECULES_PER_BLOCK:
                yield self._pack(waiting, flavour)
                waiting = []
        if waiting:
            yield self._pack(waiting, flavour)

    def _pack(self, molecules: list[Molecule], flavour: Flavour) -> Block:
        values = np.array([molecule.properties for molecule in molecules])
        columns: dict[str, npt.NDArray[Any]] = {
            name: values[:, column] for column, name in enumerate((*PROPERTIES, *ATOMISATION))
        }
        for name, unit in _RAW_UNITS.items():
            columns[name] = convert(columns[name], unit, "eV", self.constants)
        for name in ("atomic_numbers", "positions", "charges"):
            columns[name] = np.concatenate([getattr(molecule, name) for molecule in molecules])
        columns["mulliken_charges"] = columns.pop("charges")
        natoms = np.array([len(molecule.atomic_numbers) for molecule in molecules])
        source_ids = np.array([flavour.source_id(molecule.index).encode() for molecule in molecules])
        return Block.from_columns(self.schema, natoms, source_ids, columns)


def _list_kept(raw: Path, flavour: Flavour) -> tuple[Rows, int, tuple[str, ...]]:
    """Numbers of the molecules that are not excluded, ascending; how many are excluded; what to say about it.

    Raises:
        MissingFileError: the whole data set is there, but not the list of what to exclude from it.
    """
    indices = np.sort(flavour.indices())
    try:
        path = find_file(raw, [EXCLUDED], "qm9")
    except MissingFileError:
        if len(indices) >= NUM_PUBLISHED:
            raise
        note = f"{EXCLUDED} is not there: all {len(indices)} molecules are kept, uncharacterised ones too"
        return indices, 0, (note,)
    kept = indices[~np.isin(indices, list(read_uncharacterized(path)))]
    return kept, len(indices) - len(kept), (f"{len(indices) - len(kept)} molecules of {EXCLUDED} left out",)


def _cut_kept(count: int) -> dict[str, Rows]:
    """The reference's split; sets of fewer than 20,000 molecules, which it does not provide for, are cut 80/10/10."""
    if count > 2 * _HELD_OUT:
        sizes = {"train": count - 2 * _HELD_OUT, "val": _HELD_OUT, "test": -1}
    else:
        sizes = {"train": count * 8 // 10, "val": count // 10, "test": -1}
    return cut(shuffled(count), sizes)


def _choose(kept: Rows, split: str) -> Rows:
    """Positions in `kept` that make up a split, ascending."""
    return np.sort(choose_rows(_cut_kept(len(kept)), split, "qm9"))


def _part_files(raw: Path, flavour: Flavour, numbers: Rows, part: Part) -> tuple[str, ...]:
    files = flavour.files
    if flavour.per_molecule:
        rows = RowRange.of(part)
        wanted = set(numbers[rows.start : rows.stop].tolist())
        files = tuple(path for path, number in zip(files, flavour.indices().tolist(), strict=True) if number in wanted)
    try:
        files = (*files, find_file(raw, [EXCLUDED], "qm9"))
    except MissingFileError:
        return tuple(relative(path, raw) for path in files)
    return tuple(relative(path, raw) for path in files)
