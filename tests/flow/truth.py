"""What went into an archive, kept beside it, and the comparison with what a build made of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import jmp_data


@dataclass(frozen=True)
class Truth:
    """One structure as its maker knows it, in eV and Å.

    positions and forces (natoms, 3), cell (3, 3), tags and fixed (natoms,); all `words` must occur in the source id.
    """

    split: str
    numbers: np.ndarray
    positions: np.ndarray
    energy: float
    forces: np.ndarray
    cell: np.ndarray = field(default_factory=lambda: np.zeros((3, 3)))
    pbc: tuple[bool, bool, bool] = (False, False, False)
    tags: np.ndarray | None = None
    fixed: np.ndarray | None = None
    words: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[bytes, bytes]:
        """Elements and positions in single precision: the same in the archive and in the shards."""
        return np.asarray(self.numbers, dtype=np.uint8).tobytes(), np.asarray(
            self.positions, dtype=np.float32
        ).tobytes()


def assert_same(built: Path, truths: list[Truth], *, energy_rtol: float = 0.0) -> None:
    """Every truth is in `built/<split>` exactly once, with its labels, and nothing else is."""
    for split in sorted({truth.split for truth in truths}):
        assert_same_split(built / split, [truth for truth in truths if truth.split == split], energy_rtol=energy_rtol)


def assert_same_split(folder: Path, truths: list[Truth], *, energy_rtol: float = 0.0) -> None:
    dataset = jmp_data.open_dataset(str(folder))
    structures = [dataset[index] for index in range(len(dataset))]
    assert len(structures) == len(truths), f"{folder}: {len(structures)} structures, {len(truths)} were written"
    found = {
        (
            structure.atomic_numbers.astype(np.uint8).tobytes(),
            structure.positions.astype(np.float32).tobytes(),
        ): structure
        for structure in structures
    }
    assert len(found) == len(truths)
    assert len({structure.source_id for structure in structures}) == len(truths), "source ids repeat"
    for truth in truths:
        structure = found[truth.key]
        if energy_rtol:
            np.testing.assert_allclose(structure.energy, truth.energy, rtol=energy_rtol)
        else:
            assert structure.energy == truth.energy
        np.testing.assert_allclose(structure.forces, truth.forces.astype(np.float32), rtol=2e-7)
        cell = np.zeros((3, 3)) if structure.cell is None else structure.cell
        np.testing.assert_allclose(cell, truth.cell, rtol=1e-7)
        assert tuple(bool(flag) for flag in structure.pbc) == truth.pbc
        if truth.tags is not None:
            np.testing.assert_array_equal(structure.tags, truth.tags)
        if truth.fixed is not None:
            np.testing.assert_array_equal(structure.fixed, truth.fixed)
        for word in truth.words:
            assert word in structure.source_id, f"{word} is not in {structure.source_id}"
