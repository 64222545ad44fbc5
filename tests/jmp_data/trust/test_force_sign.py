from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.emt import EMT

from jmp_data.schema import Block, Schema, Structure
from jmp_data.sources.rmd17 import RMD17
from jmp_data.trust import ForceSignEvidence, compare_force_sign
from jmp_data.trust.force_sign import MIN_PAIRS
from tests.jmp_data.sources.collecting import collect
from tests.shared import SHARED, needs_shared


def frames(atoms, count: int, *, sign: float = 1.0, scale: float = 1.0, seed: int = 0) -> list[Structure]:
    """A random walk on EMT's energy surface, with forces as they should or should not be."""
    random = np.random.default_rng(seed)
    atoms = atoms.copy()
    atoms.calc = EMT()
    found = []
    for number in range(count):
        atoms.positions += random.normal(scale=0.02, size=atoms.positions.shape)
        found.append(
            Structure(
                atomic_numbers=atoms.numbers,
                positions=atoms.positions,
                cell=atoms.cell.array if atoms.pbc.any() else None,
                pbc=atoms.pbc,
                energy=atoms.get_potential_energy(),
                forces=sign * scale * atoms.get_forces(),
                source_id=f"frame#{number}",
            )
        )
    return found


def block_of(structures: list[Structure]) -> Block:
    return Block.from_structures(structures, Schema())


@pytest.mark.parametrize("atoms", [molecule("C2H6"), bulk("Cu", "fcc", a=3.6, cubic=True)], ids=["molecule", "crystal"])
def test_forces_are_told_from_gradients(atoms) -> None:
    right = compare_force_sign(block_of(frames(atoms, 60)))
    wrong = compare_force_sign(block_of(frames(atoms, 60, sign=-1.0)))
    assert right.verdict == "right"
    assert right.agreeing > 0.95
    assert right.scale == pytest.approx(1.0, abs=0.1)
    assert wrong.verdict == "reversed"
    assert "are these gradients, not forces?" in wrong.describe()


def test_a_wrong_unit_shows_as_a_factor() -> None:
    """Taking forces per bohr for forces per Å makes them 1.89 times too large."""
    evidence = compare_force_sign(block_of(frames(molecule("C2H6"), 60, scale=1.8897)))
    assert evidence.verdict == "right"
    assert evidence.scale == pytest.approx(1 / 1.8897, abs=0.06)


def test_order_and_other_molecules_do_not_matter() -> None:
    ethane, copper = frames(molecule("C2H6"), 40), frames(bulk("Cu", "fcc", a=3.6, cubic=True), 40, seed=1)
    mixed = ethane + copper
    order = np.random.default_rng(2).permutation(len(mixed))
    evidence = compare_force_sign(block_of([mixed[row] for row in order]))
    separate = compare_force_sign(block_of(ethane)) + compare_force_sign(block_of(copper))
    assert len(evidence) == len(separate)
    assert evidence.agreeing == separate.agreeing


def test_far_or_single_or_repeated_frames_say_nothing() -> None:
    one = frames(molecule("C2H6"), 1)
    assert len(compare_force_sign(block_of(one))) == 0
    assert len(compare_force_sign(block_of(one * 3))) == 0
    moved = [
        Structure(
            atomic_numbers=one[0].atomic_numbers,
            positions=np.asarray(one[0].positions) * (1 + 0.5 * number),
            energy=float(number),
            forces=one[0].forces,
        )
        for number in range(9)
    ]
    evidence = compare_force_sign(block_of(moved))
    assert evidence.verdict == "unclear"
    assert len(evidence) < MIN_PAIRS
    assert "nothing is said" in evidence.describe()
    assert np.isnan(ForceSignEvidence().agreeing)
    assert np.isnan(ForceSignEvidence().scale)


def test_blocks_without_labels_say_nothing() -> None:
    structures = [Structure(atomic_numbers=[1], positions=[[0, 0, 0]]) for _ in range(3)]
    assert len(compare_force_sign(Block.from_structures(structures, Schema(())))) == 0
    assert len(compare_force_sign(block_of(structures))) == 0


@needs_shared
def test_shuffled_published_frames_have_the_right_sign(tmp_path: Path) -> None:
    assert SHARED is not None
    shutil.copy(SHARED / "samples/rmd17/rmd17_uracil_train_03.npz", tmp_path / "rmd17_uracil.npz")
    evidence = compare_force_sign(collect(RMD17(part="uracil"), tmp_path, "train").block)
    assert evidence.verdict == "right"
    assert len(evidence) > 100
    assert evidence.scale == pytest.approx(1.0, abs=0.1)
