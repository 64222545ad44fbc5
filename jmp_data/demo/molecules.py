"""ANI-1x-like conformations and an rMD17-like trajectory of small organic molecules, labelled by GFN2-xTB.

Conformations come from normal-mode sampling, as most of ANI-1's did: displace the relaxed molecule along its
vibrations by thermal amounts. The trajectory is molecular dynamics at 500 K, as rMD17's is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.optimize import BFGS
from numpy.typing import NDArray

from jmp_data.demo.calculators import label, make_xtb

HELD_OUT_NAME, HELD_OUT_MOLECULE = "ethanol", "CH3CH2OH"  # its formula is in none of the pre-training sets

# Names of ASE's g2 collection: C, H, N and O, closed shells, 6 to 14 atoms, ethanol and its isomer left out.
CONFORMER_MOLECULES = (
    "CH3CHO", "OCHCHO", "CH3CH2OCH3", "C4H4NH", "C2H6CHOH", "CH2NHCH2", "isobutene", "C2H6", "H3CNH2", "CH3CN",
    "cyclobutene", "CH2OCH2", "CH3CONH2", "cyclobutane", "H2CCHCN", "butadiene", "CH3COOH", "N2H4", "C5H5N",
    "CH3NO2", "C4H4O", "CH3OH", "C2H4", "2-butyne", "C2H6NH", "C3H8", "HCOOCH3", "C3H4_C3v", "CH3COCH3",
    "CH3CH2NH2",
)  # fmt: skip

_STEP = 0.01  # Å, for the force constants
_SOFTEST = 250.0  # cm⁻¹; softer modes turn or bend far beyond the harmonic range and are sampled as if this stiff
_TEMPERATURES = (200.0, 1200.0)  # K
_MD_TEMPERATURE = 500.0  # K
_MD_TIMESTEP = 1.0  # fs
_MD_FRICTION = 0.02  # 1/fs
_MD_STRIDE = 5
_MD_WARM_UP = 300  # steps, not kept
_WAVENUMBER = 200 * np.pi * units._c / units.s  # angular frequency of 1 cm⁻¹ in ASE's unit of time


@dataclass(frozen=True, eq=False)
class LabelledConformers:
    """Arrangements of one molecule with labels.

    Attributes:
        atomic_numbers: (natoms,) integers, sorted by element symbol.
        positions: (nconf, natoms, 3), Å.
        energies: (nconf,), total, eV.
        forces: (nconf, natoms, 3), eV/Å.
        dipoles: (nconf, 3), e·Å.
    """

    atomic_numbers: NDArray[np.int64]
    positions: NDArray[np.float64]
    energies: NDArray[np.float64]
    forces: NDArray[np.float64]
    dipoles: NDArray[np.float64]


def sample_conformers(name: str, count: int, seed: Sequence[int]) -> LabelledConformers:
    """Relax a molecule and displace it along its vibrations, each time at a random temperature.

    Args:
        name: a name of ASE's g2 collection.
        count: conformations to return.
        seed: of the displacements.

    Returns:
        The conformations, their positions exact in float32 as ANI-1x stores them.

    Raises:
        MissingExtraError: if ``tblite`` is not installed.
    """
    random = np.random.default_rng(seed)
    atoms = relaxed_molecule(name)
    modes, stiffness = _vibrations(atoms)
    temperatures = random.uniform(*_TEMPERATURES, size=(count, 1))
    # Drawn per coordinate and projected, so that the signs of the modes, which are arbitrary, do not matter.
    draws = random.normal(size=(count, modes.shape[0])) @ modes
    amplitudes = np.sqrt(units.kB * temperatures / stiffness) * draws
    weighted = (amplitudes @ modes.T).reshape(count, len(atoms), 3)
    positions = atoms.positions + weighted / np.sqrt(atoms.get_masses())[:, None]
    return _label_all(atoms.numbers, positions.astype(np.float32).astype(np.float64), "GFN2-xTB")


def run_trajectory(name: str, count: int, seed: Sequence[int]) -> LabelledConformers:
    """Run molecular dynamics of one molecule at 500 K.

    Args:
        name: a name of ASE's g2 collection.
        count: frames to return.
        seed: of the initial velocities and the thermostat.

    Returns:
        Frames in the order of time.

    Raises:
        MissingExtraError: if ``tblite`` is not installed.
    """
    random = np.random.default_rng(seed)
    atoms = relaxed_molecule(name)
    MaxwellBoltzmannDistribution(atoms, temperature_K=_MD_TEMPERATURE, rng=random)
    dynamics = Langevin(
        atoms,
        timestep=_MD_TIMESTEP * units.fs,
        temperature_K=_MD_TEMPERATURE,
        friction=_MD_FRICTION / units.fs,
        fixcm=False,
        rng=random,
    )
    dynamics.run(_MD_WARM_UP)
    positions = []
    for _ in range(count):
        dynamics.run(_MD_STRIDE)
        positions.append(atoms.positions.copy())
    return _label_all(atoms.numbers, np.array(positions), "GFN2-xTB")


def relabel(conformers: LabelledConformers, method: str) -> LabelledConformers:
    """Label the same arrangements by another tight-binding method, such as ``GFN1-xTB``."""
    return _label_all(conformers.atomic_numbers, conformers.positions, method)


def relaxed_molecule(name: str) -> Atoms:
    """Relax a molecule of ASE's g2 collection with GFN2-xTB, atoms sorted by element symbol."""
    atoms = molecule(name)
    atoms = atoms[np.argsort(np.array(atoms.get_chemical_symbols()), kind="stable")]
    atoms.calc = make_xtb()
    BFGS(atoms, logfile=None).run(fmax=0.02, steps=200)
    return atoms


def _label_all(atomic_numbers: NDArray[np.int64], positions: NDArray[np.float64], method: str) -> LabelledConformers:
    atoms = Atoms(atomic_numbers, positions[0], calculator=make_xtb(method))
    energies, forces, dipoles = np.empty(len(positions)), np.empty_like(positions), np.empty((len(positions), 3))
    for index, coordinates in enumerate(positions):
        atoms.positions = coordinates
        energies[index], forces[index] = label(atoms)
        dipoles[index] = atoms.get_dipole_moment()
    return LabelledConformers(np.asarray(atomic_numbers, dtype=np.int64), positions, energies, forces, dipoles)


def _vibrations(atoms: Atoms) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute vibrations from central differences of the forces.

    Returns:
        modes: (3 natoms, nmodes), orthonormal displacements times √mass.
        stiffness: (nmodes,) ω², eV/(Å²·u), clipped from below.
    """
    count = 3 * len(atoms)
    origin = atoms.positions.copy()
    gradients = np.empty((2, count, count))
    for coordinate in range(count):
        for side, sign in enumerate((-1, 1)):
            atoms.positions = origin
            atoms.positions.flat[coordinate] += sign * _STEP
            gradients[side, coordinate] = -label(atoms)[1].ravel()
    atoms.positions = origin
    hessian = (gradients[1] - gradients[0]) / (2 * _STEP)
    inverse_root_mass = np.repeat(atoms.get_masses() ** -0.5, 3)
    weighted = 0.5 * (hessian + hessian.T) * np.outer(inverse_root_mass, inverse_root_mass)
    stiffness, vectors = np.linalg.eigh(weighted)
    # The six softest modes of a molecule at rest are its translations and rotations.
    modes = vectors[:, 6:]
    return modes, np.maximum(stiffness[6:], (_SOFTEST * _WAVENUMBER) ** 2)
