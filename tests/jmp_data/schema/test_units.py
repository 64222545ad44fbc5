"""Constant sets and unit conversion, against numbers written out by hand and against ASE."""

from __future__ import annotations

import ase.units
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jmp_data.errors import ManifestError
from jmp_data.schema.units import CODATA_2014, CONSTANT_SETS, JMP_REFERENCE, convert, get_constants

ENERGIES = ["eV", "meV", "hartree", "rydberg", "kcal/mol", "kJ/mol", "cm^-1"]
FORCES = ["eV/Å", "hartree/bohr", "hartree/Å", "kcal/mol/Å", "eV/bohr"]


def test_default_set_is_ases_default() -> None:
    units = ase.units.create_units("2014")
    assert units["Hartree"] == CODATA_2014.hartree
    assert units["Bohr"] == CODATA_2014.bohr
    assert units["kcal"] / units["mol"] == CODATA_2014.kcal_per_mol
    assert units["kJ"] / units["mol"] == CODATA_2014.kj_per_mol
    assert units["Debye"] == CODATA_2014.debye
    assert units["GPa"] == CODATA_2014.gigapascal
    assert units["invcm"] == CODATA_2014.inverse_centimetre
    assert units["Rydberg"] == CODATA_2014.rydberg


def test_reference_set_is_the_originals() -> None:
    # 1 eV = 23.061 kcal/mol, 1 eV = 0.0367493 hartree, 1 bohr = 0.529177 Å.
    assert convert(23.061, "kcal/mol", "eV", JMP_REFERENCE) == pytest.approx(1.0, abs=1e-15)
    assert convert(0.0367493, "hartree", "eV", JMP_REFERENCE) == pytest.approx(1.0, abs=1e-15)
    assert convert(1.0, "bohr", "Å", JMP_REFERENCE) == 0.529177


def test_reference_set_converts_ani1x_with_ases_hartree() -> None:
    assert JMP_REFERENCE.for_source("ani1x").hartree == CODATA_2014.hartree
    assert JMP_REFERENCE.for_source("spice").hartree == 1 / 0.0367493


@pytest.mark.parametrize(
    ("value", "from_unit", "to_unit", "expected"),
    [
        (-1.0, "hartree", "eV", -27.211386024367243),
        (1.0, "hartree/bohr", "eV/Å", 51.422067090480645),
        (1.0, "hartree/Å", "eV/Å", 27.211386024367243),
        (2.0, "kcal/mol/Å", "eV/Å", 0.08672820780118644),
        (1.0, "GPa", "eV/Å³", 0.006241509125883258),
        (1.0, "eV/Å^3", "eV/Å³", 1.0),
        (1.0, "debye", "e·Å", 0.20819433442462576),
        (250.0, "meV", "eV", 0.25),
        (1.0, "a0^2", "Å²", 0.2800285201801279),
    ],
)
def test_hand_computed_values(value: float, from_unit: str, to_unit: str, expected: float) -> None:
    assert convert(value, from_unit, to_unit) == pytest.approx(expected, rel=1e-12)


@given(
    value=st.floats(-1e6, 1e6),
    units=st.one_of(
        st.tuples(st.sampled_from(ENERGIES), st.sampled_from(ENERGIES)),
        st.tuples(st.sampled_from(FORCES), st.sampled_from(FORCES)),
    ),
    constants=st.sampled_from(list(CONSTANT_SETS.values())),
)
def test_there_and_back_is_the_same(value: float, units: tuple[str, str], constants: object) -> None:
    there, back = units
    assert convert(convert(value, there, back, constants), back, there, constants) == pytest.approx(value, rel=1e-14)  # type: ignore[arg-type]


def test_float32_arrays_convert_in_float64() -> None:
    value = np.float32([-406.5])
    result = convert(value, "hartree", "eV")  # type: ignore[type-var]
    assert result.dtype == np.float64
    assert result[0] == -406.5 * 27.211386024367243


@pytest.mark.parametrize(("from_unit", "to_unit"), [("hartree", "Å"), ("furlong", "Å"), ("", "eV"), ("eV/", "eV")])
def test_nonsense_is_refused(from_unit: str, to_unit: str) -> None:
    with pytest.raises(ManifestError, match=r"unit|convert"):
        convert(1.0, from_unit, to_unit)


def test_unknown_set_names_the_known_ones() -> None:
    with pytest.raises(ManifestError, match="codata2014, jmp_reference"):
        get_constants("codata1986")
