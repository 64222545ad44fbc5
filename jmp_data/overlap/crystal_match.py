"""The RMSD of two crystals, whatever cells they are given in.

If one of the two cells is primitive, the other must be a cell of the same lattice, equal or larger, and all ways to lay
it there are tried; this takes microseconds. Only where both cells repeat themselves inside must a common primitive cell
be found first, which pymatgen's StructureMatcher does, in milliseconds.

Here, as there, a crystal and its mirror image are the same.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from jmp_data.graphs.lattice import reduce_cells
from jmp_data.overlap.crystal_kernel import has_translation, mapped_rmsd, same_lattice_rmsd
from jmp_data.overlap.geometry import Geometry
from jmp_data.overlap.settings import OverlapSettings

Array = npt.NDArray[Any]

_SMALLEST_ANGLE = 0.5  # degrees
_TILT = 2.0  # radians of an angle per unit of strain: shear turns both vectors


def crystal_rmsd(left: Geometry, right: Geometry, settings: OverlapSettings) -> float:
    """Å; infinity where no alignment was found.

    Distances are measured in the larger cell, after the smaller one was strained onto it.

    Args:
        left: periodic along at least one axis.
        right: periodic along as many, of the same composition.
        settings: thresholds.
    """
    if not (left.pbc.all() and right.pbc.all()):
        return _partly_periodic_rmsd(left, right, settings)
    small, large = sorted((left, right), key=lambda geometry: len(geometry.atomic_numbers))
    rmsd = math.inf
    if len(large.atomic_numbers) % len(small.atomic_numbers) == 0:
        rmsd = _mapped_rmsd(small, large, settings)
    if rmsd <= settings.near or not (_repeats(small, settings) and _repeats(large, settings)):
        return rmsd
    return min(rmsd, _primitive_rmsd(small, large, settings))


def _largest_angle(settings: OverlapSettings) -> float:
    return max(math.radians(_SMALLEST_ANGLE), _TILT * settings.strain)


def _mapped_rmsd(small: Geometry, large: Geometry, settings: OverlapSettings) -> float:
    """The smallest RMSD over all ways to lay the large cell into the lattice of the small one."""
    reduced, _, reciprocal, _ = reduce_cells(small.cell[None], small.pbc[None])
    return float(
        mapped_rmsd(
            small.atomic_numbers,
            small.positions,
            reduced[0],
            reciprocal[0],
            large.atomic_numbers,
            large.positions,
            large.cell,
            settings.near,
            settings.exact,
            settings.strain,
            _largest_angle(settings),
        )
    )


def _repeats(geometry: Geometry, settings: OverlapSettings) -> bool:
    fractional = geometry.positions @ np.linalg.inv(geometry.cell)
    return bool(has_translation(geometry.atomic_numbers, fractional, geometry.cell, geometry.pbc, settings.near))


def _partly_periodic_rmsd(left: Geometry, right: Geometry, settings: OverlapSettings) -> float:
    """Slabs and wires with open axes are compared in the cell that they come with."""
    if len(left.atomic_numbers) != len(right.atomic_numbers) or (left.pbc != right.pbc).any():
        return math.inf
    cell, other = _completed(left), _completed(right)
    if not _same_metric(cell, other, settings):
        return math.inf
    fractional, others = left.positions @ np.linalg.inv(cell), right.positions @ np.linalg.inv(other)
    numbers = left.atomic_numbers, right.atomic_numbers
    return float(same_lattice_rmsd(numbers[0], fractional, numbers[1], others, cell, left.pbc, settings.near))


def _completed(geometry: Geometry) -> Array:
    """The cell with unit vectors normal to the rest in place of the open ones."""
    cell = geometry.cell.copy()
    open_rows = np.flatnonzero(~geometry.pbc)
    if len(open_rows) == 1:
        normal = np.cross(cell[(open_rows[0] + 1) % 3], cell[(open_rows[0] + 2) % 3])
        cell[open_rows[0]] = normal / np.linalg.norm(normal)
    else:
        axis = cell[geometry.pbc][0] / np.linalg.norm(cell[geometry.pbc][0])
        first = np.cross(axis, np.eye(3)[np.argmin(np.abs(axis))])
        first /= np.linalg.norm(first)
        cell[open_rows[0]], cell[open_rows[1]] = first, np.cross(axis, first)
    return cell


def _same_metric(cell: Array, other: Array, settings: OverlapSettings) -> bool:
    lengths, others = np.linalg.norm(cell, axis=1), np.linalg.norm(other, axis=1)
    if (np.abs(lengths - others) > settings.strain * np.maximum(lengths, others)).any():
        return False
    cosines = (cell @ cell.T) / np.outer(lengths, lengths), (other @ other.T) / np.outer(others, others)
    angles, other_angles = (np.arccos(np.clip(values, -1, 1)) for values in cosines)
    same_hand = np.linalg.det(cell) * np.linalg.det(other) > 0
    return bool(same_hand and (np.abs(angles - other_angles) <= _largest_angle(settings)).all())


@lru_cache(maxsize=8)
def _structure_matcher(settings: OverlapSettings) -> Any:
    from pymatgen.analysis.structure_matcher import StructureMatcher

    # The site tolerance is in units of the mean free length of an atom, which is never under 1 Å.
    return StructureMatcher(
        ltol=max(settings.strain, 1e-3),
        stol=3 * settings.near,
        angle_tol=math.degrees(_largest_angle(settings)),
        primitive_cell=True,
        scale=False,
        attempt_supercell=False,
    )


def _primitive_rmsd(small: Geometry, large: Geometry, settings: OverlapSettings) -> float:
    found = _structure_matcher(settings).get_rms_dist(_pymatgen(small), _pymatgen(large))
    if found is None:
        return math.inf
    lengths = [(abs(np.linalg.det(g.cell)) / len(g.atomic_numbers)) ** (1 / 3) for g in (small, large)]
    return float(found[0] * np.mean(lengths))


def _pymatgen(geometry: Geometry) -> Any:
    from pymatgen.core import Lattice, Structure

    numbers = [int(number) for number in geometry.atomic_numbers]
    lattice = Lattice(geometry.cell)
    return Structure(lattice, numbers, geometry.positions, coords_are_cartesian=True, to_unit_cell=True)
