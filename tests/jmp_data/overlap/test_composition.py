import numpy as np
from ase import Atoms
from ase.build import bulk
from hypothesis import given
from hypothesis import strategies as st

from jmp_data.overlap.composition import _words, composition_keys
from tests.jmp_data.overlap.planting import block_of, random_molecule


def key(atoms: Atoms) -> int:
    return int(composition_keys(block_of([atoms]))[0])


@given(st.integers(0, 2**31), st.integers(1, 12))
def test_the_order_of_atoms_does_not_matter_and_one_other_element_does(seed: int, natoms: int) -> None:
    rng = np.random.default_rng(seed)
    one = random_molecule(rng, natoms)
    order = rng.permutation(natoms)
    numbers = one.atomic_numbers.copy()
    numbers[0] += 1
    same = Atoms(one.atomic_numbers[order], one.positions[order])
    assert key(same) == key(Atoms(one.atomic_numbers, one.positions))
    assert key(Atoms(numbers, one.positions)) != key(same)


def test_a_supercell_is_the_same_crystal_but_a_dimer_is_not_two_monomers() -> None:
    cell = bulk("NaCl", "rocksalt", a=5.64)
    assert key(cell) == key(cell.repeat((2, 1, 3)))
    assert key(Atoms("NaCl", [(0, 0, 0), (0, 0, 2)])) != key(Atoms("Na2Cl2", np.eye(4, 3) * 5))


def test_molecules_slabs_and_crystals_of_one_composition_stay_apart() -> None:
    atoms = bulk("NaCl", "rocksalt", a=5.64)
    keys = []
    for pbc in (False, (1, 0, 0), (1, 1, 0), True):
        atoms.pbc = pbc
        keys.append(key(atoms))
    assert len(set(keys)) == 4


def test_keys_rest_on_the_published_numbers_of_splitmix64() -> None:
    assert _words(3).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
