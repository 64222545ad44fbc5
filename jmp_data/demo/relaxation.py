"""Frames along the relaxation of a slab: what the Open Catalyst data sets are made of."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import CalculationFailed
from ase.constraints import FixAtoms
from ase.optimize import BFGS
from numpy.typing import NDArray

from jmp_data.demo.calculators import label
from jmp_data.demo.frames import LabelledFrame

BULK, SURFACE, ADSORBATE = 0, 1, 2
_CONVERGED = 0.05  # eV/Å, on free atoms
_LARGEST_FORCE = 15.0  # eV/Å; starts above it are clashes, and OC20 left out such frames too
_LONGEST_STEP = 0.1  # Å
_LOWEST = 0.8  # Å


def add_adsorbate(slab: Atoms, name: str, random: np.random.Generator, *, clearance: float) -> Atoms:
    """Place an adsorbate over a random point of the surface in a random orientation.

    Args:
        slab: a slab with tags; the surface normal is z.
        name: an element symbol or a name of ASE's g2 collection.
        random: source of the placement.
        clearance: distance to the nearest atom of the slab, Å.

    Returns:
        Slab and adsorbate, the latter tagged as such.
    """
    adsorbate = Atoms(name) if len(name) == 1 else molecule(name)
    adsorbate.set_initial_magnetic_moments(None)
    adsorbate.rotate(random.uniform(0, 360), random.normal(size=3), center="COM")
    adsorbate.translate([*(random.random(2) @ slab.cell.array[:2, :2]), slab.positions[:, 2].max()])
    adsorbate.set_tags(ADSORBATE)
    adsorbate.positions[:, 2] += _height_of_contact(adsorbate.positions, slab, clearance)
    return slab + adsorbate


def _height_of_contact(positions: NDArray[np.float64], slab: Atoms, clearance: float) -> float:
    """How far to lift atoms so that they just clear all slab atoms, and the surface by ``_LOWEST`` over hollows."""
    shifts = np.array([(i, j, 0) for i in (-1, 0, 1) for j in (-1, 0, 1)]) @ slab.cell.array
    images = (slab.positions + shifts[:, None]).reshape(-1, 3)
    apart = positions[:, None] - images
    room = clearance**2 - (apart[..., :2] ** 2).sum(axis=-1)
    contact = np.sqrt(room[room > 0]) - apart[..., 2][room > 0]
    return float(max(slab.positions[:, 2].max() + _LOWEST - positions[:, 2].min(), *contact))


def relax_and_record(
    atoms: Atoms, fixed: NDArray[np.bool_], *, max_frames: int, stride: int, system: int, reference_energy: float
) -> list[LabelledFrame]:
    """Relax the free atoms and keep every ``stride``-th step, until it converges or there are enough frames.

    Args:
        atoms: a tagged periodic system with a calculator; moved in place.
        fixed: (natoms,) bool, atoms to hold.
        max_frames: most frames to keep.
        stride: steps between kept frames.
        system: number of the trajectory.
        reference_energy: energy of the separate parts, eV.

    Returns:
        The frames; fewer than asked for if the relaxation converged or the potential gave up.
    """
    atoms.set_constraint(FixAtoms(mask=fixed))
    tags = atoms.get_tags()
    frames: list[LabelledFrame] = []
    steps = BFGS(atoms, logfile=None, maxstep=_LONGEST_STEP).irun(fmax=_CONVERGED, steps=max_frames * stride)
    try:
        for step, _ in enumerate(steps):
            energy, forces = label(atoms)
            if step % stride or np.linalg.norm(forces, axis=1).max() > _LARGEST_FORCE:
                continue
            frames.append(
                LabelledFrame(
                    atomic_numbers=atoms.numbers.copy(),
                    positions=atoms.positions.copy(),
                    energy=energy,
                    forces=forces,
                    cell=atoms.cell.array.copy(),
                    tags=tags,
                    fixed=fixed,
                    system=system,
                    frame=step,
                    reference_energy=reference_energy,
                    adsorbates=int((tags == ADSORBATE).any()),
                )
            )
    except CalculationFailed:
        pass  # as upstream: steps whose electronic structure does not converge are no part of the data
    return frames[:max_frames]
