"""Structures whose radius graphs are worth storing, and some whose graphs cannot be stored."""

from __future__ import annotations

import numpy as np

from jmp_data import Structure
from jmp_data.graphs import FourGraphs, batch_four_graphs


def slab(rng: np.random.Generator, number: int = 0) -> Structure:
    """A few layers of a rattled lattice under vacuum, bulk, surface and adsorbate tagged; energies and forces."""
    layers, side = int(rng.integers(2, 4)), int(rng.integers(1, 3))
    edge = rng.uniform(2.4, 3.2)
    sites = np.stack(np.meshgrid(*[np.arange(n) for n in (side, side, layers)], indexing="ij"), -1).reshape(-1, 3)
    positions = sites * edge + rng.normal(0, 0.1, sites.shape)
    positions = np.concatenate([positions, positions.max(axis=0) + rng.uniform(0.5, 2.0, (2, 3))])
    tags = np.concatenate([(sites[:, 2] == layers - 1).astype(int), [2, 2]])
    return Structure(
        atomic_numbers=np.concatenate([np.full(len(sites), 29), [6, 8]]),
        positions=positions,
        cell=np.diag([side * edge, side * edge, layers * edge + 15.0]) + np.tril(rng.normal(0, 0.3, (3, 3)), -1),
        pbc=[True, True, True],
        energy=float(rng.normal()),
        forces=rng.normal(size=positions.shape),
        tags=tags,
        source_id=f"slabs#{number}",
    )


def molecule(rng: np.random.Generator, number: int = 0) -> Structure:
    """Atoms in a ball, without a cell."""
    natoms = int(rng.integers(1, 24))
    return Structure(
        atomic_numbers=rng.choice([1, 6, 8], natoms),
        positions=rng.normal(scale=2.5, size=(natoms, 3)),
        energy=float(rng.normal()),
        forces=rng.normal(size=(natoms, 3)),
        source_id=f"molecules#{number}",
    )


def slabs(seed: int, count: int) -> list[Structure]:
    rng = np.random.default_rng(seed)
    return [slab(rng, number) for number in range(count)]


def molecules(seed: int, count: int) -> list[Structure]:
    rng = np.random.default_rng(seed)
    return [molecule(rng, number) for number in range(count)]


def mixed(seed: int, count: int) -> list[Structure]:
    """Slabs and molecules in turn."""
    rng = np.random.default_rng(seed)
    return [(slab if number % 2 else molecule)(rng, number) for number in range(count)]


def far_unwrapped() -> Structure:
    """An atom 200 cells away from the other: its cell offsets need more than a byte."""
    return Structure(
        atomic_numbers=[29, 29], positions=[[0, 0, 0], [603.0, 1, 1]], cell=np.eye(3) * 3.0, pbc=[True] * 3
    )


def flat_cell() -> Structure:
    """Periodic along two parallel vectors: it has no graph at all."""
    return Structure(
        atomic_numbers=[29], positions=[[0, 0, 0]], cell=[[3, 0, 0], [6, 0, 0], [0, 0, 9]], pbc=[True, True, False]
    )


def searched(block, settings) -> FourGraphs:
    """The four graphs of a block, found now; `settings` for each structure."""
    return batch_four_graphs(block.positions, block.cell, block.pbc, block.natoms, block.tags, settings)
