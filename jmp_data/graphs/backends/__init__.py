"""Interchangeable neighbour searches. One file each, one signature, one result to the last edge.

A search takes checked arrays (float64 positions, cell with open rows zero, pbc, cutoff in Å, neighbour limit or None)
and returns `edge_index`, `cell_offsets` and `distances` in canonical order. Libraries only propose pairs; the distance,
the cutoff test and the truncation are always those of `jmp_data.graphs.truncation`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, Literal, get_args

import numpy.typing as npt

from jmp_data.errors import InvalidStructureError

Array = npt.NDArray[Any]
Search = Callable[[Array, Array, Array, float, int | None], tuple[Array, Array, Array]]
BackendName = Literal["auto", "numba", "numpy", "pymatgen", "vesin", "nvalchemi", "torch_cluster"]

_MODULES: dict[str, str] = {
    "numba": "numba_search",
    "numpy": "numpy_search",
    "pymatgen": "pymatgen_search",
    "vesin": "vesin_search",
    "nvalchemi": "nvalchemi_search",
    "torch_cluster": "torch_cluster_search",
}


def choose_backend(name: BackendName, pbc: Array) -> Search:
    """The search of that name; "auto" is the compiled kernel, which is right everywhere.

    Args:
        name: backend.
        pbc: (3,) bool; a backend that cannot do this periodicity is refused.

    Raises:
        InvalidStructureError: unknown backend, or one that is wrong for this periodicity.
        MissingExtraError: the backend's package is not installed.
    """
    if name == "auto":
        name = "numba"
    if name not in _MODULES:
        raise InvalidStructureError(f"backend {name!r} is unknown; choose one of {get_args(BackendName)}", "backend")
    if name == "torch_cluster" and pbc.any():
        raise InvalidStructureError("backend 'torch_cluster' knows no periodicity; use 'auto'", "backend")
    search: Search = import_module(f"{__name__}.{_MODULES[name]}").search
    return search
