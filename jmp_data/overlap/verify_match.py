"""Stage three: a candidate counts only with an RMSD behind it, worked out by the rules of its kind."""

from __future__ import annotations

from jmp_data.overlap.align import aligned_rmsd
from jmp_data.overlap.crystal_match import crystal_rmsd
from jmp_data.overlap.geometry import Geometry
from jmp_data.overlap.settings import OverlapSettings


def verified_rmsd(left: Geometry, right: Geometry, settings: OverlapSettings) -> float:
    """The RMSD after the best alignment that was found.

    Molecules: over proper rotations, translations and pairings of equal elements; a mirror image is another molecule.
    Periodic structures: over choices of the cell, rotations, reflections, translations and pairings.

    Args:
        left: one structure.
        right: another of the same composition and with as many periodic axes.
        settings: thresholds.

    Returns:
        Å; infinity where no alignment comes close. Values above `settings.near` are not minimised any further.
    """
    if left.pbc.any():
        return crystal_rmsd(left, right, settings)
    return float(
        aligned_rmsd(
            left.atomic_numbers,
            left.positions,
            right.atomic_numbers,
            right.positions,
            settings.near,
            settings.exact,
        )
    )
