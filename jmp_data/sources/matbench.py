"""MatBench v0.1: nine tasks on crystals, each one JSON table of pymatgen structures and one target.

A part is a task (`matbench:mp_gap`) and its splits are the five official folds. The table is read as a stream, for
unpacked it has up to a gigabyte; each split parses only its own rows. The four tasks on compositions have no structures
and are not among the parts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jmp_data.errors import RawFileError
from jmp_data.schema import Field, Schema
from jmp_data.schema.units import CODATA_2014, ConstantSet
from jmp_data.sources.crystal_blocks import CrystalGatherer
from jmp_data.sources.json_elements import list_elements, open_json, read_head
from jmp_data.sources.matbench_folds import fold_splits, plain_folds, stratified_folds
from jmp_data.sources.protocol import Item, Part, Quarantined, SplitPlan
from jmp_data.sources.pymatgen_json import StructureError, parse_json, parse_structure
from jmp_data.sources.raw_files import find_file, relative
from jmp_data.sources.splits import RowRange, choose_rows, plan_rows

Array = npt.NDArray[Any]

_STRUCTURE = "structure"
_ROWS_PER_PART = 200_000
_PLAIN_LABEL = re.compile(rb",\s*(true|false)\s*\]\Z")


@dataclass(frozen=True, slots=True)
class Task:
    """One task.

    Attributes:
        column: target column as published.
        target: the target as it is stored.
        stratified: folds keep the share of each class.
    """

    column: str
    target: Field
    stratified: bool = False


def _scalar(name: str, unit: str, description: str) -> Field:
    return Field(name, "structure", "float64", (), unit, "intensive", description)


TASKS = {
    "jdft2d": Task("exfoliation_en", _scalar("exfoliation_en", "meV/atom", "exfoliation energy")),
    "phonons": Task(
        "last phdos peak", _scalar("last_phdos_peak", "cm^-1", "highest peak of the phonon density of states")
    ),
    "dielectric": Task("n", _scalar("n", "", "refractive index")),
    "log_gvrh": Task("log10(G_VRH)", _scalar("log10_G_VRH", "log10(GPa)", "shear modulus, Voigt-Reuss-Hill average")),
    "log_kvrh": Task("log10(K_VRH)", _scalar("log10_K_VRH", "log10(GPa)", "bulk modulus, Voigt-Reuss-Hill average")),
    "perovskites": Task(
        "e_form",
        Field("e_form", "structure", "float64", (), "eV/cell", "extensive", "heat of formation of the five-atom cell"),
    ),
    "mp_gap": Task("gap pbe", _scalar("gap_pbe", "eV", "PBE band gap")),
    "mp_is_metal": Task(
        "is_metal", Field("is_metal", "structure", "bool", (), "", "label", "whether the PBE band gap is zero"), True
    ),
    "mp_e_form": Task("e_form", _scalar("e_form", "eV/atom", "formation energy per atom")),
}
"""The tasks, named without `matbench_`. `e_form` is per cell in one and per atom in the other, as published."""


class MatBench:
    """One task of MatBench v0.1.

    Splits: `fold0_test` to `fold4_test` as published; of each fold's rest, nine tenths are `fold0_train` and so on and
    one tenth is `fold0_val`, shuffled as the reference did.
    """

    parts = tuple(TASKS)

    def __init__(self, *, part: str, constants: ConstantSet = CODATA_2014) -> None:
        self.name = f"matbench:{part}"
        self.task = TASKS[part]
        self.required: tuple[str, ...] = (self.task.target.name,)
        self.file_name = f"matbench_{part}.json.gz"
        self.constants = constants  # targets keep their published units

    @property
    def schema(self) -> Schema:
        """Geometry and the one target of the task."""
        return Schema((self.task.target,))

    def splits(self, raw: Path) -> tuple[str, ...]:
        """Train, val and test of each fold that are not empty, fold by fold."""
        path = self._find(raw)
        return tuple(name for name, rows in self._fold_splits(path).items() if len(rows))

    def plan(self, raw: Path, split: str) -> SplitPlan:
        """One split of one fold, rows in the order of the table."""
        path = self._find(raw)
        splits = self._fold_splits(path)
        kind = "StratifiedKFold" if self.task.stratified else "KFold"
        rule = f"{kind}(5, shuffle, 18012019), the rest 90/10 by RandomState(42)"
        return plan_rows(
            split,
            (relative(path, raw),),
            choose_rows(splits, split, self.name),
            rule=rule,
            count=_count_rows(path),
            rows_per_part=_ROWS_PER_PART,
        )

    def read(self, raw: Path, part: Part) -> Iterator[Item]:
        """Rows of the part in the order of the table; what no structure can hold is quarantined."""
        path = raw / part.files[0]
        rows = choose_rows(self._fold_splits(path), part.split, self.name)
        wanted = set(RowRange.of(part).take(rows, _count_rows(path), str(path)).tolist())
        gatherer = CrystalGatherer(self.schema)
        columns = _read_columns(path)
        if self.task.column not in columns or _STRUCTURE not in columns:
            raise RawFileError(f"{path}: has columns {columns}, expected structure and {self.task.column!r}")
        structure, target = columns.index(_STRUCTURE), columns.index(self.task.column)
        width = len(str(_count_rows(path)))
        for row, text in _rows(path):
            if row not in wanted:
                continue
            record = f"mb-{self.name.partition(':')[2].replace('_', '-')}-{row + 1:0{width}d}"
            source_id = f"{path.name}#{record}"
            try:
                values = _parse_row(text, len(columns))
                crystal = parse_structure(values[structure])
                targets = {self.task.target.name: _parse_target(values[target], self.task)}
            except StructureError as error:
                yield Quarantined(source_id, error.reason, f"{source_id}: {error}", text.decode("utf-8", "replace"))
                continue
            yield from gatherer.add(crystal, targets, source_id)
        yield from gatherer.flush()

    def _find(self, raw: Path) -> Path:
        return find_file(raw, [self.file_name, self.file_name.removesuffix(".gz")], self.name)

    def _fold_splits(self, path: Path) -> dict[str, Array]:
        if not self.task.stratified:
            return fold_splits(plain_folds(_count_rows(path)))
        status = path.stat()
        return fold_splits(stratified_folds(_labels(path, status.st_size, status.st_mtime_ns, self.task.column)))


def _read_columns(path: Path) -> list[str]:
    with open_json(path) as file:
        head, _ = read_head(file, "data", path)
    return _parse_head(head, path)[0]


def _parse_head(head: bytes, path: Path) -> tuple[list[str], int | None]:
    """Columns, and the number of rows where the index comes before the rows."""
    try:
        table = parse_json(head + b'"data": []}')
    except ValueError as error:
        raise RawFileError(f"{path}: is no table in pandas' split orientation ({error})") from None
    columns = table.get("columns")
    if not isinstance(columns, list):
        raise RawFileError(f"{path}: has no columns before its data; it has {', '.join(table)}")
    index = table.get("index")
    return [str(name) for name in columns], len(index) if isinstance(index, list) else None


def _rows(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number and text of each row."""
    with open_json(path) as file:
        head, begun = read_head(file, "data", path)
        _, count = _parse_head(head, path)
        row = -1
        for row, text in enumerate(list_elements(file, path, begun)):
            yield row, text
        if count is not None and row + 1 != count:
            raise RawFileError(f"{path}: has {row + 1} rows, but its index has {count}; get the file again")


def _count_rows(path: Path) -> int:
    status = path.stat()
    return _count(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=16)
def _count(path: Path, size: int, modified: int) -> int:
    """Rows of a table, from its index where that comes first."""
    del size, modified
    with open_json(path) as file:
        _, count = _parse_head(read_head(file, "data", path)[0], path)
    return sum(1 for _ in _rows(path)) if count is None else count


@lru_cache(maxsize=4)
def _labels(path: Path, size: int, modified: int, column: str) -> Array:
    """Class of each row: the folds of a classification task follow from all of them."""
    del size, modified
    columns = _read_columns(path)
    if column not in columns:
        raise RawFileError(f"{path}: has columns {columns}, expected structure and {column!r}")
    position = columns.index(column)
    labels = []
    for _, text in _rows(path):
        match = _PLAIN_LABEL.search(text[-32:]) if position == len(columns) - 1 else None
        labels.append(match[1] == b"true" if match else bool(_parse_row(text, len(columns))[position]))
    return np.array(labels, bool)


def _parse_row(text: bytes, width: int) -> list[Any]:
    try:
        values = parse_json(text)
    except ValueError as error:
        raise StructureError(f"is no JSON ({error})", "malformed_record") from None
    if not isinstance(values, list) or len(values) != width:
        raise StructureError(f"is no row of {width} values", "malformed_record")
    return values


def _parse_target(value: Any, task: Task) -> float | bool:
    if task.target.dtype == "bool":
        if not isinstance(value, bool):
            raise StructureError(f"{task.column} is {value!r}, not true or false", "no_target")
        return value
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise StructureError(f"{task.column} is {value!r}", "no_target")
    return float(value)
