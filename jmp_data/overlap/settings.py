"""What counts as a duplicate, and how much work is spent on one structure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from jmp_data.errors import ManifestError

LARGEST_NEAR: Final = 0.5
"""Å; beyond it fingerprints separate nothing and every alignment of every pair would have to be tried."""


@dataclass(frozen=True, slots=True)
class OverlapSettings:
    """Thresholds and limits of a search.

    Attributes:
        near: Å; two structures are near duplicates if the RMSD after the best alignment is at most this.
        exact: Å; exact duplicates, up to the rounding of published coordinates.
        strain: largest relative difference of lattice lengths between near duplicates that are periodic.
        nearest: candidates of a structure that are always verified, nearest fingerprint first.
        molecule_limit: candidates of a molecule verified in all while none matches.
        crystal_limit: the same for periodic structures, where one verification costs milliseconds.
        slab_structures: structures of the second side indexed at a time; the first side is read once a slab.
        slab_atoms: their atoms, which stay in memory with the index.

    Raises:
        ManifestError: thresholds that are negative, in the wrong order or too wide to mean anything.
    """

    near: float = 0.1
    exact: float = 1e-3
    strain: float = 0.02
    nearest: int = 8
    molecule_limit: int = 512
    crystal_limit: int = 32
    slab_structures: int = 250_000
    slab_atoms: int = 16_000_000

    def __post_init__(self) -> None:
        if not 0 < self.exact <= self.near <= LARGEST_NEAR:
            raise ManifestError(
                f"an RMSD of {self.near} Å cannot tell duplicates from others; "
                f"choose between {self.exact} and {LARGEST_NEAR} Å"
            )
        if not 0 <= self.strain <= 0.1:
            raise ManifestError(f"strain {self.strain} must lie between 0 and 0.1")

    @property
    def crystal_radius(self) -> float:
        """Å; how far a mean neighbour distance may move between near duplicates, before strain.

        Each atom contributes its own displacement and that of its neighbour, each at most twice the RMSD.
        """
        return 4 * self.near
