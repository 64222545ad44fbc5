"""Transition-1x-like demo reactions: nudged-elastic-band (NEB) searches between isomers, labelled by GFN2-xTB.

Each reaction moves one hydrogen of a relaxed molecule to another atom and relaxes what results; the frames are those
of a real NEB search between the two, in the order in which Transition-1x stores them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.build.rotate import minimize_rotation_and_translation
from ase.mep import NEB
from ase.optimize import BFGS, FIRE
from numpy.typing import NDArray

from jmp_data.demo.calculators import make_xtb
from jmp_data.demo.molecules import relaxed_molecule
from jmp_data.demo.write_transition1x import FIRST_PATH_LENGTH, Reaction

_IMAGES = FIRST_PATH_LENGTH - 2
_STRIDE = 3  # upstream, too, kept only iterations that had moved
_SPRING = 0.1  # eV/Å²
_BOND = 0.98  # Å, first guess for the bond of the moved hydrogen
_DIRECTIONS = 200


@dataclass(frozen=True)
class HydrogenShift:
    """One reaction: where it starts and which atom goes where; indices count atoms sorted by element symbol.

    Attributes:
        molecule: name of ASE's g2 collection.
        hydrogen: the atom that moves.
        acceptor: the atom that it moves to.
        split: ``train``, ``val`` or ``test``.
    """

    molecule: str
    hydrogen: int
    acceptor: int
    split: str = "train"


# Chosen because GFN2-xTB keeps both ends as distinct minima less than 3 eV apart.
HYDROGEN_SHIFTS = (
    HydrogenShift("CH3CHO", 3, 6),  # acetaldehyde to vinyl alcohol
    HydrogenShift("CH3CONH2", 2, 8),
    HydrogenShift("CH3CONH2", 6, 8),
    HydrogenShift("CH3COOH", 3, 6),
    HydrogenShift("CH3COCH3", 3, 9),  # acetone to its enol
    HydrogenShift("C3H4_C3v", 4, 1),  # propyne to allene
    HydrogenShift("C4H4NH", 4, 0),
    HydrogenShift("CH3CN", 2, 5),
    HydrogenShift("butadiene", 6, 3),
    HydrogenShift("H2CCHCN", 5, 6),
    HydrogenShift("OCHCHO", 2, 1, "val"),
    HydrogenShift("C4H4O", 4, 2, "val"),
    HydrogenShift("CH3NO2", 1, 5, "test"),  # nitromethane to its aci form
    HydrogenShift("CH2NHCH2", 3, 7, "test"),
)


def search_path(shift: HydrogenShift, number: int, iterations: int) -> Reaction:
    """Relax both ends of a reaction and run a NEB search between them.

    Args:
        shift: the reaction.
        number: number in the reaction's name.
        iterations: iterations to keep after the first; each adds eight frames.

    Returns:
        The reaction with 10 + 8 · ``iterations`` frames.

    Raises:
        MissingExtraError: if ``tblite`` is not installed.
    """
    reactant = relaxed_molecule(shift.molecule)
    product = _move_hydrogen(reactant, shift.hydrogen, shift.acceptor)
    minimize_rotation_and_translation(reactant, product)
    images = [reactant, *(reactant.copy() for _ in range(_IMAGES)), product]
    for image in images:
        image.calc = make_xtb()
    band = NEB(images, k=_SPRING, method="improvedtangent")
    band.interpolate("idpp")

    positions, energies, forces = [], [], []
    for step, _ in enumerate(FIRE(band, logfile=None).irun(fmax=0.0, steps=iterations * _STRIDE)):
        if step % _STRIDE == 0:
            kept = slice(None) if step == 0 else slice(1, -1)
            positions.append(np.array([image.positions for image in images])[kept])
            energies.append(np.array(band.energies)[kept])
            forces.append(np.array(band.real_forces)[kept])
    last_path = np.arange(-_IMAGES, 0) if iterations else np.arange(1, 1 + _IMAGES)
    all_energies = np.concatenate(energies)
    return Reaction(
        name=f"rxn{number:04d}",
        split=shift.split,
        atomic_numbers=reactant.numbers.astype(np.int64),
        positions=np.concatenate(positions),
        energies=all_energies,
        forces=np.concatenate(forces),
        transition_state=int(last_path[all_energies[last_path].argmax()] % len(all_energies)),
    )


def _move_hydrogen(reactant: Atoms, hydrogen: int, acceptor: int) -> Atoms:
    """Bond the hydrogen to the acceptor on its emptiest side, preferring the near one, and relax."""
    product = reactant.copy()
    others = np.delete(reactant.positions, [hydrogen, acceptor], axis=0)
    candidates = reactant.positions[acceptor] + _BOND * _sphere(_DIRECTIONS)
    clearance = np.linalg.norm(candidates[:, None] - others, axis=2).min(axis=1)
    distance = np.linalg.norm(candidates - reactant.positions[hydrogen], axis=1)
    product.positions[hydrogen] = candidates[np.argmax(np.minimum(clearance, 1.7) - 0.15 * distance)]
    product.calc = make_xtb()
    BFGS(product, logfile=None, maxstep=0.15).run(fmax=0.05, steps=200)
    return product


def _sphere(count: int) -> NDArray[np.float64]:
    """Spread points evenly over the unit sphere, on a Fibonacci spiral: (count, 3)."""
    height = 1 - (2 * np.arange(count) + 1) / count
    turn = np.pi * (1 + 5**0.5) * np.arange(count)
    radius = np.sqrt(1 - height**2)
    return np.stack([radius * np.cos(turn), radius * np.sin(turn), height], axis=1)
