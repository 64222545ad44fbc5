"""Write a trajectory in the published layout of rMD17: one ``npz`` per molecule and the shared index lists.

Arrays are in the file's own units, kcal/mol and Å.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

NUM_SPLITS = 5
PUBLISHED_SPLIT_SIZE = 1000


@dataclass(frozen=True, kw_only=True, eq=False)
class MoleculeTrajectory:
    """Frames of one molecule in the shuffled order of the file.

    Attributes:
        name: lower-case molecule name, such as ``ethanol``.
        nuclear_charges: (natoms,) integers.
        coords: (nframes, natoms, 3), Å.
        energies: (nframes,), kcal/mol.
        forces: (nframes, natoms, 3), kcal/mol/Å.
        old_indices: (nframes,) int64, place of each frame in the trajectory; ``None`` leaves a key out, as in
            files cut down by others.
        old_energies: (nframes,), kcal/mol, the same frames at the older level of theory.
        old_forces: (nframes, natoms, 3), kcal/mol/Å.
    """

    name: str
    nuclear_charges: NDArray[np.integer[Any]]
    coords: NDArray[np.float64]
    energies: NDArray[np.float64]
    forces: NDArray[np.float64]
    old_indices: NDArray[np.int64] | None = None
    old_energies: NDArray[np.float64] | None = None
    old_forces: NDArray[np.float64] | None = None


def write_rmd17_molecule(directory: Path, trajectory: MoleculeTrajectory) -> Path:
    """Write ``directory/rmd17/npz_data/rmd17_<name>.npz``.

    Args:
        directory: the folder into which the archive would have been unpacked.
        trajectory: the molecule.

    Returns:
        The file written.
    """
    path = directory / "rmd17" / "npz_data" / f"rmd17_{trajectory.name}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, NDArray[Any]] = {
        "nuclear_charges": np.asarray(trajectory.nuclear_charges, dtype=np.uint8),
        "coords": trajectory.coords,
        "energies": trajectory.energies,
        "forces": trajectory.forces,
    }
    older = {name: getattr(trajectory, name) for name in ("old_indices", "old_energies", "old_forces")}
    arrays |= {name: values for name, values in older.items() if values is not None}
    np.savez_compressed(path, allow_pickle=False, **arrays)
    return path


def write_rmd17_splits(
    directory: Path, num_frames: int, *, split_size: int = PUBLISHED_SPLIT_SIZE, seed: int = 0
) -> None:
    """Write the five pairs of disjoint lists ``rmd17/splits/index_{train,test}_0N.csv``: 0-based rows, one a line.

    Args:
        directory: the folder into which the archive would have been unpacked.
        num_frames: frames of each molecule.
        split_size: rows in each list, upstream 1,000; at most half of ``num_frames``.
        seed: of the five shuffles.
    """
    folder = directory / "rmd17" / "splits"
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for number in range(1, NUM_SPLITS + 1):
        rows = random.permutation(num_frames)[: 2 * split_size].reshape(2, split_size)
        for kind, members in zip(("train", "test"), rows, strict=True):
            (folder / f"index_{kind}_{number:02d}.csv").write_text("".join(f"{row}\n" for row in members))
