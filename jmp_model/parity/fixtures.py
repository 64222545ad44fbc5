"""Reading a parity directory: its configuration, weights and inputs.

The directory holds `config.json`, `pretrain_model.safetensors` with released key names, `finetune_head.safetensors` and
any number of `*.npz` files, whose kind is told by the arrays in them and not by their names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file

from jmp_data.errors import MissingFileError, RawFileError
from jmp_data.graphs import FourGraphs, GraphSettings, batch_four_graphs
from jmp_model.gemnet_oc.config import GemNetOCConfig
from jmp_model.gemnet_oc.graphs import GRAPH_NAMES, EdgeSet, Graphs, ModelInputs
from jmp_model.gemnet_oc.scaling import set_allow_unfitted
from jmp_model.heads.finetuning import EnergyHead
from jmp_model.model import FineTuningModel, PretrainingModel
from jmp_model.weights.name_map import from_released

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]
Errors = dict[str, float]
Precision = Literal["float64", "float32"]
CaseKind = Literal["system", "finetune", "functions", "unknown"]

DTYPES: dict[Precision, torch.dtype] = {"float64": torch.float64, "float32": torch.float32}


@dataclass(frozen=True)
class ParityConfig:
    """What `config.json` says.

    Attributes:
        backbone: sizes of the model; tasks: order of its heads.
        periodic, molecule: graph settings by kind of structure.
        finetune: graph settings of each fine-tuning case, by the last part of its file name.
        fitted_scales: what fitting gives, module path below the backbone → value.
    """

    backbone: GemNetOCConfig
    tasks: tuple[str, ...]
    periodic: GraphSettings
    molecule: GraphSettings
    finetune: dict[str, GraphSettings]
    fitted_scales: dict[str, float]


def load_parity_config(directory: Path) -> ParityConfig:
    """Read `config.json` of a parity directory.

    Raises:
        MissingFileError: there is none.
        RawFileError: it lacks an entry.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise MissingFileError(f"{path} does not exist: {directory} is not a parity directory")
    raw = json.loads(path.read_text())
    try:
        backbone = GemNetOCConfig.from_released(raw["backbone"])
        tags = backbone.qint_tags
        return ParityConfig(
            backbone=backbone,
            tasks=tuple(raw["tasks"]),
            periodic=_graph_settings(raw["graph"]["periodic"], tags),
            molecule=_graph_settings(raw["graph"]["molecule"], tags),
            finetune={
                name: _graph_settings({"cutoff": s["cutoff"], **s["max_neighbors"]}, tags)
                for name, s in raw.get("finetune", {}).items()
            },
            fitted_scales=raw.get("scale_factors_fitted_before_perturbation", {}),
        )
    except (KeyError, TypeError) as error:
        raise RawFileError(f"{path} lacks the entry {error}") from error


def _graph_settings(raw: Mapping[str, Any], tags: tuple[int, ...]) -> GraphSettings:
    return GraphSettings(
        cutoff=float(raw["cutoff"]),
        main=int(raw["main"]),
        a2a=int(raw["aint"]),
        a2ee2a=int(raw["aeaint"]),
        qint=int(raw["qint"]),
        qint_tags=tags,
    )


def load_pretraining_model(directory: Path, precision: Precision = "float64", **changes: Any) -> PretrainingModel:
    """Build the pre-training model of a parity directory, in evaluation mode.

    Unfitted scale factors act as identity, as in the original.

    Args:
        directory: has `config.json` and `pretrain_model.safetensors`.
        precision: of all weights.
        **changes: fields of the configuration to replace.
    """
    config = load_parity_config(directory)
    model = PretrainingModel(replace(config.backbone, **changes), tasks=config.tasks).to(DTYPES[precision])
    model.load_state_dict(from_released(load_file(directory / "pretrain_model.safetensors")))
    set_allow_unfitted(model, True)
    return model.eval()


def load_finetuning_model(directory: Path, precision: Precision = "float64", **changes: Any) -> FineTuningModel:
    """Build the gradient-force model: the pre-trained backbone without force branch, and the bias-free energy head."""
    config = load_parity_config(directory)
    backbone = replace(config.backbone, direct_forces=False, edge_dropout=0.0, **changes)
    head_path = directory / "finetune_head.safetensors"
    if not head_path.is_file():
        raise MissingFileError(f"{head_path} does not exist, but there are fine-tuning cases")
    head_weights = load_file(head_path)
    head = EnergyHead(backbone, num_layers=len(head_weights))
    model = FineTuningModel(backbone, {"energy": head}, forces_from_gradient=True).to(DTYPES[precision])
    state = from_released(load_file(directory / "pretrain_model.safetensors"))
    wanted = model.state_dict().keys()
    state = {name: tensor for name, tensor in state.items() if name in wanted}
    state |= {name.replace("out_energy", "heads.energy.out_mlp"): tensor for name, tensor in head_weights.items()}
    model.load_state_dict(state)
    set_allow_unfitted(model, True)
    return model.eval()


def read_arrays(path: Path) -> dict[str, Array]:
    """All arrays of one file; nothing pickled is read."""
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def case_kind(arrays: Arrays) -> CaseKind:
    """Tell what a file holds by the arrays in it."""
    if "gradient_forces" in arrays:
        return "finetune"
    if {"pos", "main_edge_index", "energy", "forces"} <= arrays.keys():
        return "system"
    if "gaussian_raw" in arrays or "scaled_silu" in arrays:
        return "functions"
    return "unknown"


def find_cases(directory: Path) -> Iterator[tuple[str, dict[str, Array], CaseKind]]:
    """All `*.npz` files directly in the directory, sorted by name."""
    for path in sorted(directory.glob("*.npz")):
        arrays = read_arrays(path)
        yield path.stem, arrays, case_kind(arrays)


def read_inputs(arrays: Arrays, precision: Precision = "float64") -> ModelInputs:
    """Structures and stored graphs of one file.

    Cells and cell offsets are zero where a file has none.
    """
    dtype = DTYPES[precision]
    num_structures = len(arrays["natoms"])
    cell = arrays["cell"] if "cell" in arrays else np.zeros((num_structures, 3, 3))
    sets = {}
    for name in GRAPH_NAMES:
        index = arrays[f"{name}_edge_index"]
        offsets = arrays.get(f"{name}_cell_offset", np.zeros((index.shape[1], 3)))
        sets[name] = EdgeSet(torch.as_tensor(index).long(), torch.as_tensor(offsets).long())
    return ModelInputs(
        atomic_numbers=torch.as_tensor(arrays["atomic_numbers"]).long(),
        positions=torch.as_tensor(arrays["pos"]).to(dtype),
        cell=torch.as_tensor(cell).to(dtype).view(-1, 3, 3),
        batch=torch.as_tensor(arrays["batch"]).long(),
        natoms=torch.as_tensor(arrays["natoms"]).long(),
        graphs=Graphs(**sets),
    )


def build_graphs(arrays: Arrays, config: ParityConfig, case: str) -> FourGraphs:
    """Build the four graphs of a case from its positions."""
    num_structures = len(arrays["natoms"])
    periodic = np.asarray(arrays.get("periodic", np.zeros(num_structures)), bool)
    settings: GraphSettings | list[GraphSettings]
    if case_kind(arrays) == "finetune":
        name = case.removeprefix("finetune_")
        if name not in config.finetune:
            raise RawFileError(f"config.json has no finetune entry {name!r} for the case {case}")
        settings = config.finetune[name]
    else:
        settings = [config.periodic if p else config.molecule for p in periodic]
    cell = arrays["cell"] if "cell" in arrays else np.zeros((num_structures, 3, 3))
    pbc = np.repeat(periodic[:, None], 3, axis=1)
    return batch_four_graphs(arrays["pos"], cell, pbc, arrays["natoms"], arrays["tags"], settings)


def relative_error(ours: Any, stored: Any) -> float:
    """Largest deviation over the stored array's largest magnitude; 1 if shapes differ or something is not finite."""
    ours = ours.detach().cpu().numpy() if isinstance(ours, torch.Tensor) else np.asarray(ours)
    ours, stored = ours.astype(np.float64), np.asarray(stored, np.float64)
    if ours.shape != stored.shape or not np.isfinite(ours).all():
        return 1.0
    if not stored.size:
        return 0.0
    largest = float(np.abs(stored).max())
    return float(np.abs(ours - stored).max()) / (largest if largest > 0 else 1.0)
