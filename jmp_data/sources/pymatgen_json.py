"""Structures from pymatgen's JSON, straight to arrays: building its objects would take most of the time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
from ase.data import atomic_numbers

Array = npt.NDArray[Any]

_ELEMENTS: dict[str, int] = {symbol: number for symbol, number in atomic_numbers.items() if number > 0} | {
    "D": 1,
    "T": 1,
}
_FULL = 1e-8


class StructureError(ValueError):
    """A structure that no record can hold.

    Attributes:
        reason: short reason code.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True, eq=False)
class Crystal:
    """A periodic structure.

    Attributes:
        atomic_numbers: (natoms,) uint8.
        positions: (natoms, 3) float64, Å.
        cell: (3, 3) float64, Å, rows are lattice vectors.
        pbc: (3,) bool.
    """

    atomic_numbers: Array
    positions: Array
    cell: Array
    pbc: Array


def parse_json(text: bytes) -> Any:
    """A JSON value; NaN and infinities, which Python writes though JSON has none, are read too.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return json.loads(text)


def parse_structure(entry: Mapping[str, Any]) -> Crystal:
    """Read the dictionary of a `pymatgen` structure.

    Elements come from each site's species, never from its label, which may be decorated (`C0+`). Positions are
    fractional coordinates times the lattice, as pymatgen itself makes them.

    Args:
        entry: with `lattice` and `sites`.

    Raises:
        StructureError: a site is shared by several species or partly empty, or holds no element; or the dictionary is
            no structure.
    """
    try:
        lattice, sites = entry["lattice"], entry["sites"]
        cell = np.array(lattice["matrix"], np.float64).reshape(3, 3)
        pbc = np.array(lattice.get("pbc", (True, True, True)), bool).reshape(3)
        fractions = np.array([site["abc"] for site in sites], np.float64).reshape(len(sites), 3)
        numbers = [_element(site["species"], number) for number, site in enumerate(sites)]
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise StructureError(f"is no pymatgen structure ({type(error).__name__}: {error})", "no_structure") from None
    except StructureError:
        raise
    except ValueError as error:
        raise StructureError(f"is no pymatgen structure ({error})", "no_structure") from None
    return Crystal(np.array(numbers, np.uint8), fractions @ cell, cell, pbc)


def _element(species: Any, site: int) -> int:
    first = species[0]
    if len(species) != 1 or abs(first.get("occu", 1) - 1) > _FULL:
        shares = ", ".join(f"{one['element']} {one.get('occu', 1):g}" for one in species)
        raise StructureError(f"site {site} is disordered: {shares}", "disordered_site")
    number = _ELEMENTS.get(first["element"])
    if number is None:
        raise StructureError(f"site {site} holds {first['element']!r}, which is no element", "no_element")
    return number
