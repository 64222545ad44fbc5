"""QMOF: metal-organic frameworks with DFT properties, from its two JSON lists or from its table and CIF files.

Structures and properties are joined by `qmof_id`, never by position: lists of different releases differ by single
entries, and a derived table that was joined by position gave every structure its neighbour's band gap.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jmp_data.schema import Field, Schema
from jmp_data.schema.fields import ENERGY
from jmp_data.schema.units import CODATA_2014, ConstantSet
from jmp_data.sources.crystal_blocks import CrystalGatherer
from jmp_data.sources.protocol import Item, Part, Quarantined, SplitPlan
from jmp_data.sources.qmof_flavours import SITE_PROPERTIES, Properties, find_flavour
from jmp_data.sources.raw_files import relative
from jmp_data.sources.splits import REFERENCE, RowRange, choose_rows, cut, plan_rows, shuffled

Array = npt.NDArray[Any]

THEORIES = ("pbe", "hle17", "hse06_10hf", "hse06")
_ROWS_PER_PART = 50_000
_FILES_PER_PART = 2_000


def _scalar(name: str, unit: str, kind: Any, description: str) -> Field:
    return Field(name, "structure", "float64", (), unit, kind, description)


def _theory_targets(theory: str) -> dict[str, Field]:
    """Published name → target for one level of theory; PBE's targets have plain names."""
    suffix, at = ("", "") if theory == "pbe" else (f"_{theory}", f", {theory.upper()} on the PBE structure")
    targets = {
        "bandgap": _scalar(f"bandgap{suffix}", "eV", "intensive", f"band gap{at}"),
        "cbm": _scalar(f"cbm{suffix}", "eV", "intensive", f"conduction band minimum{at}"),
        "vbm": _scalar(f"vbm{suffix}", "eV", "intensive", f"valence band maximum{at}"),
        "net_magmom": _scalar(f"net_magmom{suffix}", "µB", "extensive", f"net magnetic moment of the cell{at}"),
        "energy_total": ENERGY if theory == "pbe" else _scalar(f"energy{suffix}", "eV", "extensive", f"energy{at}"),
    }
    if theory == "pbe":
        targets["energy_vdw"] = _scalar("energy_vdw", "eV", "extensive", "part of the energy that is D3(BJ) dispersion")
    return {f"outputs.{theory}.{name}": target for name, target in targets.items()}


_TARGETS = {
    **{name: target for theory in THEORIES for name, target in _theory_targets(theory).items()},
    "info.pld": _scalar("pld", "Å", "intensive", "pore-limiting diameter"),
    "info.lcd": _scalar("lcd", "Å", "intensive", "largest cavity diameter"),
}
"""Flattened published name → target."""
_SITE_TARGETS = tuple(
    Field(name, "atom", "float32", (), unit, "intensive", description)
    for name, unit, description in (
        ("ddec_charges", "e", "PBE DDEC6 atomic charges"),
        ("cm5_charges", "e", "PBE CM5 atomic charges"),
        ("magmoms", "µB", "PBE magnetic moments"),
    )
)


class QMOF:
    """QMOF at PBE-D3(BJ), with single points of other functionals where they were made.

    Splits: `train`, `val` and `test` as the reference made them.
    """

    name = "qmof"
    required: tuple[str, ...] = ("bandgap",)
    schema = Schema((ENERGY, *(target for target in _TARGETS.values() if target is not ENERGY), *_SITE_TARGETS))

    def __init__(self, *, constants: ConstantSet = CODATA_2014) -> None:
        self.constants = constants  # the files are in eV and Å already

    def splits(self, raw: Path) -> tuple[str, ...]:
        """The reference's splits that are not empty."""
        count = len(find_flavour(raw).properties())
        return tuple(name for name, rows in _reference_splits(count).items() if len(rows))

    def plan(self, raw: Path, split: str) -> SplitPlan:
        """One split. Structures without properties are accounted for with the train split."""
        flavour = find_flavour(raw)
        properties = flavour.properties()
        rows = _choose(len(properties), split)
        unmatched = len(flavour.structure_ids() - {entry.qmof_id for entry in properties})
        per_part = _FILES_PER_PART if flavour.per_structure else _ROWS_PER_PART
        notes = [f"{unmatched} structures have no properties"] if unmatched else []
        plan = plan_rows(split, (), rows, rule=REFERENCE, count=len(properties), rows_per_part=per_part, notes=notes)
        parts = []
        for number, part in enumerate(plan.parts):
            wanted = _ids(properties, rows[RowRange.of(part).start : RowRange.of(part).stop])
            extra = unmatched if split == "train" and number == 0 else 0
            files = tuple(relative(path, raw) for path in flavour.files_of(wanted))
            parts.append(replace(part, files=files, num_records=part.num_records + extra))
        return replace(plan, parts=tuple(parts))

    def read(self, raw: Path, part: Part) -> Iterator[Item]:
        """Structures of the part in the order of the structure file, then what has no structure."""
        flavour = find_flavour(raw)
        properties = flavour.properties()
        stretch = RowRange.of(part)
        rows = stretch.take(_choose(len(properties), part.split), len(properties), part.files[0])
        waiting = {properties[row].qmof_id: properties[row] for row in rows.tolist()}
        unmatched: set[str] = set()
        if part.split == "train" and stretch.start == 0:
            unmatched = set(flavour.structure_ids()) - {entry.qmof_id for entry in properties}
        gatherer = CrystalGatherer(self.schema)
        for found in flavour.structures({*waiting, *unmatched}):
            if found.qmof_id in unmatched:
                message = f"{found.source_id}: has no properties in {flavour.property_file.name}"
                yield Quarantined(found.source_id, "no_properties", message, found.text())
                continue
            entry = waiting.pop(found.qmof_id)
            if found.crystal is None:
                yield Quarantined(found.source_id, found.reason, f"{found.source_id}: {found.message}", found.text())
                continue
            natoms = len(found.crystal.atomic_numbers)
            sites = {name: found.sites.get(name, np.full(natoms, np.nan)) for name in SITE_PROPERTIES}
            targets = {target.name: entry.values.get(name, np.nan) for name, target in _TARGETS.items()}
            yield from gatherer.add(found.crystal, {**targets, **sites}, found.source_id)
        yield from gatherer.flush()
        for entry in waiting.values():
            source_id = f"{flavour.property_file.name}#{entry.qmof_id}"
            yield Quarantined(
                source_id, "no_structure", f"{source_id}: has no structure in the files", str(entry.values)
            )


def _reference_splits(count: int) -> dict[str, Array]:
    train, test = int(0.8 * count), int(0.1 * count)
    return cut(shuffled(count), {"train": train, "val": count - train - test, "test": test})


def _choose(count: int, split: str) -> Array:
    return np.sort(choose_rows(_reference_splits(count), split, "qmof"))


def _ids(properties: tuple[Properties, ...], rows: Array) -> frozenset[str]:
    return frozenset(properties[row].qmof_id for row in rows.tolist())
