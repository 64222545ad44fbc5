"""Small structures and models that the tests of the backbone share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule

from jmp_data.graphs import MOLECULE, PERIODIC, GraphSettings, batch_four_graphs
from jmp_model.gemnet_oc.graphs import Graphs, ModelInputs
from jmp_model.gemnet_oc.scaling import scale_factors
from jmp_model.model import PretrainingModel
from jmp_model.presets import preset


def make_inputs(
    structures: Sequence[Atoms], *, dtype: torch.dtype = torch.float64, settings: GraphSettings | None = None
) -> ModelInputs:
    """Batch structures with their four graphs; tags 2 unless an `Atoms` has some."""
    natoms = [len(atoms) for atoms in structures]
    positions = np.concatenate([atoms.positions for atoms in structures])
    cell = np.stack([np.asarray(atoms.cell) for atoms in structures])
    pbc = np.stack([atoms.pbc for atoms in structures])
    tags = np.concatenate([atoms.get_tags() if atoms.has("tags") else np.full(len(atoms), 2) for atoms in structures])
    each = [settings or (PERIODIC if atoms.pbc.any() else MOLECULE) for atoms in structures]
    graphs = batch_four_graphs(positions, cell, pbc, natoms, tags, each)
    return ModelInputs(
        atomic_numbers=torch.as_tensor(np.concatenate([atoms.numbers for atoms in structures])).long(),
        positions=torch.as_tensor(positions).to(dtype),
        cell=torch.as_tensor(cell).to(dtype),
        batch=torch.repeat_interleave(torch.as_tensor(natoms)),
        natoms=torch.as_tensor(natoms),
        graphs=Graphs.from_any(graphs),
    )


def rattled(atoms: Atoms, seed: int, *, size: float = 0.1) -> Atoms:
    """Move every atom at random, so that no two distances are equal."""
    moved = atoms.copy()
    moved.positions += np.random.default_rng(seed).normal(scale=size, size=moved.positions.shape)
    return moved


def some_molecule(seed: int = 0, name: str = "CH3CH2OH") -> Atoms:
    return rattled(molecule(name), seed)


def some_crystal(seed: int = 0) -> Atoms:
    atoms = bulk("NaCl", "rocksalt", a=5.6)
    atoms.set_cell(atoms.cell @ (np.eye(3) + 0.05 * np.random.default_rng(seed).normal(size=(3, 3))), scale_atoms=True)
    return rattled(atoms, seed)


def some_slab(seed: int = 0) -> Atoms:
    slab = fcc111("Cu", (2, 2, 3), vacuum=8.0)
    slab.set_tags(np.where(slab.get_tags() == 1, 1, 0))
    slab.pbc = True
    return rattled(slab, seed)


def tiny_model(seed: int = 0, *, dtype: torch.dtype = torch.float64, **changes: object) -> PretrainingModel:
    """A tiny model whose scale factors have plausible values."""
    torch.manual_seed(seed)
    model = PretrainingModel(preset("tiny", **changes)).to(dtype)
    plausible = {"scale_rbf": 3.0, "scale_cbf": 5.0, "scale_cbf_sum": 3.0, "scale_sbf_sum": 5.0, "scale_sum": 0.8}
    for name, factor in scale_factors(model):
        factor.set(plausible.get(name.rsplit(".", 1)[-1], 1.0))
    return model.eval()
