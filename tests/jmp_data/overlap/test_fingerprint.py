import itertools

import numpy as np
import pytest
from ase.neighborlist import neighbor_list
from hypothesis import given
from hypothesis import strategies as st

from jmp_data.overlap.crystal_sketch import CUTOFF, DISTANCES, NEIGHBORS, sketch_crystals
from jmp_data.overlap.fingerprint import Closeness, fingerprints, rows_of_kind
from jmp_data.overlap.molecule_sketch import PAIRS, RADIAL
from jmp_data.overlap.settings import OverlapSettings
from tests.jmp_data.overlap.planting import (
    block_of,
    disguised_crystal,
    disguised_molecule,
    prototypes,
    random_crystal,
    random_molecule,
)

SEEDS = st.integers(0, 2**31)


def molecule_features(*structures):
    return fingerprints(block_of(list(structures)), "molecule")


def crystal_features(*structures):
    return fingerprints(block_of(list(structures)), "crystal")


@given(SEEDS, st.integers(1, 40))
def test_a_molecule_in_disguise_has_the_same_fingerprint(seed: int, natoms: int) -> None:
    rng = np.random.default_rng(seed)
    molecule = random_molecule(rng, natoms)
    one, other = molecule_features(molecule, disguised_molecule(rng, molecule))
    np.testing.assert_allclose(one, other, atol=2e-6)


@given(SEEDS, st.integers(2, 40), st.floats(0.001, 2.0))
def test_neither_part_of_a_molecular_fingerprint_moves_further_than_the_atoms(
    seed: int, natoms: int, rmsd: float
) -> None:
    rng = np.random.default_rng(seed)
    molecule = random_molecule(rng, natoms)
    one, other = molecule_features(molecule, disguised_molecule(rng, molecule, rmsd))
    assert np.linalg.norm(one[:RADIAL] - other[:RADIAL]) <= rmsd + 1e-5
    assert np.linalg.norm(one[RADIAL:] - other[RADIAL:]) <= rmsd + 1e-5


def test_the_fingerprint_of_water_by_hand() -> None:
    from ase import Atoms

    # O at the origin, H at (1, 0, 0) and (0, 1, 0): centroid (1/3, 1/3, 0).
    (one,) = molecule_features(Atoms("OHH", [(0, 0, 0), (1, 0, 0), (0, 1, 0)]))
    hydrogens, oxygen = np.sqrt(4 / 9 + 1 / 9), np.sqrt(2 / 9)
    radial = np.array([hydrogens, hydrogens, oxygen]) / np.sqrt(3)
    pairs = np.array([np.sqrt(2), 1, 1]) / 3  # H-H, then H-O twice
    np.testing.assert_allclose(one[:RADIAL][one[:RADIAL] != 0], radial, rtol=1e-6)
    np.testing.assert_allclose(one[RADIAL:][one[RADIAL:] != 0], pairs, rtol=1e-6)
    assert one.shape == (RADIAL + PAIRS,)


@given(SEEDS, st.integers(1, 10), st.booleans())
def test_a_crystal_in_another_cell_has_the_same_fingerprint(seed: int, natoms: int, supercell: bool) -> None:
    rng = np.random.default_rng(seed)
    crystal = random_crystal(rng, natoms)
    one, other = crystal_features(crystal, disguised_crystal(rng, crystal, supercell=supercell))
    np.testing.assert_allclose(one, other, atol=3e-5)


@given(SEEDS, st.integers(1, 10), st.floats(0.001, 0.1))
def test_a_crystal_fingerprint_moves_at_most_twice_as_far_as_any_atom(seed: int, natoms: int, reach: float) -> None:
    rng = np.random.default_rng(seed)
    crystal = random_crystal(rng, natoms)
    moved = crystal.copy()
    step = rng.normal(size=(natoms, 3))
    moved.positions += step * reach / np.linalg.norm(step, axis=1).max()
    one, other = crystal_features(crystal, moved)
    assert np.abs(one - other).max() <= 2 * reach + 1e-5


@given(SEEDS, st.booleans(), st.floats(0, 0.1), st.floats(0, 0.01))
def test_near_duplicates_always_lie_within_the_bounds(seed: int, supercell: bool, rmsd: float, strain: float) -> None:
    rng = np.random.default_rng(seed)
    closeness = Closeness("crystal", OverlapSettings())
    every = [*prototypes(), random_crystal(rng, 7)]
    crystal = every[seed % len(every)]
    copy = disguised_crystal(rng, crystal, rmsd / 2, strain=strain, supercell=supercell)
    features = crystal_features(crystal, copy)
    assert closeness.within(features[:1], features[1:])[0]
    scaled = closeness.scaled(features)
    assert np.abs(scaled[0] - scaled[1]).max() <= closeness.radius


def test_mean_neighbour_distances_agree_with_a_list_made_by_ase() -> None:
    atoms = prototypes()[4]
    centres, others, distances = neighbor_list("ijd", atoms, CUTOFF)
    elements = sorted(set(atoms.numbers))
    means = []
    for a, b in itertools.product(elements, elements):
        of_a = [
            np.sort([*distances[(centres == i) & (atoms.numbers[others] == b)], *[CUTOFF] * NEIGHBORS])[:NEIGHBORS]
            for i in np.flatnonzero(atoms.numbers == a)
        ]
        means.append(np.mean(of_a, axis=0))
    flat = np.concatenate(means)
    expected = [
        flat[len(flat) * c // DISTANCES : max(len(flat) * c // DISTANCES + 1, len(flat) * (c + 1) // DISTANCES)].mean()
        for c in range(DISTANCES)
    ]
    pbc = np.ones((1, 3), bool)
    numbers = atoms.numbers.astype(np.uint8)
    (found,) = sketch_crystals(numbers, atoms.positions, np.array(atoms.cell)[None], pbc, [len(atoms)])
    np.testing.assert_allclose(found[1:], expected, rtol=1e-9)
    assert found[0] == pytest.approx((atoms.get_volume() / len(atoms)) ** (1 / 3))


def test_batches_do_not_change_crystal_fingerprints() -> None:
    rng = np.random.default_rng(0)
    crystals = [random_crystal(rng, int(n)) for n in rng.integers(1, 9, 30)] * 40
    together = crystal_features(*crystals)
    np.testing.assert_array_equal(together[:30], np.concatenate([crystal_features(c) for c in crystals[:30]]))


def test_kinds_are_told_by_periodicity() -> None:
    rng = np.random.default_rng(1)
    block = block_of([random_molecule(rng, 3), random_crystal(rng, 2), random_molecule(rng, 2)])
    assert rows_of_kind(block, "molecule").tolist() == [0, 2]
    assert rows_of_kind(block, "crystal").tolist() == [1]
