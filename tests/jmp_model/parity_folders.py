"""Parity folders of other models and structures, with numbers from the original formulation written out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from safetensors.torch import save_file

from benchmarks.reference_gemnet import ReferenceGemNet
from jmp_data.graphs import MOLECULE, PERIODIC, GraphSettings
from jmp_model.gemnet_oc.graphs import GRAPH_NAMES, ModelInputs
from jmp_model.model import PretrainingModel
from jmp_model.weights.name_map import to_released
from jmp_model.weights.released import released_settings
from tests.jmp_model.gemnet_oc.structures import make_inputs

Arrays = dict[str, np.ndarray]


def write_folder(folder: Path, model: PretrainingModel, cases: Mapping[str, list[Atoms]]) -> None:
    """Configuration, weights and one file for each case."""
    graph = {"periodic": _limits(PERIODIC), "molecule": _limits(MOLECULE)}
    settings = released_settings(model.config)
    config = {"tasks": list(model.tasks), "backbone": settings, "graph": graph}
    (folder / "config.json").write_text(json.dumps(config))
    state = {name: value.contiguous().clone() for name, value in to_released(model.state_dict(), tasks=()).items()}
    save_file(state, folder / "pretrain_model.safetensors")
    for name, structures in cases.items():
        np.savez(folder / f"{name}.npz", **case_arrays(model, structures))  # type: ignore[arg-type]


def case_arrays(model: PretrainingModel, structures: list[Atoms]) -> Arrays:
    """Inputs, graphs and outputs, in evaluation and in training mode."""
    inputs = make_inputs(structures)
    tags = [atoms.get_tags() if atoms.has("tags") else np.full(len(atoms), 2) for atoms in structures]
    arrays: dict[str, Any] = {
        "pos": inputs.positions,
        "cell": inputs.cell,
        "atomic_numbers": inputs.atomic_numbers,
        "tags": np.concatenate(tags),
        "batch": inputs.batch,
        "natoms": inputs.natoms,
        "periodic": np.array([atoms.pbc.any() for atoms in structures]),
        **_graph_arrays(inputs),
    }
    with torch.no_grad():
        for suffix, mode in (("", False), ("_trainmode", True)):
            out = ReferenceGemNet(model).train(mode)(inputs)
            arrays |= {f"energy{suffix}": out.energy, f"forces{suffix}": out.forces}
    model.eval()
    return {name: np.asarray(value) for name, value in arrays.items()}


def _graph_arrays(inputs: ModelInputs) -> dict[str, Any]:
    arrays: dict[str, Any] = {}
    for name in GRAPH_NAMES:
        edges = getattr(inputs.graphs, name)
        source, target = edges.edge_index
        shift = torch.einsum("ei,eij->ej", edges.cell_offsets.double(), inputs.cell[inputs.batch[target]])
        distance = (inputs.positions[target] - inputs.positions[source] - shift).norm(dim=-1)
        arrays |= {f"{name}_edge_index": edges.edge_index, f"{name}_cell_offset": edges.cell_offsets}
        arrays[f"{name}_distance"] = distance
    return arrays


def _limits(settings: GraphSettings) -> dict[str, float]:
    return {
        "cutoff": settings.cutoff,
        "main": settings.main,
        "aeaint": settings.a2ee2a,
        "qint": settings.qint,
        "aint": settings.a2a,
    }
