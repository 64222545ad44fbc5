"""What each demo archive holds: the calculations that it needs, and how their results become its files.

A plan is a list of independent calculations. Each has its own seed, so the results do not depend on which process runs
which, or when.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jmp_data.demo.frames import LabelledFrame
from jmp_data.demo.molecules import (
    CONFORMER_MOLECULES,
    HELD_OUT_MOLECULE,
    HELD_OUT_NAME,
    LabelledConformers,
    relabel,
    run_trajectory,
    sample_conformers,
)
from jmp_data.demo.oxides import relax_oxides
from jmp_data.demo.reactions import HYDROGEN_SHIFTS, search_path
from jmp_data.demo.surfaces import relax_adsorbates
from jmp_data.demo.write_ani1x import FormulaGroup, write_ani1x
from jmp_data.demo.write_oc20 import write_oc20_split
from jmp_data.demo.write_oc22 import write_oc22_split
from jmp_data.demo.write_rmd17 import MoleculeTrajectory, write_rmd17_molecule, write_rmd17_splits
from jmp_data.demo.write_transition1x import FIRST_PATH_LENGTH, Reaction, write_transition1x
from jmp_data.schema.units import CODATA_2014

_OC20_SPLITS = {"s2ef_train_200K": 1000, "s2ef_val_id": 200}
_OC20_FRAMES_PER_FILE = 250  # upstream 5,000; several files even so
_OC22_SPLITS = {"train": 200, "val_id": 50}
_OC22_FRAMES_PER_FILE = 100
_FRAMES_PER_TASK = 40
_CONFORMERS = 50
_ITERATIONS = 7
_TRAJECTORY_FRAMES = 1200  # the reference's 950 + 50 leave 200 to test on


@dataclass(frozen=True)
class Calculation:
    """One independent piece of physics: a function, its arguments, and how many structures of which split it makes."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    structures: int
    split: str = ""

    def __call__(self) -> Any:
        """Run it."""
        return self.function(*self.arguments)


@dataclass(frozen=True)
class ArchivePlan:
    """One archive.

    Attributes:
        name: data set, and folder of the archive.
        labels: where energies and forces come from.
        needs_xtb: whether the calculations need ``tblite``.
        calculations: what to run.
        write: takes a folder and the results in order, writes the archive there and returns structures by split.
    """

    name: str
    labels: str
    needs_xtb: bool
    calculations: tuple[Calculation, ...]
    write: Callable[[Path, Sequence[Any]], dict[str, int]]


def plan_archives(seed: int, scale: float) -> tuple[ArchivePlan, ...]:
    """Plan the five archives; the longest calculations come first.

    Args:
        seed: of every random choice.
        scale: share of the usual number of structures; the systems themselves stay the same size.

    Returns:
        rMD17 (the held-out molecule), OC22, Transition-1x, ANI-1x and OC20.
    """
    planners = (_plan_rmd17, _plan_oc22, _plan_transition1x, _plan_ani1x, _plan_oc20)
    return tuple(plan(seed, scale) for plan in planners)


def _plan_oc20(seed: int, scale: float) -> ArchivePlan:
    calculations = _plan_relaxations(relax_adsorbates, _OC20_SPLITS, (seed, 20), scale)

    def write(directory: Path, results: Sequence[list[LabelledFrame]]) -> dict[str, int]:
        random = np.random.default_rng((seed, 20))
        counts = {}
        for split in _OC20_SPLITS:
            frames = _gather(split, calculations, results)
            # Upstream, the frames of a file come from different systems.
            shuffled = [frames[index] for index in random.permutation(len(frames))]
            write_oc20_split(directory, split, shuffled, frames_per_file=_OC20_FRAMES_PER_FILE)
            counts[split] = len(frames)
        return counts

    return ArchivePlan("oc20", "effective medium theory (ASE EMT)", False, calculations, write)


def _plan_oc22(seed: int, scale: float) -> ArchivePlan:
    calculations = _plan_relaxations(relax_oxides, _OC22_SPLITS, (seed, 22), scale)

    def write(directory: Path, results: Sequence[list[LabelledFrame]]) -> dict[str, int]:
        counts = {}
        for split in _OC22_SPLITS:
            frames = _gather(split, calculations, results)
            write_oc22_split(
                directory, split, frames, frames_per_file=_OC22_FRAMES_PER_FILE, generations=("pyg1", "pyg2")
            )
            counts[split] = len(frames)
        return counts

    return ArchivePlan("oc22", "GFN1-xTB, periodic, Γ point (tblite)", True, calculations, write)


def _plan_relaxations(
    relax: Callable[..., list[LabelledFrame]], splits: dict[str, int], seed: tuple[int, int], scale: float
) -> tuple[Calculation, ...]:
    """Cut the frames of every split into calculations of equal size with their own range of system numbers."""
    calculations: list[Calculation] = []
    for split, usual in splits.items():
        count = max(2, round(usual * scale))
        for start in range(0, count, _FRAMES_PER_TASK):
            size = min(_FRAMES_PER_TASK, count - start)
            number = len(calculations)
            calculations.append(Calculation(relax, (size, 1000 * (number + 1), (*seed, number)), size, split))
    return tuple(calculations)


def _gather(
    split: str, calculations: Sequence[Calculation], results: Sequence[list[LabelledFrame]]
) -> list[LabelledFrame]:
    pairs = zip(calculations, results, strict=True)
    return [frame for calculation, frames in pairs if calculation.split == split for frame in frames]


def _plan_ani1x(seed: int, scale: float) -> ArchivePlan:
    molecules = CONFORMER_MOLECULES[: max(3, round(len(CONFORMER_MOLECULES) * scale))]
    count = max(_CONFORMERS, round(_CONFORMERS * scale))
    calculations = tuple(
        Calculation(sample_conformers, (name, count, (seed, 1, number)), count) for number, name in enumerate(molecules)
    )

    def write(directory: Path, results: Sequence[LabelledConformers]) -> dict[str, int]:
        write_ani1x(directory / "ani1x-release.h5", _group_by_formula(results))
        return {"all": sum(len(result.energies) for result in results)}

    return ArchivePlan("ani1x", "GFN2-xTB (tblite)", True, calculations, write)


def _group_by_formula(results: Sequence[LabelledConformers]) -> list[FormulaGroup]:
    """Pool isomers, as the release does, and convert to its units."""
    pools: dict[tuple[int, ...], list[LabelledConformers]] = {}
    for result in results:
        pools.setdefault(tuple(result.atomic_numbers.tolist()), []).append(result)
    groups = []
    for numbers, members in pools.items():
        dipoles = np.concatenate([member.dipoles for member in members])
        dipoles[::3] = np.nan  # the release, too, lacks the dipoles of some conformations
        groups.append(
            FormulaGroup(
                atomic_numbers=np.array(numbers),
                coordinates=np.concatenate([member.positions for member in members]),
                energy=np.concatenate([member.energies for member in members]) / CODATA_2014.hartree,
                forces=np.concatenate([member.forces for member in members]) / CODATA_2014.hartree,
                labels={"wb97x_dz.dipole": dipoles},
            )
        )
    return groups


def _plan_transition1x(seed: int, scale: float) -> ArchivePlan:
    """Plan reactions; nothing in them is random, the seed only numbers them."""
    iterations = max(_ITERATIONS, round(_ITERATIONS * scale))
    chosen = []
    for split in ("train", "val", "test"):
        members = [shift for shift in HYDROGEN_SHIFTS if shift.split == split]
        chosen += members[: max(1, round(len(members) * scale))]
    structures = FIRST_PATH_LENGTH + 8 * iterations
    calculations = tuple(
        Calculation(search_path, (shift, 100 * seed + number, iterations), structures, shift.split)
        for number, shift in enumerate(chosen)
    )

    def write(directory: Path, results: Sequence[Reaction]) -> dict[str, int]:
        write_transition1x(directory / "Transition1x.h5", results)
        counts = dict.fromkeys(("train", "val", "test"), 0)
        for reaction in results:
            counts[reaction.split] += len(reaction.energies)
        return counts

    return ArchivePlan("transition1x", "GFN2-xTB (tblite)", True, calculations, write)


def _plan_rmd17(seed: int, scale: float) -> ArchivePlan:
    count = max(30, round(_TRAJECTORY_FRAMES * scale))
    calculation = Calculation(_run_held_out, (count, (seed, 17)), count)

    def write(directory: Path, results: Sequence[tuple[LabelledConformers, LabelledConformers]]) -> dict[str, int]:
        ((new, old),) = results
        order = np.random.default_rng((seed, 17)).permutation(count)  # the published frames are shuffled, too
        write_rmd17_molecule(
            directory,
            MoleculeTrajectory(
                name=HELD_OUT_NAME,
                nuclear_charges=new.atomic_numbers,
                coords=new.positions[order],
                energies=new.energies[order] / CODATA_2014.kcal_per_mol,
                forces=new.forces[order] / CODATA_2014.kcal_per_mol,
                old_indices=order,
                old_energies=old.energies[order] / CODATA_2014.kcal_per_mol,
                old_forces=old.forces[order] / CODATA_2014.kcal_per_mol,
            ),
        )
        write_rmd17_splits(directory, count, split_size=min(1000, count // 3), seed=seed)
        return {HELD_OUT_NAME: count}

    return ArchivePlan("rmd17", "GFN2-xTB, old_*: GFN1-xTB (tblite)", True, (calculation,), write)


def _run_held_out(count: int, seed: Sequence[int]) -> tuple[LabelledConformers, LabelledConformers]:
    """Run the held-out molecule; GFN1-xTB plays the older level of theory."""
    trajectory = run_trajectory(HELD_OUT_MOLECULE, count, seed)
    return trajectory, relabel(trajectory, "GFN1-xTB")
