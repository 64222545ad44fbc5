"""Splits, tags, units and the judgement of units: pure rules, against counts and hand-computed values."""

from __future__ import annotations

import ase.build
import numpy as np
import pytest
from ase import Atoms
from ase.constraints import FixAtoms
from ase.units import Bohr, Debye, GPa, Hartree, kcal, mol
from hypothesis import given
from hypothesis import strategies as st

from jmp_data.own_data.ase_records import record_from_atoms
from jmp_data.own_data.plausibility import judge_energy_unit, judge_length_unit
from jmp_data.own_data.records import Record, Rows, formula
from jmp_data.own_data.split_rules import split_at_random, split_by_group, split_in_order, split_sizes
from jmp_data.own_data.tags import choose_tags
from jmp_data.own_data.units import factor_to_stored, normalise_unit, stored_unit
from jmp_data.schema.units import CODATA_2014

EIGHTY = {"train": 0.8, "val": 0.1, "test": 0.1}


def record(atoms: Atoms) -> Record:
    return record_from_atoms(atoms, 0, "0")


@given(count=st.integers(0, 2000), parts=st.lists(st.integers(1, 20), min_size=1, max_size=5))
def test_sizes_add_up_and_are_as_near_as_can_be(count: int, parts: list[int]) -> None:
    fractions = {f"s{number}": part / sum(parts) for number, part in enumerate(parts)}
    sizes = split_sizes(count, fractions)
    assert sum(sizes.values()) == count
    assert count == 0 or sizes["s0"] > 0
    if count > 50 * len(parts):
        assert all(abs(sizes[name] - count * fraction) < 1 for name, fraction in fractions.items())


@given(count=st.integers(1, 300), seed=st.integers(0, 9))
def test_every_row_is_in_one_split(count: int, seed: int) -> None:
    for splits in (
        split_at_random(count, EIGHTY, seed),
        split_in_order(count, EIGHTY),
        split_by_group([f"g{row % 7}" for row in range(count)], EIGHTY, seed),
    ):
        assert sorted(np.concatenate(list(splits.values())).tolist()) == list(range(count))
        assert all(np.all(np.diff(rows) > 0) for rows in splits.values())


@given(groups=st.lists(st.sampled_from("abcdefghijklmnop"), min_size=1, max_size=200), seed=st.integers(0, 5))
def test_groups_are_never_divided(groups: list[str], seed: int) -> None:
    splits = split_by_group(groups, EIGHTY, seed)
    seen = [{groups[row] for row in rows} for rows in splits.values()]
    assert sum(map(len, seen)) == len(set(groups))
    assert len(splits["train"]) > 0


def test_many_small_groups_meet_the_shares() -> None:
    groups = [f"g{row % 200}" for row in range(2000)]
    sizes = [len(rows) for rows in split_by_group(groups, EIGHTY, 0).values()]
    assert sizes == [1600, 200, 200]
    assert split_by_group(groups, EIGHTY, 0)["val"].tolist() != split_by_group(groups, EIGHTY, 1)["val"].tolist()


@given(wanted=st.lists(st.booleans(), min_size=1, max_size=70), start=st.integers(0, 10**9))
def test_rows_survive_a_plan(wanted: list[bool], start: int) -> None:
    rows = Rows(start, 17, np.array(wanted))
    back = Rows.from_selection(rows.to_selection())
    assert (back.start, back.seek, back.stop) == (start, 17, start + len(wanted))
    assert back.numbers == rows.numbers


@pytest.mark.parametrize(
    ("text", "stored", "factor"),
    [
        ("Ha", "eV", Hartree),
        ("kcal/mol", "eV", kcal / mol),
        ("kcal/mol/Angstrom", "eV/Å", kcal / mol),
        ("Hartree/Bohr", "eV/Å", Hartree / Bohr),
        ("GPa", "eV/Å³", GPa),
        ("kbar", "eV/Å³", 0.1 * GPa),
        ("D", "e·Å", Debye),
        ("a0^3", "Å³", Bohr**3),
        ("meV", "eV", 1e-3),
        ("GHz", "GHz", 1.0),
        ("cal/mol/K", "cal/mol/K", 1.0),
        ("", "", 1.0),
    ],
)
def test_units_as_people_write_them(text: str, stored: str, factor: float) -> None:
    unit = normalise_unit(text)
    assert stored_unit(unit) == stored
    assert factor_to_stored(unit, CODATA_2014) == pytest.approx(factor, rel=1e-12)


def test_formula() -> None:
    assert formula(np.array([8, 6, 6, *[1] * 6])) == "C2H6O"


@pytest.mark.parametrize("unit", ["eV", "hartree", "kcal/mol", "kJ/mol", "rydberg"])
def test_all_electron_energies_give_their_unit_away(unit: str) -> None:
    """Total energies of methane, water, ethanol and benzene at ωB97X and similar, hartree."""
    totals = {"CH4": -40.51, "H2O": -76.42, "CH3CH2OH": -155.0, "C6H6": -232.2}
    records = [record(ase.build.molecule(name)) for name in totals]
    energies = np.array(list(totals.values())) * Hartree / factor_to_stored(unit, CODATA_2014)
    verdict = judge_energy_unit(records, energies)
    assert (verdict.unit, verdict.certain) == (unit, True)


def test_valence_energies_of_one_molecule_in_ev_are_not_taken_for_rydberg() -> None:
    """Ethanol with GFN2-xTB has -309.5 eV, and all its electrons about -310 rydberg."""
    ethanol = record(ase.build.molecule("CH3CH2OH"))
    verdict = judge_energy_unit([ethanol] * 3, np.array([-309.5, -309.3, -309.4]))
    assert (verdict.unit, verdict.certain) == ("eV", False)
    assert "rydberg" in verdict.evidence
    methane = record(ase.build.molecule("CH4"))
    assert judge_energy_unit([ethanol, methane], np.array([-309.5, -113.6])).unit == "eV"


def test_pseudopotential_energies_prove_nothing() -> None:
    verdict = judge_energy_unit([record(ase.build.bulk("Cu"))], np.array([-3.7]))
    assert (verdict.unit, verdict.certain) == ("eV", False)
    assert "plane-wave" in verdict.evidence


@pytest.mark.parametrize(("scale", "unit"), [(1.0, "Å"), (1 / Bohr, "bohr"), (0.1, "nm")])
def test_bonds_give_the_unit_of_length_away(scale: float, unit: str) -> None:
    structures = [ase.build.molecule(name) for name in ("CH4", "H2O", "C6H6")] + [ase.build.bulk("Cu", cubic=True)]
    for atoms in structures:
        atoms.set_cell(atoms.cell.array * scale)
        atoms.positions *= scale
    assert judge_length_unit([record(atoms) for atoms in structures]).unit == unit


def slab(*, shift: float = 0.0) -> Atoms:
    atoms = ase.build.fcc111("Cu", (2, 2, 4), vacuum=8.0, periodic=True)
    ase.build.add_adsorbate(atoms, "O", 1.2, "fcc")
    atoms.set_constraint(FixAtoms([atom.index for atom in atoms if atom.tag in (3, 4)]))
    atoms.positions[:, 2] += shift
    atoms.wrap()
    atoms.set_tags(0)
    return atoms


@pytest.mark.parametrize("shift", [0.0, 9.0, -12.5])
def test_tags_by_layers_even_across_the_boundary(shift: float) -> None:
    tags = choose_tags(record(slab(shift=shift)), "layers", {8})
    assert tags is not None
    # ASE builds the bottom layer first, four atoms each.
    np.testing.assert_array_equal(tags, [0] * 12 + [1] * 4 + [2])


def test_tags_by_constraint() -> None:
    tags = choose_tags(record(slab()), "constraint", {8})
    assert tags is not None
    np.testing.assert_array_equal(tags, [0] * 8 + [1] * 8 + [2])


def test_tags_of_molecules() -> None:
    water = record(ase.build.molecule("H2O"))
    assert choose_tags(water, "all 2") is None
    assert choose_tags(water, "given") is None
    np.testing.assert_array_equal(choose_tags(water, "layers", {1, 8}), [2, 2, 2])
