"""CIF files without symmetry, as pymatgen writes them: cell parameters and one table of sites.

A general CIF reader takes tens of milliseconds a file; this layout needs none. What lies outside it is refused.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt
from ase.data import atomic_numbers

from jmp_data.sources.pymatgen_json import Crystal, StructureError

Array = npt.NDArray[Any]

_CELL = (
    "_cell_length_a",
    "_cell_length_b",
    "_cell_length_c",
    "_cell_angle_alpha",
    "_cell_angle_beta",
    "_cell_angle_gamma",
)
_PREFIX = "_atom_site_"
_NEEDED = ("type_symbol", "fract_x", "fract_y", "fract_z")
_SYMBOL = re.compile(r"([A-Z][a-z]?)\d*[+-]?")
_IDENTITY = "x,y,z"
_MISSING = {"?": "nan", ".": "nan"}


def parse_cif(text: str) -> tuple[Crystal, dict[str, Array]]:
    """Read one structure.

    Args:
        text: the file, one data block in space group P 1.

    Returns:
        The crystal, its lattice vectors laid as pymatgen lays them (c along z, a in the xz plane), and the further
        numeric columns of the site table by their names without `_atom_site_`, each (natoms,), NaN where they hold `?`.

    Raises:
        StructureError: the file has symmetry, disorder or another layout.
    """
    lines = [line.strip() for line in text.splitlines()]
    try:
        cell = lattice_vectors(*(_cell_parameter(lines, name) for name in _CELL))
        _check_symmetry(lines)
        columns = _read_sites(lines)
        missing = [name for name in _NEEDED if name not in columns]
        if missing:
            raise StructureError(f"has no {_PREFIX}{missing[0]}", "no_structure")
        fractions = np.stack([_numbers(columns[name]) for name in _NEEDED[1:]], axis=1)
        if "occupancy" in columns and not (_numbers(columns["occupancy"]) == 1).all():
            raise StructureError("has partly occupied sites", "disordered_site")
        elements = np.array([_element(symbol) for symbol in columns["type_symbol"]], np.uint8)
    except StructureError:
        raise
    except ValueError as error:
        raise StructureError(f"is no CIF of this layout ({error})", "no_structure") from None
    known = {*_NEEDED, "label", "symmetry_multiplicity", "occupancy"}
    others = {name: _numbers(words) for name, words in columns.items() if name not in known}
    return Crystal(elements, fractions @ cell, cell, np.ones(3, bool)), others


def lattice_vectors(a: float, b: float, c: float, alpha: float, beta: float, gamma: float) -> Array:
    """Lattice vectors as rows, c along z and a in the xz plane, as pymatgen lays them.

    Args:
        a: length, Å.
        b: length, Å.
        c: length, Å.
        alpha: angle between b and c, degrees.
        beta: angle between a and c, degrees.
        gamma: angle between a and b, degrees.

    Returns:
        (3, 3) float64, Å.
    """
    cos_alpha, cos_beta, cos_gamma = np.cos(np.radians([alpha, beta, gamma]))
    sin_alpha, sin_beta = np.sin(np.radians([alpha, beta]))
    cos_star = np.clip((cos_alpha * cos_beta - cos_gamma) / (sin_alpha * sin_beta), -1, 1)
    sin_star = np.sqrt(1 - cos_star**2)
    return np.array(
        [
            [a * sin_beta, 0.0, a * cos_beta],
            [-b * sin_alpha * cos_star, b * sin_alpha * sin_star, b * cos_alpha],
            [0.0, 0.0, c],
        ]
    )


def _cell_parameter(lines: list[str], name: str) -> float:
    for line in lines:
        if line.startswith(name):
            return float(line[len(name) :])
    raise StructureError(f"has no {name}", "no_structure")


def _check_symmetry(lines: list[str]) -> None:
    """Refuse anything but the identity: atoms that symmetry would add are not in the table."""
    start = next((at for at, line in enumerate(lines) if line.startswith("_symmetry_equiv_pos_as_xyz")), None)
    if start is None:
        return
    operations = []
    for line in lines[start + 1 :]:
        if not line or line.startswith(("loop_", "_", "data_", "#")):
            break
        operations.append(re.sub(r"^\d+\s|['\"\s]", "", line))
    if operations != [_IDENTITY]:
        raise StructureError(f"has symmetry operations {operations[:3]}; only P 1 is read", "symmetry")


def _read_sites(lines: list[str]) -> dict[str, tuple[str, ...]]:
    """Columns of the table of sites, as words."""
    names = [line.removeprefix(_PREFIX) for line in lines if line.startswith(_PREFIX)]
    start = next((at for at, line in enumerate(lines) if line.startswith(_PREFIX)), 0) + len(names)
    rows = []
    for line in lines[start:]:
        if not line or line.startswith(("loop_", "_", "data_", "#")):
            break
        rows.append(line.split())
    if not rows:
        raise StructureError("has no sites", "no_structure")
    if any(len(row) != len(names) for row in rows):
        raise StructureError(f"has rows of sites that do not have {len(names)} columns", "no_structure")
    return dict(zip(names, zip(*rows, strict=True), strict=True))


def _numbers(words: tuple[str, ...]) -> Array:
    return np.array([float(_MISSING.get(word, word)) for word in words])


def _element(symbol: str) -> int:
    match = _SYMBOL.fullmatch(symbol)
    if match is None or match[1] not in atomic_numbers:
        raise StructureError(f"holds {symbol!r}, which is no element", "no_element")
    return int(atomic_numbers[match[1]])
