"""Structures, `ase.Atoms` or a `torch_geometric` batch → what the model reads, graphs included."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from jmp_data import Structure
from jmp_data.errors import InvalidStructureError
from jmp_data.graphs import GRAPH_NAMES, GraphSettings, batch_four_graphs
from jmp_data.schema.structure import DEFAULT_TAG
from jmp_model.gemnet_oc.graphs import Graphs, ModelInputs

if TYPE_CHECKING:
    from ase import Atoms

GraphRule = Callable[[int, bool], GraphSettings]
"""(number of atoms, periodic along any axis) → graph settings."""


def model_inputs(structures: Any, graphs: GraphRule) -> ModelInputs:
    """One batch, on the CPU in float64 unless it comes as tensors.

    Args:
        structures: a `Structure` or `ase.Atoms`, a sequence of them, or a `torch_geometric` `Data` or `Batch` with
            pos, atomic_numbers and, where there are any, cell, pbc, natoms and tags. Graphs that a batch carries are
            used as they are; all others are built.
        graphs: settings of the graphs to build.

    Raises:
        InvalidStructureError: something else, or atoms that break the schema.
    """
    if isinstance(structures, ModelInputs):
        return structures
    if hasattr(structures, "pos"):
        return _from_batch(structures, graphs)
    if isinstance(structures, Structure) or hasattr(structures, "get_atomic_numbers"):
        structures = [structures]
    if not isinstance(structures, Sequence) or not structures:
        raise InvalidStructureError(
            "a model reads structures, ase.Atoms, a sequence of them or a torch_geometric batch, "
            f"not {type(structures).__name__}"
        )
    return _from_structures([as_structure(entry) for entry in structures], graphs)


def as_structure(atoms: Structure | Atoms) -> Structure:
    """Geometry and tags of `ase.Atoms`; labels that it may carry are not looked at.

    Tags that were never set count as 2, as for molecules and bulk crystals.
    """
    if isinstance(atoms, Structure):
        return atoms
    if not hasattr(atoms, "get_atomic_numbers"):
        raise InvalidStructureError(f"a model reads structures and ase.Atoms, not {type(atoms).__name__}")
    return Structure(
        atomic_numbers=atoms.numbers,
        positions=atoms.positions,
        cell=atoms.cell.array if atoms.cell.array.any() else None,
        pbc=atoms.pbc,
        tags=atoms.get_tags() if atoms.has("tags") else None,
    )


def element_symbol(number: int) -> str:
    """Symbol of an element, or its number where there is no symbol: embeddings go up to 120."""
    from ase.data import chemical_symbols

    return chemical_symbols[number] if 0 < number < len(chemical_symbols) else f"Z={number}"


def _from_structures(structures: Sequence[Structure], graphs: GraphRule) -> ModelInputs:
    natoms = np.array([s.natoms for s in structures])
    cells = [np.zeros((3, 3)) if s.cell is None else s.cell for s in structures]
    return _build(
        atomic_numbers=torch.from_numpy(np.concatenate([s.atomic_numbers for s in structures]).astype(np.int64)),
        positions=torch.from_numpy(np.concatenate([s.positions for s in structures]).astype(np.float64)),
        cell=torch.from_numpy(np.stack(cells).astype(np.float64)),
        pbc=np.stack([np.asarray(s.pbc) for s in structures]),
        natoms=torch.from_numpy(natoms),
        tags=np.concatenate([np.asarray(s.tags) for s in structures]),
        graphs=graphs,
    )


def _from_batch(batch: Any, graphs: GraphRule) -> ModelInputs:
    positions: Tensor = batch.pos
    if getattr(batch, "atomic_numbers", None) is None:
        raise InvalidStructureError("the batch has no atomic_numbers (N,)", "shape")
    index = getattr(batch, "batch", None)
    if index is None:
        index = torch.zeros(len(positions), dtype=torch.long, device=positions.device)
    if bool((index.diff() < 0).any()):
        raise InvalidStructureError(
            "the atoms of a batch must come structure by structure: batch (N,) descends", "shape"
        )
    count = int(getattr(batch, "num_graphs", 1) or 1)
    natoms = torch.bincount(index, minlength=count)
    cell, pbc = getattr(batch, "cell", None), getattr(batch, "pbc", None)
    if cell is None:
        cell = torch.zeros(count, 3, 3)
    cell = cell.to(positions).view(-1, 3, 3)
    if all(hasattr(batch, f"{name}_edge_index") for name in GRAPH_NAMES):
        batch = batch.clone()
        batch.cell, batch.batch, batch.natoms = cell, index, natoms
        return ModelInputs.from_batch(batch)
    if pbc is None and bool(cell.any()):
        raise InvalidStructureError("the batch has cells but no pbc (B, 3): say along which axes it is periodic", "pbc")
    tags = getattr(batch, "tags", None)
    return _build(
        atomic_numbers=batch.atomic_numbers.long().view(-1),
        positions=positions,
        cell=cell,
        pbc=np.zeros((count, 3), bool) if pbc is None else pbc.bool().cpu().view(-1, 3).numpy(),
        natoms=natoms,
        tags=np.full(len(positions), DEFAULT_TAG) if tags is None else tags.cpu().numpy(),
        graphs=graphs,
    )


def _build(
    *, atomic_numbers: Tensor, positions: Tensor, cell: Tensor, pbc: Any, natoms: Tensor, tags: Any, graphs: GraphRule
) -> ModelInputs:
    """Search the four graphs on the CPU."""
    settings = [graphs(int(n), bool(periodic)) for n, periodic in zip(natoms, pbc.any(axis=1), strict=True)]
    found = batch_four_graphs(
        positions.detach().cpu().double().numpy(),
        cell.detach().cpu().double().numpy(),
        pbc,
        natoms.cpu().numpy(),
        tags,
        settings,
    )
    return ModelInputs(
        atomic_numbers=atomic_numbers,
        positions=positions,
        cell=cell,
        batch=torch.repeat_interleave(natoms),
        natoms=natoms,
        graphs=Graphs.from_any(found).to(positions.device),
    )
