"""OC20 S2EF sets written from the description of their layout, by ASE's own writer and by hand."""

from __future__ import annotations

import io
import lzma
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.build import add_adsorbate, fcc111
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.data import chemical_symbols
from ase.io import write

from tests.flow.truth import Truth


class Frame(NamedTuple):
    """One frame: atoms with all arrays rounded to the eight decimals of the published text, and its line in N.txt."""

    atoms: Atoms
    energy: float
    free_energy: float
    forces: np.ndarray
    fixed: np.ndarray
    system: str
    step: str
    reference: float


def make_frames(count: int, seed: int = 0) -> list[Frame]:
    """Slabs with an adsorbate, each rattled; labels are numbers, since reading is what is under test."""
    rng = np.random.default_rng(seed)
    return [_make_frame(rng, index) for index in range(count)]


def _make_frame(rng: np.random.Generator, index: int) -> Frame:
    metal = ("Cu", "Pt", "Ag", "Au", "Ni")[index % 5]
    atoms = fcc111(metal, size=(2, 1 + index % 3, 3), vacuum=8.0, periodic=True)
    tags = np.array([1 if tag == 1 else 0 for tag in atoms.get_tags()])
    add_adsorbate(atoms, ("O", "H", "N", "Cl")[index % 4], 1.7 + rng.random())
    atoms.set_tags([*tags, 2])
    atoms.info.clear()  # ASE's builder keeps a dictionary there that its writer warns about
    atoms.positions = np.round(atoms.positions + rng.normal(scale=0.08, size=(len(atoms), 3)), 8)
    fixed = np.array([tag == 0 for tag in atoms.get_tags()])
    if index % 11 == 7:
        fixed[:] = False
    energy = float(-300.0 * rng.random() - 20.0)
    forces = np.round(rng.normal(scale=0.7, size=(len(atoms), 3)), 8)
    forces[0] = (-0.0, 0.0, -1e-8)
    return Frame(
        atoms,
        energy,
        energy - 0.0123 * rng.random(),
        forces,
        fixed,
        f"random{int(rng.integers(1, 2_500_000))}",
        f"frame{int(rng.integers(0, 400))}",
        float(energy + rng.normal()),
    )


def truth_of(frame: Frame, split: str) -> Truth:
    return Truth(
        split=split,
        numbers=frame.atoms.numbers,
        positions=frame.atoms.positions,
        energy=frame.energy,
        forces=frame.forces,
        cell=frame.atoms.cell.array,
        pbc=tuple(bool(flag) for flag in frame.atoms.pbc),
        tags=frame.atoms.get_tags(),
        fixed=frame.fixed,
        words=(frame.system, frame.step),
    )


def text_by_ase(frames: Sequence[Frame]) -> str:
    """The frames as ASE writes them: labels from a calculator, fixed atoms from a constraint."""
    images = []
    for frame in frames:
        atoms = frame.atoms.copy()
        atoms.set_constraint(FixAtoms(indices=np.flatnonzero(frame.fixed)) if frame.fixed.any() else None)
        atoms.calc = SinglePointCalculator(
            atoms, energy=frame.energy, free_energy=frame.free_energy, forces=frame.forces
        )
        images.append(atoms)
    stream = io.StringIO()
    write(stream, images, format="extxyz")
    return stream.getvalue()


COLUMNS: dict[str, tuple[str, Callable[[Frame, int], str]]] = {
    "species": ("species:S:1", lambda frame, i: f"{chemical_symbols[frame.atoms.numbers[i]]:<8}"),
    "pos": ("pos:R:3", lambda frame, i: "".join(f"{value:16.8f}" for value in frame.atoms.positions[i])),
    "move_mask": ("move_mask:L:1", lambda frame, i: " F" if frame.fixed[i] else " T"),
    "tags": ("tags:I:1", lambda frame, i: f"{frame.atoms.get_tags()[i]:8d}"),
    "forces": ("forces:R:3", lambda frame, i: "".join(f"{value:16.8f}" for value in frame.forces[i])),
    "energies": ("energies:R:1", lambda frame, i: f"{0.1 * i:16.8f}"),
    "magmoms": ("initial_magmoms:R:1", lambda frame, i: f"{0.5 * i:16.8f}"),
    "free": ("free_atoms:L:1", lambda frame, i: " T" if i % 2 else " F"),
}
PUBLISHED = ("species", "pos", "move_mask", "tags", "forces")


def published_comment(frame: Frame, properties: str) -> str:
    lattice = " ".join(repr(float(value)) for value in frame.atoms.cell.array.ravel())
    return (
        f'Lattice="{lattice}" Properties={properties} energy={frame.energy!r} free_energy={frame.free_energy!r} '
        'pbc="T T T"'
    )


def text_by_hand(
    frames: Sequence[Frame],
    columns: Sequence[str] = PUBLISHED,
    comment: Callable[[Frame, str], str] = published_comment,
    row: Callable[[str], str] = lambda line: line,
) -> str:
    """The frames with chosen columns and comment line; `row` may rewrite each atom line."""
    properties = ":".join(COLUMNS[name][0] for name in columns)
    lines = []
    for frame in frames:
        lines += [str(len(frame.atoms)), comment(frame, properties)]
        lines += [row(" ".join(COLUMNS[name][1](frame, i) for name in columns)) for i in range(len(frame.atoms))]
    return "\n".join(lines) + "\n"


def ids_text(frames: Sequence[Frame]) -> str:
    return "".join(f"{frame.system},{frame.step},{frame.reference!r}\n" for frame in frames)


def write_pair(folder: Path, number: int, frames: Sequence[Frame], text: str | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = text_by_ase(frames) if text is None else text
    (folder / f"{number}.extxyz.xz").write_bytes(lzma.compress(text.encode()))
    (folder / f"{number}.txt.xz").write_bytes(lzma.compress(ids_text(frames).encode()))


def write_set(raw: Path, name: str, frames: Sequence[Frame], *, per_file: int) -> Path:
    """A whole set as unpacked from its archive: doubled folder, README, numbered pairs, the last one shorter."""
    folder = raw / name / name
    for number, start in enumerate(range(0, len(frames), per_file)):
        write_pair(folder, number, frames[start : start + per_file])
    (raw / name / f"README_{name}.md").write_text("# S2EF\n")
    return folder
