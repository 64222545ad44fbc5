"""The potentials behind the demo labels, and the one way in which energies and forces are taken from them."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from numpy.typing import NDArray

from jmp_data.errors import MissingExtraError


def make_xtb(method: str = "GFN2-xTB") -> Calculator:
    """Make a tight-binding calculator, periodic where the atoms are.

    Args:
        method: ``GFN2-xTB`` for molecules; ``GFN1-xTB`` for crystals, where the self-consistent cycles of GFN2 often
            fail to converge.

    Returns:
        An ASE calculator in eV and Å.

    Raises:
        MissingExtraError: if ``tblite`` is not installed.
    """
    try:
        from tblite.ase import TBLite
    except ImportError as error:
        raise MissingExtraError(
            f"the demo data is labelled with {method}, and tblite is not installed: pip install jmp-data[demo]"
        ) from error
    return TBLite(method=method, verbosity=0)


def label(atoms: Atoms) -> tuple[float, NDArray[np.float64]]:
    """Compute the energy and the raw forces; ASE would set forces on fixed atoms to zero by default.

    Args:
        atoms: atoms with a calculator.

    Returns:
        Energy in eV and forces (natoms, 3) in eV/Å, the negative gradient on every atom.
    """
    return float(atoms.get_potential_energy()), np.array(atoms.get_forces(apply_constraint=False))
