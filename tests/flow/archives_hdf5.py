"""ANI-1x and Transition-1x files written from the descriptions of their layouts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from tests.flow.truth import Truth

HARTREE = 27.211386024367243  # eV; CODATA 2014, as ASE has it
ANI1X_ENERGIES = (
    "wb97x_tz.energy", "ccsd(t)_cbs.energy", "hf_dz.energy", "hf_tz.energy", "hf_qz.energy", "mp2_dz.corr_energy",
    "mp2_tz.corr_energy", "mp2_qz.corr_energy", "npno_ccsd(t)_dz.corr_energy", "npno_ccsd(t)_tz.corr_energy",
    "tpno_ccsd(t)_dz.corr_energy",
)  # fmt: skip
ANI1X_SHAPES: dict[str, Callable[[int, int], tuple[int, ...]]] = {
    "wb97x_dz.dipole": lambda nc, na: (nc, 3),
    "wb97x_dz.quadrupole": lambda nc, na: (nc, 6),
    "wb97x_dz.cm5_charges": lambda nc, na: (nc, na),
    "wb97x_dz.hirshfeld_charges": lambda nc, na: (nc, na),
    "wb97x_tz.dipole": lambda nc, na: (nc, 3),
    "wb97x_tz.forces": lambda nc, na: (nc, na, 3),
    "wb97x_tz.mbis_charges": lambda nc, na: (nc, na),
    "wb97x_tz.mbis_dipoles": lambda nc, na: (nc, na),
    "wb97x_tz.mbis_quadrupoles": lambda nc, na: (nc, na),
    "wb97x_tz.mbis_octupoles": lambda nc, na: (nc, na),
    "wb97x_tz.mbis_volumes": lambda nc, na: (nc, na),
}
SYMBOLS = {"H": 1, "C": 6, "N": 7, "O": 8}


def write_ani1x_group(root: h5py.File, formula: dict[str, int], nc: int, seed: int, **options: Any) -> None:
    """One formula with all of the release's data sets; other levels of theory are NaN for most conformations."""
    rng = np.random.default_rng(seed)
    numbers = np.repeat([SYMBOLS[symbol] for symbol in formula], list(formula.values())).astype(np.uint8)
    rng.shuffle(numbers)
    na = len(numbers)
    group = root.create_group("".join(f"{symbol}{count}" for symbol, count in formula.items()))
    group.create_dataset("atomic_numbers", data=numbers)
    group.create_dataset("coordinates", data=rng.normal(scale=2, size=(nc, na, 3)).astype(np.float32), **options)
    group.create_dataset("wb97x_dz.energy", data=-230.0 - rng.random(nc), **options)
    forces = rng.normal(scale=0.05, size=(nc, na, 3)).astype(np.float32)
    group.create_dataset("wb97x_dz.forces", data=forces, **options)
    for name in ANI1X_ENERGIES:
        energies = -230.0 - rng.random(nc)
        energies[rng.random(nc) < 0.7] = np.nan
        group.create_dataset(name, data=energies, **options)
    for name, shape in ANI1X_SHAPES.items():
        values = rng.normal(size=shape(nc, na)).astype(np.float32)
        values[rng.random(nc) < 0.5] = np.nan
        group.create_dataset(name, data=values, **options)


def ani1x_truths(path: Path) -> list[Truth]:
    """Every conformation as h5py reads it; the split is left open, since it is a rule of the project."""
    truths = []
    with h5py.File(path) as file:
        for formula, group in file.items():
            energies = group["wb97x_dz.energy"][()]
            for index in range(len(energies)):
                truths.append(
                    Truth(
                        split="",
                        numbers=group["atomic_numbers"][()],
                        positions=group["coordinates"][index],
                        energy=float(energies[index]) * HARTREE,
                        forces=group["wb97x_dz.forces"][index].astype(np.float64) * HARTREE,
                        words=(formula, str(index)),
                    )
                )
    return truths


class Reaction(NamedTuple):
    """One band: numbers (natoms,), positions and forces (M, natoms, 3), energies (M,), index of the saddle."""

    formula: str
    name: str
    numbers: np.ndarray
    positions: np.ndarray
    energies: np.ndarray
    forces: np.ndarray
    saddle: int | None


def make_reaction(
    formula: str, name: str, numbers: list[int], iterations: int, seed: int, saddle: int | None
) -> Reaction:
    rng = np.random.default_rng(seed)
    frames = 10 + 8 * iterations
    return Reaction(
        formula,
        name,
        np.array(numbers, dtype=np.uint8),
        rng.normal(scale=2, size=(frames, len(numbers), 3)),
        -7000.0 - 10 * rng.random(frames),
        rng.normal(size=(frames, len(numbers), 3)),
        saddle,
    )


def write_reaction(parent: h5py.Group, reaction: Reaction, **options: Any) -> None:
    group = parent.require_group(reaction.formula).create_group(reaction.name)
    _write_frames(group, reaction, slice(None), **options)
    ends = {"reactant": slice(0, 1), "product": slice(9, 10)}
    if reaction.saddle is not None:
        ends["transition_state"] = slice(reaction.saddle, reaction.saddle + 1)
    for end, frames in ends.items():
        _write_frames(group.create_group(end), reaction, frames, **options)


def _write_frames(group: h5py.Group, reaction: Reaction, frames: slice, **options: Any) -> None:
    group.create_dataset("atomic_numbers", data=reaction.numbers)
    group.create_dataset("positions", data=reaction.positions[frames], **options)
    group.create_dataset("wB97x_6-31G(d).energy", data=reaction.energies[frames], **options)
    group.create_dataset("wB97x_6-31G(d).forces", data=reaction.forces[frames], **options)


def path_truths(reaction: Reaction, split: str) -> list[Truth]:
    """Each frame of the path once; the end points and the saddle are among them."""
    return [
        Truth(
            split=split,
            numbers=reaction.numbers,
            positions=reaction.positions[index],
            energy=float(reaction.energies[index]),
            forces=reaction.forces[index],
            words=(reaction.formula, reaction.name),
        )
        for index in range(len(reaction.energies))
    ]
