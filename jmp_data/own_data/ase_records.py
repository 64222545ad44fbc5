"""An `ase.Atoms` as a record: labels of every kind under their keys, forces raw on fixed atoms too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings, simplefilter

import numpy as np

from jmp_data.own_data.records import Array, Record

if TYPE_CHECKING:
    from ase import Atoms

ASE_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    RuntimeError,
    AssertionError,
    ArithmeticError,
    NotImplementedError,
    StopIteration,
)
"""What ASE's parsers raise on files that they cannot read."""

_GEOMETRY = ("numbers", "positions", "tags")
_FIXING = ("FixAtoms", "FixCartesian", "FixScaled")


@contextmanager
def quiet() -> Iterator[None]:
    """ASE warns about fields that do not matter here."""
    with catch_warnings():
        simplefilter("ignore")
        yield


def record_from_atoms(atoms: Atoms, row: int, label: str, *, pbc_stated: bool = True) -> Record:
    """A record; where two places hold the same key, calculator results come before `info` and arrays.

    Args:
        atoms: as read, calculator results included.
        row: place in the file.
        label: what the file calls it.
        pbc_stated: false where ASE made the periodicity up.
    """
    results = dict(getattr(atoms.calc, "results", None) or {})
    arrays = {name: value for name, value in atoms.arrays.items() if name not in _GEOMETRY}
    return Record(
        row=row,
        label=label,
        atomic_numbers=atoms.numbers,
        positions=atoms.positions,
        cell=atoms.cell.array,
        pbc=np.array(atoms.pbc) if pbc_stated else None,
        tags=atoms.get_tags() if atoms.has("tags") else None,
        fixed=fixed_atoms(atoms.constraints, len(atoms)),
        values=join_values({"": results, "info": atoms.info, "arrays": arrays}),
    )


def join_values(places: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """One mapping; a key that an earlier place holds already gets the name of its own place before a dot."""
    joined: dict[str, Any] = {}
    for place, values in places.items():
        for key, value in values.items():
            if value is not None:
                joined[f"{place}.{key}" if key in joined else str(key)] = value
    return joined


def fixed_atoms(constraints: Iterable[Any], natoms: int) -> Array | None:
    """(natoms,) bool: atoms that no step may move; None without constraints of that kind.

    Args:
        constraints: ASE constraint objects, or the dictionaries that databases keep.
        natoms: number of atoms.
    """
    fixed: Array | None = None
    for constraint in constraints:
        name = constraint.get("name") if isinstance(constraint, Mapping) else type(constraint).__name__
        if name not in _FIXING:
            continue
        entry = constraint if isinstance(constraint, Mapping) else constraint.todict()
        arguments = entry["kwargs"]
        if name == "FixAtoms" or bool(np.all(arguments["mask"])):
            fixed = np.zeros(natoms, bool) if fixed is None else fixed
            indices = np.asarray(arguments["indices"] if "indices" in arguments else arguments["a"])
            fixed[indices if indices.dtype == bool else indices.astype(np.int64)] = True
    return fixed
