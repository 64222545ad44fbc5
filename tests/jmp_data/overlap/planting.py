"""Molecules, crystals, and disguised copies of them: rotated, shifted, reordered, noised, in other cells."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.build import bulk, make_supercell
from ase.spacegroup import crystal
from scipy.spatial.transform import Rotation

from jmp_data.overlap.geometry import Geometry
from jmp_data.schema import Block, Schema, Structure


def random_molecule(rng: np.random.Generator, natoms: int, elements: tuple[int, ...] = (1, 6, 8)) -> Structure:
    """Atoms at least 0.9 Å apart."""
    places: list[np.ndarray] = []
    while len(places) < natoms:
        place = rng.uniform(-0.7, 0.7, 3) * (2 + natoms ** (1 / 3))
        if all(np.linalg.norm(place - other) > 0.9 for other in places):
            places.append(place)
    return Structure(atomic_numbers=rng.choice(elements, natoms), positions=np.array(places), source_id="m")


def random_crystal(rng: np.random.Generator, natoms: int, elements: tuple[int, ...] = (8, 14, 26)) -> Atoms:
    """A triclinic cell with atoms at least 1.3 Å apart."""
    cell = np.diag(rng.uniform(4, 6, 3)) * max(1, natoms / 8) ** (1 / 3) + rng.normal(scale=0.6, size=(3, 3))
    for _ in range(1000):
        atoms = Atoms(rng.choice(elements, natoms), scaled_positions=rng.random((natoms, 3)), cell=cell, pbc=True)
        if natoms == 1 or (atoms.get_all_distances(mic=True) + 9 * np.eye(natoms)).min() > 1.3:
            return atoms
        cell = cell * 1.02
    raise AssertionError("no room for the atoms")


def prototypes() -> list[Atoms]:
    """Crystals of high symmetry, in primitive and conventional cells."""
    return [
        bulk("NaCl", "rocksalt", a=5.64),
        bulk("Cu", "fcc", a=3.6, cubic=True),
        bulk("Fe", "bcc", a=2.87),
        bulk("ZnS", "wurtzite", a=3.82, c=6.26),
        crystal(["Ti", "O"], [(0, 0, 0), (0.3, 0.3, 0)], spacegroup=136, cellpar=[4.6, 4.6, 2.95, 90, 90, 90]),
        crystal(
            ["Sr", "Ti", "O"], [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0)], spacegroup=221, cellpar=[3.9] * 3 + [90] * 3
        ),
        crystal(
            ["Si", "O"],
            [(0.4697, 0, 0), (0.4135, 0.2669, 0.1191)],
            spacegroup=154,
            cellpar=[4.916, 4.916, 5.4054, 90, 90, 120],
        ),
    ]


def rotation(rng: np.random.Generator) -> np.ndarray:
    """A proper rotation."""
    return np.asarray(Rotation.random(random_state=int(rng.integers(2**31))).as_matrix())


def noise_of(rng: np.random.Generator, natoms: int, rmsd: float) -> np.ndarray:
    """Displacements without a common shift, of this root mean square."""
    noise = rng.normal(size=(natoms, 3))
    noise -= noise.mean(axis=0)
    square = np.sqrt((noise**2).sum() / natoms)
    return noise * (rmsd / square) if square > 0 else noise


def disguised_molecule(rng: np.random.Generator, molecule: Structure, rmsd: float = 0.0) -> Structure:
    """The molecule after noise, a rotation, a translation and a permutation."""
    order = rng.permutation(molecule.natoms)
    moved = molecule.positions + noise_of(rng, molecule.natoms, rmsd)
    moved = moved @ rotation(rng).T + rng.normal(scale=4, size=3)
    return Structure(atomic_numbers=molecule.atomic_numbers[order], positions=moved[order], source_id="planted")


def other_cell(rng: np.random.Generator, atoms: Atoms, *, supercell: bool) -> Atoms:
    """The same crystal in a sheared cell, or in a supercell of up to eight."""
    shear = np.eye(3, dtype=int)
    for _ in range(2):
        i, j = rng.choice(3, 2, replace=False)
        shear[i] += int(rng.integers(-1, 2)) * shear[j]
    sizes = np.diag(rng.integers(1, 3, 3)) if supercell else np.eye(3, dtype=int)
    return make_supercell(atoms, shear @ sizes)


def disguised_crystal(
    rng: np.random.Generator, atoms: Atoms, rmsd: float = 0.0, *, strain: float = 0.0, supercell: bool = False
) -> Atoms:
    """The crystal in another cell, strained, noised, rotated, shifted and reordered; sometimes wrapped."""
    copy = other_cell(rng, atoms, supercell=supercell)
    deformation = rng.uniform(-strain, strain, (3, 3)) / 2
    turn = (np.eye(3) + deformation + deformation.T) @ rotation(rng).T
    positions = (copy.positions + noise_of(rng, len(copy), rmsd)) @ turn + rng.normal(scale=3, size=3)
    order = rng.permutation(len(copy))
    moved = Atoms(copy.numbers[order], positions[order], cell=np.array(copy.cell) @ turn, pbc=True)
    if rng.random() < 0.5:
        moved.wrap()
    return moved


def geometry(structure: Structure | Atoms) -> Geometry:
    """What verification takes."""
    one = structure if isinstance(structure, Structure) else Structure.from_ase(structure)
    block = Block.from_structures([one], Schema(()))
    cell = np.zeros((3, 3)) if one.cell is None else np.asarray(one.cell, np.float64)
    return Geometry(block.atomic_numbers, np.asarray(one.positions, np.float64), cell, one.pbc)


def block_of(structures: list[Structure | Atoms]) -> Block:
    """Geometry only."""
    ready = [s if isinstance(s, Structure) else Structure.from_ase(s) for s in structures]
    return Block.from_structures(ready, Schema(()))
