"""Write conformations in the published layout of ``ani1x-release.h5``: one group for each molecular formula.

Every group has the release's full set of 24 labels; those that nobody computed are NaN, as in the release. Arrays are
in the file's own units, hartree and Å, so that what a test writes is what lies in the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

_PER_CONFORMATION = (
    "ccsd(t)_cbs.energy",
    "hf_dz.energy",
    "hf_qz.energy",
    "hf_tz.energy",
    "mp2_dz.corr_energy",
    "mp2_qz.corr_energy",
    "mp2_tz.corr_energy",
    "npno_ccsd(t)_dz.corr_energy",
    "npno_ccsd(t)_tz.corr_energy",
    "tpno_ccsd(t)_dz.corr_energy",
    "wb97x_dz.energy",
    "wb97x_tz.energy",
)
_PER_CONFORMATION_VECTORS = {"wb97x_dz.dipole": 3, "wb97x_dz.quadrupole": 6, "wb97x_tz.dipole": 3}
_PER_ATOM = (
    "wb97x_dz.cm5_charges",
    "wb97x_dz.hirshfeld_charges",
    "wb97x_tz.mbis_charges",
    "wb97x_tz.mbis_dipoles",
    "wb97x_tz.mbis_octupoles",
    "wb97x_tz.mbis_quadrupoles",
    "wb97x_tz.mbis_volumes",
)
_FORCES = ("wb97x_dz.forces", "wb97x_tz.forces")


@dataclass(frozen=True, kw_only=True, eq=False)
class FormulaGroup:
    """All conformations of one molecular formula, isomers pooled, in the units of the file.

    Attributes:
        atomic_numbers: (natoms,) integers, one order for all conformations.
        coordinates: (nconf, natoms, 3), Å.
        energy: (nconf,), hartree; stored as ``wb97x_dz.energy``.
        forces: (nconf, natoms, 3), hartree/Å; stored as ``wb97x_dz.forces``.
        labels: further labels by their published name; all others are written as NaN.
    """

    atomic_numbers: NDArray[np.integer[Any]]
    coordinates: NDArray[np.floating[Any]]
    energy: NDArray[np.float64]
    forces: NDArray[np.floating[Any]]
    labels: Mapping[str, NDArray[np.floating[Any]]] = field(default_factory=dict)

    @property
    def formula(self) -> str:
        """Formula as the release writes it: alphabetic, every count written out, such as ``C2H6O1``."""
        symbols, counts = np.unique([chemical_symbols[int(z)] for z in self.atomic_numbers], return_counts=True)
        return "".join(f"{symbol}{count}" for symbol, count in zip(symbols, counts, strict=True))


def write_ani1x(path: Path, groups: Iterable[FormulaGroup]) -> None:
    """Write formula groups to one HDF5 file: contiguous, uncompressed, without attributes.

    Args:
        path: the file, named ``ani1x-release.h5`` upstream.
        groups: one for each formula.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for group in groups:
            node = file.create_group(group.formula)
            node["atomic_numbers"] = np.asarray(group.atomic_numbers, dtype=np.uint8)
            node["coordinates"] = np.asarray(group.coordinates, dtype=np.float32)
            for name, values in _all_labels(group).items():
                node[name] = values


def _all_labels(group: FormulaGroup) -> dict[str, NDArray[Any]]:
    nconf, natoms = group.coordinates.shape[:2]
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(_PER_CONFORMATION, (nconf,))
    shapes |= {name: (nconf, width) for name, width in _PER_CONFORMATION_VECTORS.items()}
    shapes |= dict.fromkeys(_PER_ATOM, (nconf, natoms))
    shapes |= dict.fromkeys(_FORCES, (nconf, natoms, 3))
    known = {**group.labels, "wb97x_dz.energy": group.energy, "wb97x_dz.forces": group.forces}
    labels: dict[str, NDArray[Any]] = {}
    for name, shape in sorted(shapes.items()):
        dtype = np.float64 if name in _PER_CONFORMATION else np.float32
        labels[name] = np.asarray(known[name], dtype=dtype) if name in known else np.full(shape, np.nan, dtype)
    return labels
