"""Reading a parity directory: its configuration, weights and inputs.

The directory holds `config.json`, `pretrain_model.safetensors` with released key names, `finetune_head.safetensors` and
any number of `*.npz` files, whose kind is told by the arrays in them and not by their names. Arrays that a structure
can do without (cell, offsets, tags, batch, natoms, periodic) may be missing.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from jmp_data.errors import CheckpointError, MissingFileError, RawFileError
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

WEIGHTS_FILE, HEAD_FILE = "pretrain_model.safetensors", "finetune_head.safetensors"
VANISHING = 1e-12
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
    try:
        raw = json.loads(path.read_text())
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
    except KeyError as error:
        raise RawFileError(f"{path} lacks the entry {error}") from error
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise RawFileError(f"{path}: damaged, or of another layout ({error})") from error


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
    path = directory / WEIGHTS_FILE
    _take_weights(model, from_released(_read_weights(path)), path)
    return model.eval()


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise MissingFileError(f"{path} does not exist")
    try:
        return load_file(path)
    except (SafetensorError, ValueError, OSError) as error:
        raise RawFileError(f"{path}: damaged, or no safetensors file ({error}); get it again") from error


def _take_weights(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Set all weights; scale factors of 0 act as identity from then on, as in the original."""
    own = model.state_dict()
    missing = [name for name in own if name not in state]
    foreign = [name for name in state if name not in own]
    other = [name for name, value in state.items() if name in own and own[name].shape != value.shape]
    if missing or foreign or other:
        raise CheckpointError(
            f"{path}: of another model than config.json describes: {len(missing)} tensors are missing, {len(foreign)} "
            f"unknown, {len(other)} of another shape; first {(missing + foreign + other)[0]}"
        )
    model.load_state_dict(dict(state))
    set_allow_unfitted(model, True)


def load_finetuning_model(directory: Path, precision: Precision = "float64", **changes: Any) -> FineTuningModel:
    """Build the gradient-force model: the pre-trained backbone without force branch, and the bias-free energy head."""
    config = load_parity_config(directory)
    backbone = replace(config.backbone, direct_forces=False, edge_dropout=0.0, **changes)
    head_path = directory / HEAD_FILE
    head_weights = _read_weights(head_path)
    head = EnergyHead(backbone, num_layers=len(head_weights))
    model = FineTuningModel(backbone, {"energy": head}, forces_from_gradient=True).to(DTYPES[precision])
    wanted = model.state_dict().keys()
    state = from_released(_read_weights(directory / WEIGHTS_FILE))
    state = {name: tensor for name, tensor in state.items() if name in wanted}
    state |= {name.replace("out_energy", "heads.energy.out_mlp"): tensor for name, tensor in head_weights.items()}
    _take_weights(model, state, head_path)
    return model.eval()


def read_arrays(path: Path) -> dict[str, Array]:
    """All arrays of one file; nothing pickled is read.

    Raises:
        RawFileError: it is damaged, or no such file.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (ValueError, OSError, EOFError, KeyError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise RawFileError(f"{path}: damaged, or no file of arrays ({error}); get it again") from error


def case_kind(arrays: Arrays) -> CaseKind:
    """Tell what a file holds by the arrays in it."""
    if "gradient_forces" in arrays:
        return "finetune"
    if {"pos", "main_edge_index"} <= arrays.keys():
        return "system"
    if "gaussian_raw" in arrays or "scaled_silu" in arrays:
        return "functions"
    return "unknown"


def find_cases(directory: Path) -> Iterator[tuple[str, dict[str, Array], CaseKind]]:
    """All `*.npz` files directly in the directory, sorted by name, completed where they hold structures.

    Raises:
        RawFileError: a file is damaged, or lacks an array that every structure needs.
    """
    for path in sorted(directory.glob("*.npz")):
        arrays = read_arrays(path)
        kind = case_kind(arrays)
        yield path.stem, _completed(arrays, path) if kind in ("system", "finetune") else arrays, kind


def _completed(arrays: dict[str, Array], path: Path) -> dict[str, Array]:
    """Fill in what a file of structures may leave out."""
    needed = ("pos", "atomic_numbers", *(f"{name}_edge_index" for name in GRAPH_NAMES))
    missing = [name for name in needed if name not in arrays]
    if missing:
        raise RawFileError(f"{path}: lacks the array {missing[0]}")
    num_atoms = len(arrays["pos"])
    if "batch" not in arrays:
        natoms = np.atleast_1d(arrays.get("natoms", np.array([num_atoms])))
        arrays["batch"] = np.repeat(np.arange(len(natoms)), natoms)
    arrays["natoms"] = np.atleast_1d(arrays.get("natoms", np.bincount(arrays["batch"])))
    if int(arrays["natoms"].sum()) != num_atoms or len(arrays["batch"]) != num_atoms:
        raise RawFileError(f"{path}: natoms and batch do not count the {num_atoms} rows of pos")
    num_structures = len(arrays["natoms"])
    arrays.setdefault("tags", np.full(num_atoms, 2))
    arrays.setdefault("cell", np.zeros((num_structures, 3, 3)))
    for name in GRAPH_NAMES:
        arrays.setdefault(f"{name}_cell_offset", np.zeros((arrays[f"{name}_edge_index"].shape[1], 3), np.int64))
    if "periodic" not in arrays:
        crossing = arrays["batch"][arrays["a2a_edge_index"][1][arrays["a2a_cell_offset"].any(axis=1)]]
        arrays["periodic"] = np.isin(np.arange(num_structures), crossing)
    return arrays


def read_inputs(arrays: Arrays, precision: Precision = "float64") -> ModelInputs:
    """Structures and stored graphs of one file, as `find_cases` gives it."""
    dtype = DTYPES[precision]
    sets = {
        name: EdgeSet(
            torch.as_tensor(arrays[f"{name}_edge_index"]).long(), torch.as_tensor(arrays[f"{name}_cell_offset"]).long()
        )
        for name in GRAPH_NAMES
    }
    return ModelInputs(
        atomic_numbers=torch.as_tensor(arrays["atomic_numbers"]).long(),
        positions=torch.as_tensor(arrays["pos"]).to(dtype),
        cell=torch.as_tensor(arrays["cell"]).to(dtype).view(-1, 3, 3),
        batch=torch.as_tensor(arrays["batch"]).long(),
        natoms=torch.as_tensor(arrays["natoms"]).long(),
        graphs=Graphs(**sets),
    )


def graph_settings(arrays: Arrays, config: ParityConfig, case: str) -> list[GraphSettings] | None:
    """Settings for each structure of a case; None for a fine-tuning case that `config.json` does not name."""
    if case_kind(arrays) == "finetune":
        named = config.finetune.get(case.removeprefix("finetune_"))
        return None if named is None else [named] * len(arrays["natoms"])
    return [config.periodic if periodic else config.molecule for periodic in arrays["periodic"]]


def build_graphs(arrays: Arrays, settings: list[GraphSettings]) -> FourGraphs:
    """Build the four graphs of a case from its positions."""
    pbc = np.repeat(np.asarray(arrays["periodic"], bool)[:, None], 3, axis=1)
    cell = np.asarray(arrays["cell"], np.float64).reshape(-1, 3, 3)
    return batch_four_graphs(arrays["pos"], cell, pbc, arrays["natoms"], arrays["tags"], settings)


def relative_error(ours: Any, stored: Any) -> float:
    """Largest deviation over the stored array's largest magnitude; 1 if shapes differ or something is not finite.

    Arrays that vanish but for rounding, as forces at centres of inversion do, are compared absolutely.
    """
    if ours is None:
        return 1.0
    ours = ours.detach().cpu().numpy() if isinstance(ours, torch.Tensor) else np.asarray(ours)
    ours, stored = ours.astype(np.float64), np.asarray(stored, np.float64)
    if ours.shape != stored.shape or not np.isfinite(ours).all() or not np.isfinite(stored).all():
        return 1.0
    if not stored.size:
        return 0.0
    largest = float(np.abs(stored).max())
    return float(np.abs(ours - stored).max()) / (largest if largest > VANISHING else 1.0)
