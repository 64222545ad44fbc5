"""Which unit a number is in, judged by physics: total energies of elements, lengths of bonds.

Units are not in most files. Codes that treat all electrons give total energies that no other unit can imitate: carbon
is close to -38 hartree, and 27.2 or 627.5 times that is another unit; only the valence energies of GFN2-xTB in eV pass
for all-electron ones in rydberg with some molecules, not with several. Codes with pseudopotentials give energies that
depend on the potential, and then nothing can be said; the verdict admits it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from jmp_data.own_data.records import Record, formula
from jmp_data.schema.units import CODATA_2014

Array = npt.NDArray[np.float64]

_TOTAL_ENERGIES = (
    *(-0.5, -2.9, -7.5, -14.7, -24.6, -37.8, -54.6, -75.1, -99.7, -128.9, -162.3, -200.1, -242.4, -289.4, -341.3),
    *(-398.1, -460.1, -527.5, -599.9, -677.5, -760.7, -849.4, -943.9, -1044.4, -1150.9, -1263.6, -1382.6, -1508.2),
    *(-1640.4, -1779.3, -1924.8, -2077.0, -2235.9, -2401.6, -2574.1, -2753.9),
)
"""All-electron total energies of the atoms H to Kr, hartree, to four digits or so."""

ENERGY_UNITS = {
    "eV": 1.0,
    "hartree": CODATA_2014.hartree,
    "kcal/mol": CODATA_2014.kcal_per_mol,
    "kJ/mol": CODATA_2014.kj_per_mol,
    "rydberg": CODATA_2014.rydberg,
    "meV": 1e-3,
}
"""Unit → eV."""
_TOLERANCE = 0.05  # bonds change a total energy by at most two percent; hydrogen alone by more
_REFERENCED = 1.0  # eV per atom; total energies of any code are larger
_VALENCE = 130.0  # eV per atom; GFN2-xTB has at most 126, for fluorine
_MOST_ATOMS = 200
_BOHR_RATIO, _NANOMETRE_RATIO = (1.45, 2.5), (0.05, 0.2)


@dataclass(frozen=True, slots=True)
class UnitVerdict:
    """A unit and why.

    Attributes:
        unit: the best guess.
        certain: the numbers exclude every other unit.
        evidence: for people.
    """

    unit: str
    certain: bool
    evidence: str


def judge_energy_unit(records: Sequence[Record], energies: Array) -> UnitVerdict:
    """The unit of total energies.

    Args:
        records: some structures.
        energies: (n,) their energies in the unit of the file.
    """
    expected = np.array([_expected_energy(record) for record in records])
    natoms = np.array([record.natoms for record in records])
    per_atom = float(np.median(energies / natoms))
    known = np.isfinite(expected) & (expected < 0)
    shown = f"{energies[0]:,.4f} for {_describe(records[0])}"
    if known.any():
        ratios = energies[known] / expected[known]  # the unit of the file, measured in hartree
        ratio = float(np.median(ratios))
        for unit, value in ENERGY_UNITS.items():
            fit = ratio * value / ENERGY_UNITS["hartree"]
            if abs(fit - 1) < _TOLERANCE:
                total = expected[known][0]
                if unit == "rydberg" and abs(per_atom) < _VALENCE and len(set(expected[known])) == 1:
                    return UnitVerdict(
                        "eV",
                        False,
                        f"{shown} may be the valence energy of a semi-empirical code in eV, or the sum of all-electron "
                        f"atoms in rydberg, {2 * total:.1f}; structures of one composition cannot tell",
                    )
                return UnitVerdict(
                    unit, True, f"{shown} fits the sum of all-electron atoms, {total:.1f} hartree, in {unit}"
                )
    if abs(per_atom) < _REFERENCED:
        return UnitVerdict(
            "eV",
            False,
            f"{shown}, median {per_atom:.3f} per atom, is too little for a total energy; no unit can be excluded",
        )
    return UnitVerdict(
        "eV",
        False,
        f"{shown}, median {per_atom:.2f} per atom, is no all-electron total in any unit; plane-wave codes give eV",
    )


def is_referenced(records: Sequence[Record], energies_ev: Array) -> bool:
    """Whether energies are too small to be totals: adsorption, formation or atomisation energies."""
    natoms = np.array([record.natoms for record in records])
    return bool(np.median(np.abs(energies_ev / natoms)) < _REFERENCED)


def judge_length_unit(records: Sequence[Record]) -> UnitVerdict:
    """The unit of positions, from the shortest distance in each structure over the sum of the two covalent radii."""
    ratios = [ratio for record in records if (ratio := _shortest_bond(record)) is not None]
    if not ratios:
        return UnitVerdict("Å", False, "no two atoms to measure a distance between")
    ratio = float(np.median(ratios))
    shown = f"the shortest distance is {ratio:.2f} times the sum of covalent radii (median of {len(ratios)} structures)"
    for unit, (low, high) in {"bohr": _BOHR_RATIO, "nm": _NANOMETRE_RATIO}.items():
        if low < ratio < high:
            return UnitVerdict(unit, True, f"{shown} if read as Å, as in a file in {unit}")
    return UnitVerdict("Å", 0.5 < ratio < _BOHR_RATIO[0], f"{shown}, as in a file in Å")


def _expected_energy(record: Record) -> float:
    """Sum of atomic total energies, hartree; NaN beyond the table."""
    numbers = np.asarray(record.atomic_numbers, np.int64)
    if len(numbers) == 0 or numbers.min() < 1 or numbers.max() > len(_TOTAL_ENERGIES) or numbers.max() == 1:
        return float("nan")
    return float(np.array(_TOTAL_ENERGIES)[numbers - 1].sum())


def _describe(record: Record) -> str:
    return f"{formula(record.atomic_numbers)} ({record.natoms} atoms)"


def _shortest_bond(record: Record) -> float | None:
    from ase.data import covalent_radii

    if record.natoms < 2:
        return None
    positions = np.asarray(record.positions, np.float64)
    numbers = np.clip(np.asarray(record.atomic_numbers, np.int64), 0, len(covalent_radii) - 1)[:_MOST_ATOMS]
    shifts = positions[None, :_MOST_ATOMS] - positions[:_MOST_ATOMS, None]
    # Images along the lattice vectors matter for small cells; a large cell has its bonds inside.
    cell = np.asarray(record.cell, np.float64)
    images = np.concatenate([np.zeros((1, 3)), cell, -cell]) if cell.any() else np.zeros((1, 3))
    distances = np.linalg.norm(shifts[None] + images[:, None, None], axis=-1)
    distances[distances < 1e-6] = np.inf
    radii = covalent_radii[numbers]
    ratio = float((distances / (radii[None] + radii[:, None])[None]).min())
    return ratio if np.isfinite(ratio) else None
