"""The outer structure of the released `.pt` files: a PyTorch Lightning checkpoint, read and written.

state_dict                 live weights under released names, scale factors, aliases, four counters
optimizer_states[0].ema    averaged weights: a tuple in the order of those keys that are trained tensors
optimizer_states[0].opt    moments of AdamW; they tell which elements were trained
hyper_parameters.backbone  sizes of the model, and leftovers of another code base that change nothing
jmp                        ours, in files that we export: what that layout has no place for
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jmp_data.errors import CheckpointError
from jmp_model.gemnet_oc.config import GemNetOCConfig
from jmp_model.weights.inert_pickle import Foreign
from jmp_model.weights.name_map import MODEL_PREFIXES, is_parameter, without_wrappers
from jmp_model.weights.torch_archive import read_torch_file

_ARCHITECTURE = {
    "num_targets": 1,
    "regress_energy": True,
    "rbf": {"name": "gaussian"},
    "rbf_spherical": None,
    "cbf": {"name": "spherical_harmonics"},
    "sbf": {"name": "legendre_outer"},
    "extensive": True,
    "forces_coupled": False,
    "activation": "scaled_silu",
    "quad_interaction": True,
    "atom_edge_interaction": True,
    "edge_atom_interaction": True,
    "atom_interaction": True,
    "scale_basis": False,
    "unique_basis_per_layer": False,
    "learnable_rbf": False,
    "learnable_rbf_stds": False,
    "use_pbc": True,
    "otf_graph": False,
    "dropout": None,
}
"""Settings of the original that every JMP model shares."""

_MAX_DEPTH = 16

# Entries that the original never reads.
_UNREAD = ("bond", "output", "output_init")

# Our own choices, which the original's settings have no word for.
_OURS = ("symmetrization", "collinear", "envelope_exponent")


@dataclass(frozen=True)
class ReleasedFile:
    """What a file in the released layout holds, under its own names.

    Attributes:
        backbone: sizes of the model.
        state: live weights, buffers and counters, in stored order.
        average: averaged weights by released name; None if the file has none.
        epoch, step: where training stood.
        trained_elements: atomic numbers whose embedding ever had a gradient; None if the file has no moments.
        ours: what `jmp checkpoint export` added; empty in other files.
        foreign: classes of the objects that were left unread → how many.
        sha256: of the file; empty before it is written.
    """

    backbone: GemNetOCConfig
    state: dict[str, Tensor]
    average: dict[str, Tensor] | None = None
    epoch: int = 0
    step: int = 0
    trained_elements: tuple[int, ...] | None = None
    ours: Mapping[str, Any] = field(default_factory=dict)
    foreign: Mapping[str, int] = field(default_factory=dict)
    sha256: str = ""


def read_released(path: Path) -> ReleasedFile:
    """Read a released checkpoint; nothing in it is executed.

    Raises:
        CheckpointError: it is a file of torch.save, but no JMP checkpoint.
        RawFileError: it is damaged or no such file at all.
        UnsafePickleError: it was made to execute something.
    """
    file = read_torch_file(path)
    content = _mapping(file.content)
    missing = [key for key in ("state_dict", "hyper_parameters") if key not in content]
    if missing:
        raise CheckpointError(
            f"{path}: not a JMP checkpoint: it lacks {' and '.join(missing)}; it holds {_names(content)}"
        )
    settings = _mapping(_mapping(content["hyper_parameters"]).get("backbone"))
    if not settings:
        raise CheckpointError(f"{path}: not a JMP checkpoint: hyper_parameters has no backbone settings")
    state = _mapping(content["state_dict"])
    wrong = [name for name, value in state.items() if not isinstance(name, str) or not isinstance(value, Tensor)]
    if wrong or not state:
        raise CheckpointError(f"{path}: not a JMP checkpoint: {wrong[0] if wrong else 'state_dict'} holds no tensor")
    try:
        state = without_wrappers(state)
        backbone = GemNetOCConfig.from_released(
            {name: value for name, value in _plain(settings).items() if name not in _UNREAD}
        )
    except (CheckpointError, TypeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: not a model of JMP: {error}") from error
    optimizer = _first(content.get("optimizer_states"))
    return ReleasedFile(
        backbone=backbone,
        state=state,
        average=_average(optimizer.get("ema"), state, path),
        epoch=_count(content.get("epoch")),
        step=_count(content.get("global_step")),
        trained_elements=_trained_elements(optimizer, backbone),
        ours=_plain(_mapping(content.get("jmp"))),
        foreign=file.foreign,
        sha256=_sha256(path),
    )


def write_released(file: ReleasedFile, path: Path) -> None:
    """Write a file in the released layout; it appears whole or not at all."""
    optimizer: dict[str, Any] = {"opt": {"state": {}, "param_groups": []}}
    if file.average is not None:
        optimizer |= {
            "ema": tuple(file.average[name] for name in file.state if is_parameter(name)),
            "current_step": file.step,
            "decay": file.ours.get("ema_decay"),
            "every_n_steps": 1,
        }
    content = {
        "epoch": file.epoch,
        "global_step": file.step,
        "pytorch-lightning_version": "2.0.0",
        "state_dict": file.state,
        "loops": {},
        "callbacks": {},
        "optimizer_states": [optimizer],
        "lr_schedulers": [],
        "hparams_name": "hparams",
        "hyper_parameters": {"backbone": released_settings(file.backbone)},
        "jmp": dict(file.ours),
    }
    partial = path.with_name(f".{path.name}.partial")
    try:
        torch.save(content, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def released_settings(config: GemNetOCConfig) -> dict[str, Any]:
    """The settings of a backbone under the original's names; `GemNetOCConfig.from_released` reads them back.

    Raises:
        CheckpointError: the model computes something that the original cannot.
    """
    if config.symmetrization != "reference":
        raise CheckpointError(
            f"the model was trained with symmetrization = {config.symmetrization!r}, which programs that read the "
            "released layout do not compute; they would give other numbers"
        )
    values = {name: value for name, value in config.to_dict().items() if name not in _OURS}
    return {
        **values,
        **_ARCHITECTURE,
        "envelope": {"name": "polynomial", "exponent": config.envelope_exponent},
        "regress_forces": config.direct_forces,
    }


def _average(stored: Any, state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor] | None:
    """Names for the averaged weights, which are stored without any."""
    if stored is None:
        return None
    names = [name for name in state if is_parameter(name)]
    if isinstance(stored, tuple | list) and len(stored) < len(names):
        # Tensors that somebody added outside the model need not have been trained with it.
        names = [name for name in names if name.startswith(MODEL_PREFIXES)]
    if not isinstance(stored, tuple | list) or len(stored) != len(names):
        size = len(stored) if isinstance(stored, tuple | list) else type(stored).__name__
        raise CheckpointError(f"{path}: {size} averaged tensors for {len(names)} trained ones; they cannot be matched")
    for name, value in zip(names, stored, strict=True):
        if not isinstance(value, Tensor) or value.shape != state[name].shape or value.dtype != state[name].dtype:
            raise CheckpointError(f"{path}: the averaged tensor of {name} has another shape or type than the live one")
    return dict(zip(names, stored, strict=True))


def _trained_elements(optimizer: Mapping[Any, Any], backbone: GemNetOCConfig) -> tuple[int, ...] | None:
    """Elements whose embedding has a second moment: the embedding is the first parameter, in every JMP model."""
    moments = _mapping(_mapping(_mapping(_mapping(optimizer.get("opt")).get("state")).get(0)))
    square = moments.get("exp_avg_sq")
    if not isinstance(square, Tensor) or square.shape != (backbone.num_elements, backbone.emb_size_atom):
        return None
    return tuple((square != 0).any(dim=1).nonzero().view(-1).add(1).tolist())


def _mapping(value: Any) -> Mapping[Any, Any]:
    """A dictionary, or the content of one of an unknown class; empty if it is neither."""
    if isinstance(value, Foreign):
        value = value.entries or value.state
    return value if isinstance(value, dict) else {}


def _first(value: Any) -> Mapping[Any, Any]:
    return _mapping(value[0]) if isinstance(value, list | tuple) and value else {}


def _plain(value: Any, depth: int = 0) -> Any:
    """Unwrap dictionaries of unknown classes, at any depth; other unknown objects become their class's name."""
    if depth > _MAX_DEPTH:
        raise CheckpointError("its settings are nested too deeply")
    if isinstance(value, Foreign) and not _mapping(value):
        return str(value.kind)
    if isinstance(value, dict | Foreign):
        return {key: _plain(item, depth + 1) for key, item in _mapping(value).items()}
    return [_plain(item, depth + 1) for item in value] if isinstance(value, list | tuple) else value


def _count(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _names(content: Mapping[Any, Any]) -> str:
    return ", ".join(sorted(map(str, content))[:8]) or "nothing by name"


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
