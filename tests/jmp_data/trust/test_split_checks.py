"""Outliers and repeats of a split, against a plain loop, and their independence of where parts are cut."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from ase.build import bulk, molecule
from hypothesis import given, settings
from hypothesis import strategies as st

from jmp_data.schema import Structure
from jmp_data.trust import TrustThresholds
from jmp_data.trust.row_facts import ROW_FACTS, row_facts
from jmp_data.trust.split_checks import SplitFinding, check_split
from tests.jmp_data.trust.waters import block_of, only, water


def judge(*structures: Structure, thresholds: TrustThresholds | None = None) -> list[SplitFinding]:
    facts = row_facts(block_of(*structures))
    return check_split([lambda: facts], thresholds or TrustThresholds())


def reasons(*structures: Structure, thresholds: TrustThresholds | None = None) -> dict[int, str]:
    return {finding.index: finding.reason for finding in judge(*structures, thresholds=thresholds)}


def test_energy_outliers_are_judged_within_their_composition() -> None:
    """34 hartree too low, as one published dipeptide is, stands out among its siblings, not among other molecules."""
    waters = [water(seed) for seed in range(30)]
    waters[7] = water(7, energy=-2081.0 - 34 * 27.2114)
    methane = molecule("CH4")
    others = [
        Structure(
            atomic_numbers=methane.numbers, positions=methane.positions, energy=-1100.0 - row, forces=np.zeros((5, 3))
        )
        for row in range(5)
    ]
    (found,) = judge(*waters, *others, thresholds=only(energy_outlier=30.0))
    assert (found.index, found.reason) == (7, "energy_outlier")
    assert found.message.endswith("others of its composition have -693.672") or "have -693." in found.message
    assert reasons(*waters[:15], thresholds=only(energy_outlier=30.0)) == {}  # too few to know what is usual


def test_identical_energies_do_not_make_outliers_of_near_ones() -> None:
    """The median deviation is zero; only the floor keeps half an electronvolt from being infinitely far."""
    waters = [water(seed, energy=-2081.0) for seed in range(29)] + [water(29, energy=-2080.5)]
    assert reasons(*waters, thresholds=only(energy_outlier=30.0)) == {}
    strict = only(energy_outlier=30.0, min_energy_deviation=0.0)
    assert reasons(*waters, thresholds=strict) == {29: "energy_outlier"}


def test_force_outliers() -> None:
    forces = np.zeros((3, 3))
    forces[0, 0], forces[1, 0] = 90.0, -90.0
    waters = [water(seed) for seed in range(30)]
    waters[3] = water(3, forces=forces)
    assert reasons(*waters) == {3: "force_outlier"}
    assert reasons(*waters, thresholds=only(force_outlier=50.0, min_force_deviation=100.0)) == {}


def test_missing_labels_are_not_judged() -> None:
    waters = [water(seed) for seed in range(30)]
    waters[5] = water(5, energy=None, forces=None)
    assert reasons(*waters) == {}
    assert check_split([], TrustThresholds()) == []


def test_repeats_name_the_first_of_their_kind() -> None:
    salt = replace(Structure.from_ase(bulk("NaCl", "rocksalt", a=5.64)), energy=0.0, forces=np.zeros((2, 3)))
    stretched = replace(salt, cell=np.asarray(salt.cell) * 1.5)
    opened = replace(salt, pbc=np.zeros(3, bool))
    found = judge(water(0), water(1), salt, water(0), stretched, salt, salt, opened)
    assert [(each.index, each.reason, each.earlier) for each in found] == [
        (3, "duplicate_frame", 0),
        (5, "duplicate_frame", 2),
        (6, "duplicate_frame", 2),
    ]
    swapped = replace(water(0), positions=np.asarray(water(0).positions)[[0, 2, 1]])
    assert reasons(water(0), swapped) == {}  # another order of atoms is no exact repeat
    minus_zero = replace(salt, positions=np.where(np.asarray(salt.positions) == 0, -0.0, salt.positions))
    assert reasons(salt, minus_zero) == {1: "duplicate_frame"}


def loop_over_groups(facts: Any, limits: TrustThresholds) -> set[tuple[int, str]]:
    """The definition, composition by composition."""
    found: set[tuple[int, str]] = set()
    for name, reason, sigmas, floor in (
        ("energy", "energy_outlier", limits.energy_outlier, limits.min_energy_deviation),
        ("force", "force_outlier", limits.force_outlier, limits.min_force_deviation),
    ):
        for key in set(facts["composition"].tolist()):
            rows = [i for i in range(len(facts)) if facts["composition"][i] == key and np.isfinite(facts[name][i])]
            values = np.array([float(facts[name][i]) for i in rows])
            if len(rows) >= limits.min_group:
                deviation = np.abs(values - np.median(values))
                limit = max(floor, sigmas * 1.4826 * np.median(deviation))
                found |= {(rows[i], reason) for i in range(len(rows)) if deviation[i] > limit}
    keys = facts["geometry"].tolist()
    return found | {(i, "duplicate_frame") for i in range(len(keys)) if keys[i] in keys[:i]}


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(0, 120), st.integers(1, 7), st.integers(3, 200))
def test_parts_and_bundles_change_nothing(seed: int, count: int, parts: int, rows_in_memory: int) -> None:
    random = np.random.default_rng(seed)
    facts = np.zeros(count, ROW_FACTS)
    facts["composition"] = random.integers(0, 5, count) * np.uint64(2**61)
    facts["geometry"] = random.integers(0, max(1, 2 * count), count)
    facts["energy"] = random.standard_cauchy(count)
    facts["energy"][random.random(count) < 0.1] = np.nan
    facts["force"] = np.abs(random.standard_cauchy(count)) * 20
    limits = TrustThresholds(energy_outlier=3.0, force_outlier=3.0, min_force_deviation=1.0, min_group=5)
    pieces = np.array_split(facts, parts)
    found = check_split([lambda piece=piece: piece for piece in pieces], limits, rows_in_memory=rows_in_memory)
    assert {(each.index, each.reason) for each in found} == loop_over_groups(facts, limits)
    assert [each.index for each in found] == sorted(each.index for each in found)
