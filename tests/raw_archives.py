"""Tiny raw archives in the published layouts, with random labels: what the build and the commands are tested on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jmp_data import demo


def random_frames(seed: int, count: int) -> list[demo.LabelledFrame]:
    """Small slabs with every label."""
    rng = np.random.default_rng(seed)
    frames = []
    for number in range(count):
        natoms = int(rng.integers(3, 9))
        tags = np.sort(rng.integers(0, 3, natoms))
        frames.append(
            demo.LabelledFrame(
                atomic_numbers=rng.choice([1, 8, 29, 78], natoms),
                positions=rng.normal(scale=4, size=(natoms, 3)).round(8),
                energy=float(rng.normal(-300, 20)),
                forces=rng.normal(size=(natoms, 3)).round(8),
                cell=np.diag(rng.uniform(5, 12, 3)),
                tags=tags,
                fixed=tags == 0,
                system=1000 + number % 7,
                frame=number,
                reference_energy=float(rng.normal(-290, 20)),
            )
        )
    return frames


def write_oc20(raw: Path, *, train: int = 23, val: int = 7, frames_per_file: int = 5) -> None:
    """s2ef_train_200K and s2ef_val_id."""
    demo.write_oc20_split(raw, "s2ef_train_200K", random_frames(1, train), frames_per_file=frames_per_file)
    demo.write_oc20_split(raw, "s2ef_val_id", random_frames(2, val), frames_per_file=frames_per_file)


def write_oc22(raw: Path, *, train: int = 11, val: int = 4) -> None:
    """train and val_id LMDBs."""
    demo.write_oc22_split(raw, "train", random_frames(3, train), frames_per_file=4, generations=("pyg1", "pyg2"))
    demo.write_oc22_split(raw, "val_id", random_frames(4, val))


def write_ani1x(raw: Path, *, groups: int = 12, conformations: int = 9) -> None:
    """`ani1x-release.h5` with a few formulas."""
    rng = np.random.default_rng(5)
    formulas = []
    for carbons in range(1, groups + 1):
        numbers = np.array([6] * carbons + [1] * (carbons + 2) + [8])
        formulas.append(
            demo.FormulaGroup(
                atomic_numbers=numbers,
                coordinates=rng.normal(scale=2, size=(conformations, len(numbers), 3)).astype(np.float32),
                energy=-38.0 * carbons + rng.normal(size=conformations),
                forces=rng.normal(scale=0.05, size=(conformations, len(numbers), 3)).astype(np.float32),
            )
        )
    demo.write_ani1x(raw / "ani1x-release.h5", formulas)


def write_transition1x(raw: Path, *, reactions: int = 6) -> None:
    """`Transition1x.h5` with reactions in each split."""
    rng = np.random.default_rng(6)
    written = []
    for number in range(reactions):
        natoms = 5 + number
        written.append(
            demo.Reaction(
                name=f"rxn{number:04d}",
                split=("train", "train", "train", "train", "val", "test")[number % 6],
                atomic_numbers=np.array([6] * 3 + [1] * (natoms - 3)),
                positions=rng.normal(scale=2, size=(18, natoms, 3)),
                energies=rng.normal(-3000, 1, 18),
                forces=rng.normal(size=(18, natoms, 3)),
                transition_state=4,
            )
        )
    demo.write_transition1x(raw / "Transition1x.h5", written)


def write_all(raw: Path) -> Path:
    """All four archives in one folder."""
    raw.mkdir(parents=True, exist_ok=True)
    write_oc20(raw)
    write_oc22(raw)
    write_ani1x(raw)
    write_transition1x(raw)
    return raw
