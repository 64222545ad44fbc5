"""One arrangement of atoms with its labels: typed, validated, immutable; to and from `ase.Atoms` without loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from jmp_data.errors import InvalidStructureError

if TYPE_CHECKING:
    from ase import Atoms

DEFAULT_TAG = 2
MAX_ATOMIC_NUMBER = 118
_TARGET_KINDS = "iufbcU"  # NumPy's letters for numbers, flags and text


def _frozen(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    array = array.view()
    array.flags.writeable = False
    return array


def _as_array(name: str, value: Any, dtype: Any, shape: tuple[int, ...], where: str) -> npt.NDArray[Any]:
    try:
        array = np.array(value, dtype=dtype)
        # NumPy wraps whole numbers around silently: 257 would become the tag 1.
        if dtype == np.uint8 and not np.array_equal(array, value):
            raise ValueError("not whole numbers from 0 to 255")
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidStructureError(f"{where}: {name} cannot be read as {np.dtype(dtype)}: {error}", "dtype") from error
    if array.shape != shape:
        raise InvalidStructureError(f"{where}: {name} has shape {array.shape}, expected {shape}", "shape")
    return array


def _float_array(name: str, value: Any, shape: tuple[int, ...], where: str) -> npt.NDArray[Any]:
    """float32 stays float32; everything else becomes float64."""
    dtype = np.float32 if getattr(value, "dtype", None) == np.float32 else np.float64
    array = _as_array(name, value, dtype, shape, where)
    if not np.isfinite(array).all():
        raise InvalidStructureError(f"{where}: {name} holds NaN or infinity", f"nonfinite_{name}")
    return array


@dataclass(frozen=True, slots=True, eq=False)
class Structure:
    """One arrangement of atoms, eV and Å throughout.

    Attributes:
        atomic_numbers: (natoms,) uint8, 1 to 118.
        positions: (natoms, 3) float32 or float64, Å.
        cell: (3, 3) float, Å, rows are lattice vectors; None where there is none.
        pbc: (3,) bool; defaults to periodic where a cell is given, open otherwise.
        energy: eV, or None.
        forces: (natoms, 3), eV/Å, minus the gradient, or None.
        tags: (natoms,) uint8; defaults to 2 (molecules and bulk crystals).
        fixed: (natoms,) bool; defaults to all free.
        source_id: raw file and record that this came from.
        targets: further labels by name, any shape; `stress` is (3, 3) eV/Å³ with ASE's sign. Text is carried to and
            from ASE, but not written to shards.

    Raises:
        InvalidStructureError: wrong shapes, non-finite values, atomic numbers outside 1 to 118, periodic without
            a cell.
    """

    atomic_numbers: npt.NDArray[np.uint8]
    positions: npt.NDArray[np.floating[Any]]
    cell: npt.NDArray[np.floating[Any]] | None = None
    pbc: npt.NDArray[np.bool_] | None = None
    energy: float | None = None
    forces: npt.NDArray[np.floating[Any]] | None = None
    tags: npt.NDArray[np.uint8] | None = None
    fixed: npt.NDArray[np.bool_] | None = None
    source_id: str = ""
    targets: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = self.source_id or "structure"
        numbers = np.asarray(self.atomic_numbers)
        if numbers.ndim != 1 or numbers.size == 0:
            raise InvalidStructureError(f"{where}: atomic_numbers must be a non-empty vector", "no_atoms")
        if numbers.dtype.kind not in "iu" or numbers.min() < 1 or numbers.max() > MAX_ATOMIC_NUMBER:
            raise InvalidStructureError(f"{where}: atomic_numbers must be integers from 1 to 118", "atomic_number")
        natoms = len(numbers)
        per_atom = (natoms, 3)
        cell = None if self.cell is None else _float_array("cell", self.cell, (3, 3), where)
        pbc_given = np.asarray(self.pbc if self.pbc is not None else cell is not None)
        pbc = _as_array("pbc", pbc_given if pbc_given.ndim else [pbc_given] * 3, np.bool_, (3,), where)
        if pbc.any() and (cell is None or (np.linalg.norm(cell[pbc], axis=1) == 0).any()):
            raise InvalidStructureError(f"{where}: periodic along an axis without a lattice vector", "no_cell")
        if pbc.all() and cell is not None and abs(np.linalg.det(cell.astype(np.float64))) < 1e-6:
            raise InvalidStructureError(f"{where}: periodic cell has no volume", "flat_cell")
        if self.energy is not None and not np.isfinite(self.energy):
            raise InvalidStructureError(f"{where}: energy is {self.energy}", "nonfinite_energy")
        forces = None if self.forces is None else _float_array("forces", self.forces, per_atom, where)
        tags = np.full(natoms, DEFAULT_TAG) if self.tags is None else self.tags
        fixed = np.zeros(natoms, bool) if self.fixed is None else self.fixed
        targets = {name: np.array(value) for name, value in self.targets.items()}
        values: dict[str, Any] = {
            "atomic_numbers": _frozen(numbers.astype(np.uint8)),
            "positions": _frozen(_float_array("positions", self.positions, per_atom, where)),
            "cell": None if cell is None else _frozen(cell),
            "pbc": _frozen(pbc),
            "energy": None if self.energy is None else float(self.energy),
            "forces": None if forces is None else _frozen(forces),
            "tags": _frozen(_as_array("tags", tags, np.uint8, (natoms,), where)),
            "fixed": _frozen(_as_array("fixed", fixed, np.bool_, (natoms,), where)),
            "targets": MappingProxyType({name: _frozen(value) for name, value in targets.items()}),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.atomic_numbers)

    def __reduce__(self) -> tuple[Any, ...]:
        # MappingProxyType does not pickle; workers of a pool hand structures around.
        names = ("atomic_numbers", "positions", "cell", "pbc", "energy", "forces", "tags", "fixed", "source_id")
        return Structure, (*(getattr(self, name) for name in names), dict(self.targets))

    @property
    def natoms(self) -> int:
        """Number of atoms."""
        return len(self.atomic_numbers)

    def to_ase(self) -> Atoms:
        """An `ase.Atoms`: labels in a single-point calculator, tags, FixAtoms, other targets in `info` or `arrays`.

        Energies and forces are reached with `get_potential_energy(apply_constraint=False)` and
        `get_forces(apply_constraint=False)`: ASE zeroes forces on fixed atoms otherwise.
        """
        from ase import Atoms
        from ase.calculators.calculator import all_properties
        from ase.calculators.singlepoint import SinglePointCalculator
        from ase.constraints import FixAtoms

        atoms = Atoms(
            numbers=self.atomic_numbers, positions=self.positions, cell=self.cell, pbc=self.pbc, tags=self.tags
        )
        if self.fixed is not None and self.fixed.any():
            atoms.set_constraint(FixAtoms(mask=self.fixed))
        results: dict[str, Any] = {"energy": self.energy, "forces": self.forces}
        for name, value in self.targets.items():
            if name == "stress":
                results["stress"] = value.reshape(3, 3)[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
            elif name in all_properties:
                results[name] = value if value.ndim else value.item()
            elif value.ndim and len(value) == len(atoms):
                atoms.set_array(name, np.array(value))
            else:
                atoms.info[name] = np.array(value) if value.ndim else value.item()
        atoms.info["source_id"] = self.source_id
        results = {name: value for name, value in results.items() if value is not None}
        if results:
            atoms.calc = SinglePointCalculator(atoms, **results)
        return atoms

    @classmethod
    def from_ase(cls, atoms: Atoms, *, source_id: str | None = None) -> Structure:
        """Read geometry, tags, FixAtoms and calculator results; forces are raw, without ASE's constraint zeroing.

        Per-atom arrays and `info` entries become targets where they are numbers or text; other objects do not.

        Raises:
            InvalidStructureError: the atoms break the schema.
        """
        from ase.constraints import FixAtoms

        results = dict(getattr(atoms.calc, "results", None) or {})
        fixed = np.zeros(len(atoms), bool)
        for constraint in atoms.constraints:
            if isinstance(constraint, FixAtoms):
                fixed[constraint.get_indices()] = True
        targets: dict[str, Any] = {}
        stress = results.pop("stress", None)
        if stress is not None:
            from ase.stress import voigt_6_to_full_3x3_stress

            stress = np.asarray(stress)
            targets["stress"] = voigt_6_to_full_3x3_stress(stress) if stress.shape == (6,) else stress
        energy, forces = results.pop("energy", None), results.pop("forces", None)
        extra = {name: value for name, value in atoms.arrays.items() if name not in ("numbers", "positions", "tags")}
        for name, value in {**atoms.info, **extra, **results}.items():
            if name != "source_id" and value is not None and np.asarray(value).dtype.kind in _TARGET_KINDS:
                targets[name] = np.asarray(value)
        has_cell = bool(atoms.cell.array.any())
        return cls(
            atomic_numbers=atoms.numbers,
            positions=atoms.positions,
            cell=atoms.cell.array if has_cell else None,
            pbc=atoms.pbc,
            energy=energy,
            forces=forces,
            tags=atoms.get_tags() if atoms.has("tags") else None,
            fixed=fixed,
            source_id=source_id if source_id is not None else str(atoms.info.get("source_id", "")),
            targets=targets,
        )
