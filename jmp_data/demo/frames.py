"""The record that the Open Catalyst writers take: one labelled slab, in eV and Å.

It checks nothing on purpose: tests of the readers write damaged records, such as NaN forces, through the same writers
that write the demo data.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledFrame:
    """One periodic structure with energy and forces, and where in which trajectory it stands.

    Attributes:
        atomic_numbers: (natoms,) integers.
        positions: (natoms, 3) float64, Å.
        energy: total energy, eV.
        forces: (natoms, 3) float64, eV/Å; −dE/dx, on fixed atoms too.
        cell: (3, 3) float64, Å, rows are lattice vectors.
        tags: (natoms,) integers, 0 bulk, 1 surface, 2 adsorbate.
        fixed: (natoms,) bool, true where the atom was held in the relaxation.
        system: number of the trajectory that the frame was taken from.
        frame: index of the frame in that trajectory.
        reference_energy: energy of the separate clean slab and adsorbate, eV.
        free_energy: force-consistent energy, eV; ``None`` where it equals ``energy``.
        adsorbates: how many adsorbates lie on the surface; 0 is a clean slab.
    """

    atomic_numbers: NDArray[np.int64]
    positions: NDArray[np.float64]
    energy: float
    forces: NDArray[np.float64]
    cell: NDArray[np.float64]
    tags: NDArray[np.int64]
    fixed: NDArray[np.bool_]
    system: int = 0
    frame: int = 0
    reference_energy: float = 0.0
    free_energy: float | None = None
    adsorbates: int = 1
