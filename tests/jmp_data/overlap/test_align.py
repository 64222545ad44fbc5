import itertools

import numpy as np
import pytest
from ase.build import molecule
from ase.collections import g2
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from scipy.spatial.transform import Rotation

from jmp_data.overlap.align import _assign, aligned_rmsd
from jmp_data.schema import Structure
from tests.jmp_data.overlap.planting import disguised_molecule, noise_of, random_molecule, rotation

pytestmark = pytest.mark.filterwarnings("ignore:Optimal rotation is not uniquely")  # linear molecules, in the oracle
NEAR, EXACT = 0.1, 1e-3
SEEDS = st.integers(0, 2**31)


def rmsd_of(one: Structure, other: Structure, near: float = NEAR) -> float:
    return aligned_rmsd(
        one.atomic_numbers,
        np.asarray(one.positions, np.float64),
        other.atomic_numbers,
        np.asarray(other.positions, np.float64),
        near,
        EXACT,
    )


def exhaustive_rmsd(one: Structure, other: Structure) -> float:
    """Over all permutations of equal elements, with SciPy's rotation."""
    a, b = one.positions - one.positions.mean(axis=0), other.positions - other.positions.mean(axis=0)
    best = np.inf
    for order in itertools.permutations(range(len(a))):
        if (other.atomic_numbers[list(order)] == one.atomic_numbers).all():
            _, distance = Rotation.align_vectors(b[list(order)], a)
            best = min(best, distance / np.sqrt(len(a)))
    return best


@given(SEEDS, st.integers(1, 30), st.floats(0, 0.1))
def test_planted_copies_are_found_with_at_most_the_planted_rmsd(seed: int, natoms: int, rmsd: float) -> None:
    rng = np.random.default_rng(seed)
    one = random_molecule(rng, natoms)
    assert rmsd_of(one, disguised_molecule(rng, one, rmsd)) <= max(rmsd, EXACT) + 1e-9


@given(SEEDS, st.integers(2, 6), st.floats(0, 0.3))
def test_small_molecules_agree_with_trying_every_permutation(seed: int, natoms: int, rmsd: float) -> None:
    rng = np.random.default_rng(seed)
    one = random_molecule(rng, natoms, (1, 8))
    other = disguised_molecule(rng, one, rmsd)
    expected, found = exhaustive_rmsd(one, other), rmsd_of(one, other)
    assert found >= expected - 1e-7
    if expected <= NEAR:
        assert found == pytest.approx(max(expected, 0), abs=EXACT)


@pytest.mark.parametrize("name", [*g2.names, "C60"])
def test_symmetric_molecules_are_found_whatever_pairing_the_symmetry_hides(name: str) -> None:
    rng = np.random.default_rng(len(name))
    atoms = molecule(name)
    one = Structure(atomic_numbers=atoms.numbers, positions=atoms.positions)
    for rmsd in (0.0, 0.03, 0.09):
        noise = 0.0 if len(atoms) == 1 else rmsd
        assert rmsd_of(one, disguised_molecule(rng, one, noise)) <= max(noise, EXACT) + 1e-6


@given(SEEDS, st.sampled_from([12, 20, 35, 60]))
def test_a_few_atoms_far_from_their_place_do_not_hide_the_rest(seed: int, natoms: int) -> None:
    rng = np.random.default_rng(seed)
    one = random_molecule(rng, natoms)
    moved = one.positions.copy()
    victims = rng.choice(natoms, max(1, natoms // 12), replace=False)
    step = rng.normal(size=(len(victims), 3))
    moved[victims] += step / np.linalg.norm(step, axis=1)[:, None] * 0.098 * np.sqrt(natoms / len(victims))
    other = disguised_molecule(rng, Structure(atomic_numbers=one.atomic_numbers, positions=moved))
    assert rmsd_of(one, other) <= NEAR


@given(SEEDS, st.integers(5, 20))
def test_a_mirror_image_is_another_molecule(seed: int, natoms: int) -> None:
    rng = np.random.default_rng(seed)
    one = random_molecule(rng, natoms, (1, 6, 7, 8, 9))
    mirrored = Structure(atomic_numbers=one.atomic_numbers, positions=one.positions * [1, 1, -1])
    turned = disguised_molecule(rng, mirrored)
    expected = exhaustive_rmsd(one, mirrored) if natoms <= 6 else None
    found = rmsd_of(one, turned)
    assert expected is None or found >= expected - 1e-6
    assert rmsd_of(mirrored, turned) <= EXACT


def test_both_hands_of_a_chiral_molecule() -> None:
    atoms = molecule("CH4")
    one = Structure(atomic_numbers=[6, 1, 9, 17, 35], positions=atoms.positions * [[1], [1], [1.3], [1.6], [1.8]])
    other = Structure(atomic_numbers=one.atomic_numbers, positions=one.positions * [-1, 1, 1])
    assert rmsd_of(one, other) > 0.3
    planar = Structure(atomic_numbers=[8, 1, 1], positions=[[0, 0, 0], [1, 0, 0], [0, 1.1, 0]])
    reflected = Structure(atomic_numbers=[8, 1, 1], positions=planar.positions * [-1, 1, 1])
    assert rmsd_of(planar, reflected) < 1e-6


def test_linear_molecules_and_single_atoms() -> None:
    rng = np.random.default_rng(3)
    line = np.array([[0, 0, 0], [0, 0, 1.1], [0, 0, 2.3], [0, 0, 3.4]])
    chain = Structure(atomic_numbers=[1, 6, 6, 1], positions=line)
    assert rmsd_of(chain, disguised_molecule(rng, chain)) <= EXACT
    assert rmsd_of(chain, disguised_molecule(rng, chain, 0.05)) <= 0.05 + 1e-9
    atom = Structure(atomic_numbers=[2], positions=[[1, 2, 3]])
    assert rmsd_of(atom, Structure(atomic_numbers=[2], positions=[[-4, 0, 9]])) == 0


def test_other_compositions_never_match() -> None:
    rng = np.random.default_rng(4)
    one = random_molecule(rng, 5)
    numbers = one.atomic_numbers.copy()
    numbers[0] = 9
    assert rmsd_of(one, Structure(atomic_numbers=numbers, positions=one.positions)) == np.inf
    assert rmsd_of(one, random_molecule(rng, 4)) == np.inf


@given(SEEDS, st.integers(1, 12))
def test_pairings_cost_as_little_as_those_of_scipy(seed: int, n: int) -> None:
    cost = np.random.default_rng(seed).random((n, n))
    pairing = np.zeros(n, np.int64)
    _assign(cost, pairing)
    rows, columns = linear_sum_assignment(cost)
    assert sorted(pairing) == list(range(n))
    assert cost[np.arange(n), pairing].sum() == pytest.approx(cost[rows, columns].sum())


def test_a_twisted_group_above_the_threshold_is_no_match() -> None:
    rng = np.random.default_rng(5)
    one = random_molecule(rng, 12)
    moved = one.positions + noise_of(rng, 12, 0.8)
    other = Structure(atomic_numbers=one.atomic_numbers, positions=moved @ rotation(rng).T)
    assert rmsd_of(one, other) > NEAR
