"""Do energies fall along the forces? The test that tells a force from a gradient, and hartree/Å from hartree/bohr.

Between two near frames of the same atoms the energy changes by minus the mean force times the displacement, up to third
order in it. Where a file holds gradients, every such change has the wrong sign; in another unit, all are off by one
factor. Frames need not be neighbours in the file: of each frame, the nearest one is looked for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from jmp_data.schema import Block

Array = npt.NDArray[Any]

MIN_PAIRS = 8
"""Fewer pairs are no evidence."""
MAX_DISPLACEMENT = 0.3
"""Å, root mean square over atoms; frames farther apart say nothing."""

_MAX_FRAMES = 512  # compared with each other, of one list of atoms
_HASH_SEED = 20_231_016
_CLEAR = 0.8  # share of pairs that must agree, or disagree


@dataclass(frozen=True, slots=True)
class ForceSignEvidence:
    """What pairs of near frames say; evidence of several blocks adds up.

    Attributes:
        expected: (pairs,) energy change that the forces predict, eV.
        observed: (pairs,) energy change between the frames, eV.
    """

    expected: Array = field(default_factory=lambda: np.zeros(0))
    observed: Array = field(default_factory=lambda: np.zeros(0))

    def __add__(self, other: ForceSignEvidence) -> ForceSignEvidence:
        return ForceSignEvidence(
            np.concatenate([self.expected, other.expected]), np.concatenate([self.observed, other.observed])
        )

    def __len__(self) -> int:
        return len(self.expected)

    @property
    def agreeing(self) -> float:
        """Share of pairs whose energy falls along the force; NaN without pairs."""
        return float((self.expected * self.observed > 0).mean()) if len(self) else float("nan")

    @property
    def scale(self) -> float:
        """Observed over expected change, by least squares: near 1 where sign and units are right; NaN without pairs."""
        square = float(self.expected @ self.expected)
        return float(self.expected @ self.observed) / square if square > 0 else float("nan")

    @property
    def verdict(self) -> str:
        """`right`, `reversed`, or `unclear`."""
        if len(self) < MIN_PAIRS or 1 - _CLEAR < self.agreeing < _CLEAR:
            return "unclear"
        return "right" if self.agreeing >= _CLEAR else "reversed"

    def describe(self) -> str:
        """One sentence with the evidence."""
        if len(self) < MIN_PAIRS:
            return f"only {len(self)} pairs of near frames, so nothing is said about the sign of the forces"
        counts = f"the energy falls along the force in {self.agreeing:.0%} of {len(self)} pairs of near frames"
        change = f"energies change {self.scale:.3g} times as much as the forces say"
        advice = "; are these gradients, not forces?" if self.verdict == "reversed" else ""
        return f"{counts}; {change}{advice}"


def compare_force_sign(block: Block) -> ForceSignEvidence:
    """Compare energies and forces of the frames of a block that are near to each other.

    Args:
        block: with energy and forces; frames need not be in order. Frames count as of the same atoms where elements (in
            order), cell and periodicity are the same.
    """
    if len(block) == 0 or not {"energy", "forces"} <= set(block.columns):
        return ForceSignEvidence()
    evidence = ForceSignEvidence()
    for rows in _same_atoms(block):
        evidence += _compare_frames(block, rows[:_MAX_FRAMES])
    return evidence


def _same_atoms(block: Block) -> list[Array]:
    """Rows of each list of atoms that occurs more than once."""
    random = np.random.default_rng(_HASH_SEED)
    places = np.arange(block.num_atoms) - np.repeat(block.ptr[:-1], block.natoms)
    weights = random.integers(1, 2**62, int(block.natoms.max()))
    keys = np.add.reduceat(block.atomic_numbers.astype(np.int64) * weights[places], block.ptr[:-1])
    cells = np.ascontiguousarray(block.cell.reshape(len(block), 9)).view(np.int32).astype(np.int64)
    keys += cells @ random.integers(1, 2**62, 9) + block.pbc @ random.integers(1, 2**62, 3) + block.natoms
    order = np.argsort(keys, kind="stable")
    _, first = np.unique(keys[order], return_index=True)
    return [rows for rows in np.split(order, first[1:]) if len(rows) > 1]


def _compare_frames(block: Block, rows: Array) -> ForceSignEvidence:
    """Each frame against the one nearest to it, each pair once."""
    natoms = int(block.natoms[rows[0]])
    atoms = block.ptr[rows][:, None] + np.arange(natoms)
    positions = block.positions[atoms].astype(np.float64).reshape(len(rows), -1)
    forces = block.forces[atoms].astype(np.float64).reshape(len(rows), -1)
    centred = positions - positions.mean(axis=0)
    squares = np.einsum("ij,ij->i", centred, centred)
    distances = squares[:, None] + squares[None] - 2 * centred @ centred.T
    np.fill_diagonal(distances, np.inf)
    nearest = distances.argmin(axis=1)
    pairs = np.unique(np.sort(np.stack([np.arange(len(rows)), nearest], axis=1), axis=1), axis=0)
    first, second = pairs.T
    displacement = positions[second] - positions[first]
    expected = -0.5 * np.einsum("ij,ij->i", forces[first] + forces[second], displacement)
    observed = block.energy[rows[second]] - block.energy[rows[first]]
    near = np.einsum("ij,ij->i", displacement, displacement) <= natoms * MAX_DISPLACEMENT**2
    # Repeated frames say nothing; energies that differ by rounding only say nothing either.
    useful = near & (np.abs(observed) > 1e-9 * np.abs(block.energy[rows[first]])) & np.isfinite(expected)
    return ForceSignEvidence(expected[useful], observed[useful])
