"""Write reactions in the published layout of ``Transition1x.h5``: ``data`` holds all, three more groups partition it.

Whether the published partition links to ``data`` or copies it is not documented, so all three ways can be written.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from ase.symbols import Symbols
from numpy.typing import NDArray

ENERGY_KEY = "wB97x_6-31G(d).energy"
FORCES_KEY = "wB97x_6-31G(d).forces"
FIRST_PATH_LENGTH = 10  # reactant, eight images, product; each later iteration adds its eight images
_PRODUCT_FRAME = 9


@dataclass(frozen=True, kw_only=True, eq=False)
class Reaction:
    """The frames of one nudged-elastic-band search, in the units of the file.

    Attributes:
        name: ``rxnNNNN``.
        split: ``train``, ``val`` or ``test``.
        atomic_numbers: (natoms,) integers.
        positions: (nframes, natoms, 3), Å; frame 0 is the reactant, frame 9 the product, nframes = 10 + 8k.
        energies: (nframes,), total, eV.
        forces: (nframes, natoms, 3), eV/Å.
        transition_state: the frame that the ``transition_state`` sub-group repeats.
    """

    name: str
    split: str
    atomic_numbers: NDArray[np.integer[Any]]
    positions: NDArray[np.float64]
    energies: NDArray[np.float64]
    forces: NDArray[np.float64]
    transition_state: int

    @property
    def formula(self) -> str:
        """Hill formula with the count 1 left out, such as ``C2H5NO2``."""
        return str(Symbols(np.asarray(self.atomic_numbers)).get_chemical_formula(mode="hill"))


def write_transition1x(
    path: Path, reactions: Iterable[Reaction], *, partition: Literal["hard", "soft", "copy"] = "hard"
) -> None:
    """Write reactions to one HDF5 file.

    Args:
        path: the file, named ``Transition1x.h5`` upstream.
        reactions: any order.
        partition: how ``train``, ``val`` and ``test`` refer to the reactions in ``data``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for split in ("data", "train", "val", "test"):
            file.create_group(split)
        for reaction in reactions:
            node = _write_reaction(file["data"].require_group(reaction.formula), reaction)
            member = file[reaction.split].require_group(reaction.formula)
            if partition == "hard":
                member[reaction.name] = node
            elif partition == "soft":
                member[reaction.name] = h5py.SoftLink(node.name)
            else:
                file.copy(node, member)


def _write_reaction(parent: h5py.Group, reaction: Reaction) -> h5py.Group:
    node = parent.create_group(reaction.name)
    _write_frames(node, reaction, slice(None))
    endpoints = {"reactant": 0, "product": _PRODUCT_FRAME, "transition_state": reaction.transition_state}
    for name, frame in endpoints.items():
        _write_frames(node.create_group(name), reaction, slice(frame, frame + 1))
    return node


def _write_frames(node: h5py.Group, reaction: Reaction, frames: slice) -> None:
    node["atomic_numbers"] = np.asarray(reaction.atomic_numbers, dtype=np.int64)
    node["positions"] = reaction.positions[frames]
    node[ENERGY_KEY] = reaction.energies[frames]
    node[FORCES_KEY] = reaction.forces[frames]
