"""What keys a sample of records has: how often, of which shape, and which of them could be energy, forces or stress."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jmp_data.own_data.records import Array, Record
from jmp_data.schema.fields import Level

Role = Literal["energy", "forces", "stress"]

_PLACES = ("data.", "info.", "arrays.", "pairs.", "properties.")
_NAMES: dict[Role, tuple[str, ...]] = {
    "energy": (
        *("energy", "ref_energy", "dft_energy", "energy_dft", "energy_ref", "total_energy", "energy_total"),
        *("dft_total_energy", "potential_energy", "uncorrected_total_energy", "wb97x_dz.energy", "e_total", "etot"),
        *("energies", "energy_u0", "u0", "e0", "e", "y", "free_energy", "corrected_total_energy"),
    ),
    "forces": (
        *("forces", "force", "ref_forces", "dft_forces", "forces_dft", "forces_ref", "wb97x_dz.forces", "f"),
        *("gradients", "gradient", "dft_total_gradient", "grad"),
    ),
    "stress": ("stress", "ref_stress", "dft_stress", "stresses", "virial", "virials", "ref_virials", "dft_virial"),
}
_NOT_TOTAL = ("per_atom", "peratom", "corr", "formation", "atomization", "hull", "tol", "cut")
_SIX_OR_NINE = (6, 9)
_MOST = 0.75  # share of a sample that tells what a label is
_NOTHING = ("", "none", "null", "nan", "n/a")
# In a sample of structures with three atoms each, a vector looks like one number for each atom.
_STRUCTURE_LEVEL = (
    *("dipole", "dipole_moment", "scf_dipole", "magmom", "stress", "virial", "voigt_stress", "voigt_virial"),
    "kpoints_mp_grid",
)


@dataclass(frozen=True, slots=True)
class KeyFacts:
    """One key in a sample.

    Attributes:
        key: as the file has it.
        count: records that have it.
        numeric: it is numbers in most of them.
        level: one value per structure, or per atom.
        shape: trailing shape of most records; None where it differs between them.
        integer: all values are integers or flags.
        flag: all values are flags, which is what a word in the comment of a plain XYZ becomes.
        varies: it is not the same in all records.
        example: one value as text.
    """

    key: str
    count: int
    numeric: bool
    level: Level
    shape: tuple[int, ...] | None
    integer: bool
    flag: bool
    varies: bool
    example: str

    @property
    def name(self) -> str:
        """The key without the place where it was found."""
        return plain_name(self.key)


def plain_name(key: str) -> str:
    """`data.energy_U0` → `energy_U0`."""
    for place in _PLACES:
        key = key.removeprefix(place)
    return key


def survey_keys(records: Sequence[Record]) -> dict[str, KeyFacts]:
    """The facts of every key, in the order in which keys occur."""
    keys = dict.fromkeys(key for record in records for key in record.values)
    return {key: _survey(key, [record for record in records if has_value(record, key)]) for key in keys}


def has_value(record: Record, key: str) -> bool:
    """Whether a record has something under a key; NaN is nothing, and neither is the word for it."""
    value = record.values.get(key)
    if is_nothing(value):
        return False
    array = as_array(value)
    return array.dtype.kind != "f" or not bool(np.isnan(array).all())


def is_nothing(value: object) -> bool:
    """Whether a value stands for none: `None`, or a word for it as texts have them."""
    return value is None or (isinstance(value, str) and value.strip().lower() in _NOTHING)


def _survey(key: str, records: Sequence[Record]) -> KeyFacts:
    if not records:
        return KeyFacts(key, 0, False, "structure", None, False, False, False, "nan")
    arrays = [as_array(record.values[key]) for record in records]
    numbers = [array.dtype.kind in "fiub" for array in arrays]
    # A few records with a text or another shape do not change what a label is: they are set aside when they are read.
    numeric = sum(numbers) >= _MOST * len(numbers)
    if numeric:
        records = [record for record, number in zip(records, numbers, strict=True) if number]
        arrays = [array for array in arrays if array.dtype.kind in "fiub"]
    per_atom = [array.shape[:1] == (record.natoms,) for array, record in zip(arrays, records, strict=True)]
    mostly = sum(per_atom) >= _MOST * len(per_atom)
    level: Level = "atom" if mostly and not _known_structure_level(key, arrays) else "structure"
    shapes = Counter(_trim(array, record.natoms, level) for array, record in zip(arrays, records, strict=True))
    usual, count = shapes.most_common(1)[0]
    first = arrays[0]
    return KeyFacts(
        key=key,
        count=len(records),
        numeric=numeric,
        level=level,
        shape=usual if count >= _MOST * len(arrays) else None,
        integer=numeric and all(array.dtype.kind in "iub" for array in arrays),
        flag=numeric and all(array.dtype.kind == "b" for array in arrays),
        varies=any(array.shape != first.shape or not np.array_equal(array, first) for array in arrays),
        example=" ".join(str(first.reshape(-1)[0] if first.size else "").split())[:30],
    )


def as_array(value: object) -> Array:
    """A value as an array; what is no array of numbers or text becomes an object."""
    try:
        return np.asarray(value)
    except ValueError:
        return np.array(None)


def _known_structure_level(key: str, arrays: Sequence[Array]) -> bool:
    """An array with as many entries as atoms can still belong to the structure: one atom, or a vector for three."""
    small = all(array.size == 1 for array in arrays)
    return small or plain_name(key).lower() in _STRUCTURE_LEVEL


def _trim(array: Array, natoms: int, level: Level) -> tuple[int, ...]:
    if level == "structure":
        return () if array.size == 1 else array.shape
    return array.shape[1:]


def find_role(role: Role, facts: dict[str, KeyFacts]) -> tuple[str, ...]:
    """Keys that could be the energy, the forces or the stress, the most likely first.

    A key outside every place (`energy` before `data.energy`) and one that more records have come first.
    """
    fitting = [fact for fact in facts.values() if fact.numeric and not fact.flag and _could_be(role, fact)]
    names = _NAMES[role]

    def rank(fact: KeyFacts) -> tuple[int, int, int]:
        name = fact.name.lower()
        place = names.index(name) if name in names else len(names)
        return (place, -fact.count, 0 if fact.key == fact.name else 1)

    return tuple(fact.key for fact in sorted(fitting, key=rank))


def _could_be(role: Role, fact: KeyFacts) -> bool:
    name = fact.name.lower()
    listed = name in _NAMES[role]
    if role == "energy":
        likely = "energy" in name and not any(word in name for word in _NOT_TOTAL)
        return fact.level == "structure" and fact.shape == () and (listed or (likely and not fact.integer))
    if role == "forces":
        likely = "force" in name or "grad" in name
        return fact.shape == (3,) and fact.level == "atom" and (listed or likely)
    size = int(np.prod(fact.shape)) if fact.shape else 0
    return size in _SIX_OR_NINE and (listed or "stress" in name or "virial" in name)
