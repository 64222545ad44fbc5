"""Stage two: fingerprints that no rotation, translation, order of atoms or choice of cell changes, on whole blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from jmp_data.overlap.crystal_sketch import CUTOFF, sketch_crystals
from jmp_data.overlap.molecule_sketch import RADIAL, sketch_molecules
from jmp_data.overlap.settings import OverlapSettings
from jmp_data.schema import Block

Kind = Literal["molecule", "crystal"]
Features = npt.NDArray[np.float64]

GEOMETRY: Final = ("atomic_numbers", "positions", "cell", "pbc")

_SLACK = 1e-5  # Å; float32 coordinates 30 Å from the origin are rounded by 1e-6 Å


def rows_of_kind(block: Block, kind: Kind) -> npt.NDArray[np.int64]:
    """Rows that are periodic along some axis, or along none."""
    periodic = block.pbc.any(axis=1)
    return np.flatnonzero(periodic if kind == "crystal" else ~periodic)


def fingerprints(block: Block, kind: Kind) -> Features:
    """(n, d) float64, Å; see `molecule_sketch` and `crystal_sketch`.

    Args:
        block: structures of that kind only, with the columns in `GEOMETRY`.
        kind: molecules have no periodic axis.
    """
    if kind == "molecule":
        return np.asarray(sketch_molecules(block.atomic_numbers, block.positions, block.ptr))
    return sketch_crystals(block.atomic_numbers, block.positions, block.cell, block.pbc, block.natoms)


@dataclass(frozen=True, slots=True)
class Closeness:
    """Which fingerprints may belong to near duplicates: a ball that a tree can search, and an exact test within it.

    Attributes:
        kind: molecules or periodic structures.
        settings: thresholds.
    """

    kind: Kind
    settings: OverlapSettings

    @property
    def norm(self) -> float:
        """Order of the norm that `radius` is measured in."""
        return 2.0 if self.kind == "molecule" else math.inf

    @property
    def radius(self) -> float:
        """No pair of near duplicates lies farther apart, after `scaled`."""
        if self.kind == "molecule":
            return math.sqrt(2.0) * self.settings.near + _SLACK
        return self.settings.crystal_radius + self.settings.strain * CUTOFF + _SLACK

    def scaled(self, features: Features) -> Features:
        """Coordinates for the tree: the length scale of a crystal so that the allowed strain is the radius."""
        if self.kind == "molecule":
            return features
        # ln(a / b) where the relative difference of a and b is the largest allowed, and a little more.
        widest = -math.log1p(-self.settings.strain) + _SLACK
        length = np.log(features[:, :1]) * (self.radius / widest)
        return np.concatenate([length, features[:, 1:]], axis=1)

    def within(self, left: Features, right: Features) -> npt.NDArray[np.bool_]:
        """(n,) whether pairs of fingerprints lie within the bounds that hold for near duplicates."""
        change = np.abs(left - right)
        if self.kind == "molecule":
            near = self.settings.near + _SLACK
            radial = np.linalg.norm(change[:, :RADIAL], axis=1)
            return np.asarray((radial <= near) & (np.linalg.norm(change[:, RADIAL:], axis=1) <= near))
        strain = self.settings.strain
        length = change[:, 0] <= strain * np.maximum(left[:, 0], right[:, 0]) + _SLACK
        moved = change[:, 1:] <= self.settings.crystal_radius + strain * np.maximum(left, right)[:, 1:] + _SLACK
        return np.asarray(length & moved.all(axis=1))

    def indistinguishable(self, left: Features, right: Features) -> bool:
        """Whether no neighbour distance tells two crystals apart by more than coordinates are rounded."""
        return bool((np.abs(left - right) <= 4 * self.settings.exact).all())
