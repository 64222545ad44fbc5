import itertools
import math

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, surface
from hypothesis import given
from hypothesis import strategies as st
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.io.ase import AseAtomsAdaptor

from jmp_data.graphs.lattice import reduce_cells
from jmp_data.overlap import crystal_match
from jmp_data.overlap.crystal_kernel import coset_sizes, has_translation, lattice_maps, repeated
from jmp_data.overlap.crystal_match import crystal_rmsd
from jmp_data.overlap.settings import OverlapSettings
from tests.jmp_data.overlap.planting import disguised_crystal, geometry, prototypes, random_crystal

SETTINGS = OverlapSettings()
SEEDS = st.integers(0, 2**31)
MATRICES = st.lists(st.integers(-3, 3), min_size=9, max_size=9).map(lambda v: np.array(v, np.int64).reshape(3, 3))


def rmsd_of(one: Atoms, other: Atoms) -> float:
    return crystal_rmsd(geometry(one), geometry(other), SETTINGS)


@given(SEEDS, st.booleans(), st.floats(0, 0.09), st.floats(0, 0.008))
def test_planted_copies_are_found(seed: int, supercell: bool, rmsd: float, strain: float) -> None:
    rng = np.random.default_rng(seed)
    every = [*prototypes(), random_crystal(rng, int(rng.integers(1, 13)))]
    crystal = every[seed % len(every)]
    copy = disguised_crystal(rng, crystal, rmsd, strain=strain, supercell=supercell)
    for one, other in ((crystal, copy), (copy, crystal)):
        assert rmsd_of(one, other) <= rmsd * (1 + 2 * strain) + 2e-3


@given(SEEDS, st.integers(2, 9))
def test_matches_agree_with_those_of_pymatgen(seed: int, natoms: int) -> None:
    rng = np.random.default_rng(seed)
    one = random_crystal(rng, natoms, (14, 26))
    other = disguised_crystal(rng, one, float(rng.choice([0.0, 0.05, 0.4, 1.0])))
    matcher = StructureMatcher(ltol=0.02, stol=0.3, angle_tol=2.3, scale=False, primitive_cell=True)
    found = matcher.get_rms_dist(AseAtomsAdaptor.get_structure(one), AseAtomsAdaptor.get_structure(other))
    expected = math.inf if found is None else found[0] * (one.get_volume() / natoms) ** (1 / 3)
    rmsd = rmsd_of(one, other)
    if min(expected, rmsd) <= SETTINGS.near:
        assert rmsd == pytest.approx(expected, abs=2e-3)


def test_two_supercells_with_no_common_multiple_go_through_their_primitive_cell() -> None:
    cell = prototypes()[6]
    assert rmsd_of(cell.repeat((2, 1, 1)), cell.repeat((1, 1, 3))) < 1e-5
    assert rmsd_of(cell.repeat((2, 1, 1)), cell.repeat((1, 1, 2))) < 1e-5
    assert rmsd_of(bulk("Cu", "fcc", a=3.6, cubic=True), bulk("Cu", "bcc", a=2.87, cubic=True)) == math.inf


def test_pymatgen_is_asked_only_where_both_cells_repeat_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> float:
        raise AssertionError("asked")

    monkeypatch.setattr(crystal_match, "_primitive_rmsd", refuse)
    rng = np.random.default_rng(0)
    one, other = random_crystal(rng, 8), random_crystal(rng, 8)
    other.numbers = one.numbers
    assert rmsd_of(one, other) > SETTINGS.near
    cell = prototypes()[6]
    with pytest.raises(AssertionError, match="asked"):
        rmsd_of(cell.repeat((2, 1, 1)), cell.repeat((1, 1, 2)))


def test_a_crystal_and_its_mirror_image_are_the_same() -> None:
    quartz = prototypes()[6]
    mirrored = Atoms(quartz.numbers, quartz.positions * [1, 1, -1], cell=np.array(quartz.cell) * [1, 1, -1], pbc=True)
    assert rmsd_of(quartz, mirrored) < 1e-5
    matcher = StructureMatcher(scale=False)
    assert matcher.fit(AseAtomsAdaptor.get_structure(quartz), AseAtomsAdaptor.get_structure(mirrored))


def test_polymorphs_and_strained_crystals_are_different() -> None:
    rutile = prototypes()[4]
    assert rmsd_of(bulk("ZnS", "wurtzite", a=3.82, c=6.26), bulk("ZnS", "zincblende", a=5.41)) > SETTINGS.near
    stretched = rutile.copy()
    stretched.set_cell(np.array(rutile.cell) * 1.05, scale_atoms=True)
    assert rmsd_of(rutile, stretched) == math.inf


def test_slabs_with_vacuum_are_found_rotated_reordered_and_wrapped() -> None:
    rng = np.random.default_rng(1)
    slab = surface(bulk("Cu", "fcc", a=3.6, cubic=True), (2, 1, 1), 3, vacuum=6)
    slab.pbc = True
    slab += Atoms("CO", positions=[slab.positions[-1] + (0.2, 0.1, 1.9), slab.positions[-1] + (0.4, 0.2, 3.0)])
    copy = disguised_crystal(rng, slab, 0.03)
    assert rmsd_of(slab, copy) <= 0.031
    copy.positions[int(np.argmax(copy.numbers == 8))] += (1.5, 0, 0)
    assert rmsd_of(slab, copy) > SETTINGS.near


@pytest.mark.parametrize("pbc", [(1, 1, 0), (0, 1, 0)])
def test_partly_periodic_structures_are_compared_in_their_own_cell(pbc: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(2)
    slab = fcc111("Pt", (2, 2, 3), vacuum=7)
    slab.pbc = pbc
    other = slab[rng.permutation(len(slab))]
    other.translate((0.7, 0.3, 5))
    assert rmsd_of(slab, other) < 1e-5
    other.positions[3] += (0, 0, 0.9)
    assert rmsd_of(slab, other) > SETTINGS.near
    other.pbc = [not axis for axis in pbc]
    assert rmsd_of(slab, other) == math.inf


@given(MATRICES)
def test_cosets_are_counted_by_the_determinant_and_named_once(matrix: np.ndarray) -> None:
    determinant = abs(round(np.linalg.det(matrix)))
    sizes = coset_sizes(matrix)
    assert int(np.prod(sizes)) == determinant
    if determinant:
        points = np.array(list(itertools.product(*map(range, sizes))))
        inside = np.round(points @ np.linalg.inv(matrix) * determinant).astype(int) % determinant
        assert len({tuple(point) for point in inside}) == determinant


def test_cubic_and_hexagonal_lattices_map_onto_themselves_in_all_their_ways() -> None:
    for crystal, order in ((bulk("Po", "sc", a=3.3), 48), (bulk("Mg", "hcp", a=3.2, c=5.2), 24)):
        cell = np.array(crystal.cell)
        lattice, _, reciprocal, _ = reduce_cells(cell[None], np.ones((1, 3), bool))
        maps = lattice_maps(cell, lattice[0], reciprocal[0], 0.01, 0.01).swapaxes(0, 1)
        assert len(maps) == order
        for matrix in maps:
            np.testing.assert_allclose((matrix @ lattice[0]) @ (matrix @ lattice[0]).T, cell @ cell.T, atol=1e-6)


def test_repeated_atoms_fill_the_supercell_like_those_of_ase() -> None:
    from ase.build import make_supercell

    crystal = prototypes()[4]
    matrix = np.array([[1, 1, 0], [-1, 2, 0], [0, 1, 2]])
    numbers, positions = repeated(crystal.numbers, crystal.positions, np.array(crystal.cell), matrix)
    expected = make_supercell(crystal, matrix)
    made = Atoms(numbers, positions, cell=expected.cell, pbc=True)
    assert len(made) == len(expected)
    made.wrap(), expected.wrap()
    for atom in made:
        gaps = np.linalg.norm(expected.positions[expected.numbers == atom.number] - atom.position, axis=1)
        assert gaps.min() < 1e-6


def test_only_cells_with_an_inner_translation_repeat_themselves() -> None:
    def repeats(atoms: Atoms) -> bool:
        one = geometry(atoms)
        fractional = one.positions @ np.linalg.inv(one.cell)
        return has_translation(one.atomic_numbers, fractional, one.cell, one.pbc, 0.1)

    assert not repeats(bulk("Cu", "fcc", a=3.6))
    assert repeats(bulk("Cu", "fcc", a=3.6, cubic=True))
    assert repeats(prototypes()[4].repeat((1, 2, 1)))
    assert not repeats(prototypes()[4])
