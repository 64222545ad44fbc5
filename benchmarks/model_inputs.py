"""Batches of realistic size for timing models: rattled metal slabs with adsorbates, and organic molecules."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from ase import Atoms
from ase.build import add_adsorbate, bcc110, fcc100, fcc111, hcp0001, molecule

from jmp_data.graphs import MOLECULE, PERIODIC, batch_four_graphs
from jmp_model.gemnet_oc.graphs import Graphs, ModelInputs

_SLABS = (
    (fcc111, "Pt", "Cu", "CH3CH2OH", {}),
    (hcp0001, "Ru", "Ru", "CH3CHO", {}),
    (bcc110, "Fe", "Ni", "C2H6", {}),
    (fcc100, "Pd", "Ag", "C6H6", {}),
)
_MOLECULES = (
    ("CH3CH2OH",), ("CH3COCH3",), ("C6H6",), ("C5H5N",), ("trans-butane",), ("isobutane",), ("CH3CH2OCH3",),
    ("C4H4O",), ("C6H6", "CH3CHO"), ("C5H5N", "CH3OH"), ("trans-butane", "C6H6"), ("isobutane", "H2O"),
    ("CH3CH2OH", "C3H8"), ("C4H4NH",), ("CH3COOH", "H3CNH2"), ("C3H8",),
)  # fmt: skip


def make_slab(kind: int, seed: int, *, rattle: float = 0.08) -> Atoms:
    """One of four 64-atom binary metal slabs with an organic adsorbate, tags as in OC20; 71 to 76 atoms."""
    build, first, second, adsorbate, options = _SLABS[kind % len(_SLABS)]
    rng = np.random.default_rng(seed)
    slab = build(first, (4, 4, 4), vacuum=10.0, **options)
    slab.symbols[rng.random(len(slab)) < 0.5] = second
    surface = np.where(slab.get_tags() == 1, 1, 0)
    extra = molecule(adsorbate)
    add_adsorbate(slab, extra, 2.2, position=slab.positions[slab.get_tags() == 1].mean(0)[:2])
    slab.set_tags(np.concatenate([surface, np.full(len(extra), 2)]))
    slab.positions += rng.normal(scale=rattle, size=slab.positions.shape)
    slab.pbc = True
    return slab


def make_molecule(kind: int, seed: int, *, rattle: float = 0.05) -> Atoms:
    """An organic molecule, or two of them 4 Å apart; 9 to 26 atoms."""
    names = _MOLECULES[kind % len(_MOLECULES)]
    atoms = molecule(names[0])
    for name in names[1:]:
        second = molecule(name)
        second.positions[:, 2] += atoms.positions[:, 2].max() - second.positions[:, 2].min() + 2.5
        atoms += second
    atoms.positions += np.random.default_rng(seed).normal(scale=rattle, size=atoms.positions.shape)
    atoms.set_tags(2)
    return atoms


def make_batch(structures: Sequence[Atoms], *, dtype: torch.dtype = torch.float32) -> ModelInputs:
    """Batch structures with their four graphs, by the pre-training settings."""
    natoms = [len(atoms) for atoms in structures]
    pbc = np.stack([atoms.pbc for atoms in structures])
    positions = np.concatenate([atoms.positions for atoms in structures])
    cell = np.stack([np.asarray(atoms.cell) for atoms in structures])
    tags = np.concatenate([atoms.get_tags() for atoms in structures])
    settings = [PERIODIC if atoms.pbc.any() else MOLECULE for atoms in structures]
    return ModelInputs(
        atomic_numbers=torch.as_tensor(np.concatenate([atoms.numbers for atoms in structures])).long(),
        positions=torch.as_tensor(positions).to(dtype),
        cell=torch.as_tensor(cell).to(dtype),
        batch=torch.repeat_interleave(torch.as_tensor(natoms)),
        natoms=torch.as_tensor(natoms),
        graphs=Graphs.from_any(batch_four_graphs(positions, cell, pbc, natoms, tags, settings)),
    )


def slabs(count: int, *, seed: int = 0) -> ModelInputs:
    """OC20-like batch."""
    return make_batch([make_slab(i, seed + i) for i in range(count)])


def molecules(count: int, *, seed: int = 0) -> ModelInputs:
    """ANI-like batch."""
    return make_batch([make_molecule(i, seed + i) for i in range(count)])
