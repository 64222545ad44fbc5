"""What callers hand over, as checked float64 arrays: NumPy arrays, lists, or torch tensors wherever they live."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import numpy.typing as npt

from jmp_data.errors import InvalidStructureError

Array = npt.NDArray[Any]


def as_array(name: str, values: Any, dtype: npt.DTypeLike | None) -> Array:
    """Values as a contiguous array of that type; a torch tensor loses its gradient and comes from its device.

    Raises:
        InvalidStructureError: ragged lists, or no numbers.
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = (values.double() if values.is_floating_point() else values).numpy()
    try:
        return np.ascontiguousarray(values, dtype)
    except (TypeError, ValueError) as error:
        raise InvalidStructureError(f"{name} cannot be read as an array of numbers ({error})", "shape") from None


def check_geometry(positions: Any, cell: Any, pbc: Any) -> tuple[Array, Array, Array]:
    """One structure as float64 positions, a float64 cell whose open rows are zero, and bool pbc.

    Args:
        positions: (natoms, 3), Å.
        cell: (3, 3) or (1, 3, 3), Å, or None where nothing is periodic.
        pbc: three flags or one; None means periodic where a cell is given.

    Returns:
        positions, cell and pbc as arrays; the cell is all zero where nothing is periodic.

    Raises:
        InvalidStructureError: wrong shapes, non-finite values, or periodic without a cell.
    """
    positions = as_array("positions", positions, np.float64)
    pbc = as_array("pbc", cell is not None if pbc is None else pbc, np.bool_).reshape(-1)
    if positions.ndim != 2 or positions.shape[1] != 3:
        raise InvalidStructureError(f"positions have shape {positions.shape}, expected (natoms, 3)", "shape")
    if len(pbc) not in (1, 3):
        raise InvalidStructureError(f"pbc has {len(pbc)} flags, expected three or one", "shape")
    pbc = np.array(np.broadcast_to(pbc, 3))
    if cell is None and pbc.any():
        raise InvalidStructureError("periodic without a cell; give the cell or pbc=False", "no_cell")
    cell = np.zeros((3, 3)) if cell is None else as_array("cell", cell, np.float64)
    if cell.shape not in ((3, 3), (1, 3, 3)):
        raise InvalidStructureError(f"cell has shape {cell.shape}, expected (3, 3)", "shape")
    cell = np.where(pbc[:, None], cell.reshape(3, 3), 0.0)
    if not np.isfinite(positions).all():
        atom = int(np.argmin(np.isfinite(positions).all(axis=1)))
        raise InvalidStructureError(f"positions hold NaN or infinity, first at atom {atom}", "nonfinite_positions")
    if not np.isfinite(cell).all():
        raise InvalidStructureError("cell holds NaN or infinity", "nonfinite_cell")
    return positions, cell, pbc


def check_batch(positions: Any, cell: Any, pbc: Any, natoms: Any) -> tuple[Array, Array, Array, Array]:
    """Arrays of a batch as the kernel wants them, and the pointers to the first atom of each structure.

    Raises:
        InvalidStructureError: misshapen or non-finite arrays; the message says which structure.
    """
    natoms = as_array("natoms", natoms, np.int64).reshape(-1)
    positions, pbc = as_array("positions", positions, np.float64), as_array("pbc", pbc, np.bool_)
    cell = as_array("cell", cell, np.float64)
    if len(natoms) and natoms.min() < 0:
        raise InvalidStructureError(f"structure {np.argmin(natoms)} has {natoms.min()} atoms", "shape")
    ptr = np.zeros(len(natoms) + 1, np.int64)
    np.cumsum(natoms, out=ptr[1:])
    expected = {"positions": (int(ptr[-1]), 3), "cell": (len(natoms), 3, 3), "pbc": (len(natoms), 3)}
    for name, array in (("positions", positions), ("cell", cell), ("pbc", pbc)):
        if array.shape != expected[name]:
            raise InvalidStructureError(f"{name} has shape {array.shape}, expected {expected[name]}", "shape")
    cell = np.where(pbc[:, :, None], cell, 0.0)
    finite = np.isfinite(positions).all(axis=1)
    if not finite.all():
        structure = int(np.searchsorted(ptr, np.argmin(finite), "right")) - 1
        raise InvalidStructureError(f"structure {structure}: positions hold NaN or infinity", "nonfinite_positions")
    if not np.isfinite(cell).all():
        structure = int(np.argmin(np.isfinite(cell).all(axis=(1, 2))))
        raise InvalidStructureError(f"structure {structure}: cell holds NaN or infinity", "nonfinite_cell")
    return positions, cell, pbc, ptr


def check_cutoff(cutoff: Any) -> None:
    """Raise `InvalidStructureError` unless the cutoff is a positive, finite length in Å."""
    try:
        length = float(cutoff)
    except (TypeError, ValueError):
        length = -1.0
    if not 0.0 < length < float("inf"):
        raise InvalidStructureError(f"cutoff is {cutoff}; give a positive length in Å", "graph_settings")


def check_max_neighbors(limit: Any, name: str = "max_neighbors") -> None:
    """Raise `InvalidStructureError` unless the limit is a whole number of at least 1."""
    try:
        count = operator.index(limit)
    except TypeError:
        count = 0
    if count < 1:
        raise InvalidStructureError(f"{name} is {limit}; it must be a whole number, at least 1", "graph_settings")
