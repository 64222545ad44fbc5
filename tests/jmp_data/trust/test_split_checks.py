"""Outliers and repeats of a split, against a plain loop, and their independence of where parts are cut."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
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


def loop_over_groups(facts: Any, limits: TrustThresholds) -> list[SplitFinding]:
    """The definition, composition by composition, of the whole split at once."""
    found: list[SplitFinding] = []
    energy, force = (
        (limits.energy_outlier, limits.min_energy_deviation),
        (limits.force_outlier, limits.min_force_deviation),
    )
    texts = {
        "force": "largest force {:.4g} eV/Å, others of its composition have {:.4g}",
        "energy": "energy {:.6g} eV/atom, others of its composition have {:.6g}",
    }
    for name, (sigmas, floor) in (("force", force), ("energy", energy)):
        values = facts[name].astype(np.float64) + 0.0
        for key in np.unique(facts["composition"]):
            rows = np.flatnonzero((facts["composition"] == key) & np.isfinite(values))
            if len(rows) >= limits.min_group:
                median = np.median(values[rows])
                deviation = np.abs(values[rows] - median)
                limit = max(floor, sigmas * (1.4826 * np.median(deviation)))
                found += [
                    SplitFinding(int(row), f"{name}_outlier", texts[name].format(values[row], median))
                    for row in rows[deviation > limit]
                ]
    first: dict[int, int] = {}
    for row, geometry in enumerate(facts["geometry"].tolist()):
        if first.setdefault(geometry, row) != row:
            found.append(SplitFinding(row, "duplicate_frame", "repeats", first[geometry]))
    return sorted(found, key=lambda each: each.index)


def random_facts(seed: int, count: int, compositions: int) -> Any:
    """Facts with outliers, repeats and gaps; keys that a poor hash would pile up."""
    random = np.random.default_rng(seed)
    facts = np.zeros(count, ROW_FACTS)
    facts["composition"] = random.integers(0, compositions, count) * np.uint64(2**57)
    facts["geometry"] = random.integers(0, max(1, 2 * count), count) << random.integers(0, 40)
    facts["energy"] = random.standard_cauchy(count).round(int(random.integers(0, 5)))
    facts["energy"][random.random(count) < 0.1] = np.nan
    facts["force"] = np.abs(random.standard_cauchy(count)) * 20
    facts["force"][random.random(count) < 0.01] = np.inf
    return facts


STRICT = TrustThresholds(energy_outlier=3.0, force_outlier=3.0, min_force_deviation=1.0, min_group=5)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(0, 300),
    compositions=st.integers(1, 30),
    parts=st.integers(1, 7),
    rows_in_memory=st.integers(3, 400),
    cell_rows=st.integers(1, 400),
)
def test_parts_bundles_and_cells_change_nothing(
    seed: int, count: int, compositions: int, parts: int, rows_in_memory: int, cell_rows: int
) -> None:
    facts = random_facts(seed, count, compositions)
    pieces = [lambda piece=piece: piece for piece in np.array_split(facts, parts)]
    found = check_split(pieces, STRICT, rows_in_memory=rows_in_memory, cell_rows=cell_rows)
    assert found == loop_over_groups(facts, STRICT)


def test_many_cells_of_usual_size_find_the_same_as_one_look_at_everything(tmp_path: Path) -> None:
    """Bundles that go to disk, of several cells each."""
    facts = random_facts(1, 300_000, 64)
    pieces = [lambda piece=piece: piece for piece in np.array_split(facts, 11)]
    bundled = check_split(pieces, STRICT, total=len(facts), rows_in_memory=70_000, scratch=tmp_path)
    assert len(bundled) > 60_000
    assert bundled == loop_over_groups(facts, STRICT)
    assert list(tmp_path.iterdir()) == []
