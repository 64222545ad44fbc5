"""Units: named constant sets with their numbers written out, and conversion between the units that sources use.

The installed ASE must not decide what a hartree is: sets of CODATA differ by 1e-8, which is 2e-4 eV on a total energy
of 25,000 eV, and the constants of the original JMP code differ by 2e-5. The name of the set goes into every output
manifest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from jmp_data.errors import ManifestError

Value = TypeVar("Value", float, npt.NDArray[np.float64])

_POWERS = {"²": 2, "³": 3, "^2": 2, "^3": 3, "": 1}
_FACTOR = re.compile(r"([A-Za-zÅ][A-Za-z0]*)(²|³|\^2|\^3)?")


@dataclass(frozen=True, slots=True)
class ConstantSet:
    """What each non-native unit is worth, in eV, Å and elementary charges.

    Attributes:
        name: recorded in every output manifest.
        hartree: eV.
        bohr: Å.
        kcal_per_mol: eV.
        kj_per_mol: eV.
        debye: e·Å.
        gigapascal: eV/Å³.
        inverse_centimetre: eV.
        rydberg: eV.
        source_hartree: (source name, eV) pairs where a source is converted with another hartree than the rest.
    """

    name: str
    hartree: float
    bohr: float
    kcal_per_mol: float
    kj_per_mol: float
    debye: float
    gigapascal: float
    inverse_centimetre: float
    rydberg: float
    source_hartree: tuple[tuple[str, float], ...] = ()

    def for_source(self, source: str) -> ConstantSet:
        """The set that one source is converted with."""
        return replace(self, hartree=dict(self.source_hartree).get(source, self.hartree), source_hartree=())


CODATA_2014 = ConstantSet(
    name="codata2014",
    hartree=27.211386024367243,
    bohr=0.5291772105638411,
    kcal_per_mol=0.04336410390059322,
    kj_per_mol=0.010364269574711572,
    debye=0.20819433442462576,
    gigapascal=0.006241509125883258,
    inverse_centimetre=0.0001239841973964072,
    rydberg=13.605693012183622,
)
"""ASE's default, CODATA 2014."""

JMP_REFERENCE = replace(
    CODATA_2014,
    name="jmp_reference",
    hartree=1 / 0.0367493,
    bohr=0.529177,
    kcal_per_mol=1 / 23.061,
    # The original converted ANI-1x with ASE's hartree, and everything else with its own rounded constants.
    source_hartree=(("ani1x", CODATA_2014.hartree),),
)
"""The rounded constants of the original JMP code, to reproduce its labels to the digit."""

CONSTANT_SETS: Mapping[str, ConstantSet] = MappingProxyType({s.name: s for s in (CODATA_2014, JMP_REFERENCE)})


def get_constants(name: str) -> ConstantSet:
    """The constant set of that name.

    Raises:
        ManifestError: there is no such set.
    """
    try:
        return CONSTANT_SETS[name]
    except KeyError:
        raise ManifestError(f"no constant set {name!r}; choose one of {', '.join(CONSTANT_SETS)}") from None


def convert(value: Value, from_unit: str, to_unit: str, constants: ConstantSet = CODATA_2014) -> Value:
    """Convert a value or an array between units of the same dimension.

    Units are products and quotients of eV, meV, hartree, rydberg, kcal/mol, kJ/mol, cm^-1, Å, bohr, e, debye and GPa,
    as in `hartree/bohr`, `kcal/mol/Å`, `eV/Å³` or `e·Å`.

    Args:
        value: number, or float array; float32 arrays are converted in float64.
        from_unit: unit of `value`.
        to_unit: unit of the result.
        constants: what the non-native units are worth.

    Returns:
        The value in `to_unit`, in float64.

    Raises:
        ManifestError: unknown unit, or units of different dimensions.
    """
    from_factor, from_dimension = _parse_unit(from_unit, constants)
    to_factor, to_dimension = _parse_unit(to_unit, constants)
    if from_dimension != to_dimension:
        raise ManifestError(f"cannot convert {from_unit!r} to {to_unit!r}: they measure different things")
    factor = from_factor / to_factor
    return value * factor if isinstance(value, float | int) else np.multiply(value, factor, dtype=np.float64)


Dimension = tuple[int, int, int]
"""Powers of energy, length and charge."""


def _symbols(constants: ConstantSet) -> dict[str, tuple[float, Dimension]]:
    energy, length, charge, pressure = (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, -3, 0)
    return {
        "eV": (1.0, energy),
        "meV": (1e-3, energy),
        "hartree": (constants.hartree, energy),
        "rydberg": (constants.rydberg, energy),
        "kcalpermol": (constants.kcal_per_mol, energy),
        "kJpermol": (constants.kj_per_mol, energy),
        "percm": (constants.inverse_centimetre, energy),
        "Å": (1.0, length),
        "bohr": (constants.bohr, length),
        "a0": (constants.bohr, length),
        "e": (1.0, charge),
        "debye": (constants.debye, (0, 1, 1)),
        "GPa": (constants.gigapascal, pressure),
    }


@lru_cache(maxsize=256)
def _parse_unit(unit: str, constants: ConstantSet) -> tuple[float, Dimension]:
    symbols = _symbols(constants)
    # These contain a slash or a sign of their own, so they are made single words first.
    text = unit.replace("kcal/mol", "kcalpermol").replace("kJ/mol", "kJpermol").replace("cm^-1", "percm")
    factor, dimension = 1.0, (0, 0, 0)
    for position, quotient in enumerate(text.split("/")):
        sign = 1 if position == 0 else -1
        for word in quotient.split("·"):
            match = _FACTOR.fullmatch(word.strip())
            if match is None or match[1] not in symbols:
                raise ManifestError(f"unknown unit {unit!r}; known are kcal/mol, kJ/mol, cm^-1, {', '.join(symbols)}")
            power = sign * _POWERS[match[2] or ""]
            value, powers = symbols[match[1]]
            factor *= value**power
            dimension = (
                dimension[0] + power * powers[0],
                dimension[1] + power * powers[1],
                dimension[2] + power * powers[2],
            )
    return factor, dimension
