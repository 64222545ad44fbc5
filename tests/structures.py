"""Random but valid structures and blocks for tests, and hypothesis strategies for them."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from jmp_data.schema import Structure


def random_structure(
    rng: np.random.Generator, natoms: int, number: int = 0, *, periodic: bool | None = None
) -> Structure:
    """A structure with float32 geometry, as blocks store it."""
    periodic = bool(rng.integers(2)) if periodic is None else periodic
    return Structure(
        atomic_numbers=rng.integers(1, 119, natoms),
        positions=rng.normal(scale=5, size=(natoms, 3)).astype(np.float32),
        cell=(np.eye(3) * 9 + rng.normal(size=(3, 3))).astype(np.float32) if periodic else None,
        energy=float(rng.normal(scale=1e4)),
        forces=rng.normal(size=(natoms, 3)).astype(np.float32),
        tags=rng.integers(0, 3, natoms),
        fixed=rng.integers(0, 2, natoms).astype(bool),
        source_id=f"file.h5#group/{number}",
    )


def random_structures(seed: int, count: int, *, low: int = 1, high: int = 20) -> list[Structure]:
    """Structures of random size."""
    rng = np.random.default_rng(seed)
    return [random_structure(rng, int(rng.integers(low, high)), number) for number in range(count)]


def structure_lists(max_size: int = 40) -> st.SearchStrategy[list[Structure]]:
    """Lists of valid structures."""
    return st.builds(random_structures, st.integers(0, 2**31), st.integers(1, max_size))


def assert_same_structure(left: Structure, right: Structure) -> None:
    """Equal to the last bit."""
    for name in ("atomic_numbers", "positions", "pbc", "forces", "tags", "fixed"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), err_msg=name)
    left_cell = np.zeros((3, 3)) if left.cell is None else left.cell
    right_cell = np.zeros((3, 3)) if right.cell is None else right.cell
    np.testing.assert_array_equal(left_cell, right_cell)
    assert left.energy == right.energy
    assert left.source_id == right.source_id
    assert set(left.targets) == set(right.targets)
    for name in left.targets:
        np.testing.assert_array_equal(left.targets[name], right.targets[name])
