"""Files of exactly the released layout, with everything that a training program leaves in them."""

from __future__ import annotations

import collections
import dataclasses
import enum
import json
import pathlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from jmp_model.gemnet_oc.config import GemNetOCConfig
from jmp_model.model import PretrainingModel
from jmp_model.presets import PRETRAINING_TASKS
from jmp_model.weights.name_map import is_parameter, released_names
from tests.shared import SHARED

LEFTOVERS = {
    "name": "gemnet_oc_backbone",
    "ln": False,
    "replace_scale_factors_with_ln": False,
    "old_gaussian_implementation": False,
    "scale_file": "/private/home/somebody/scale_files/small.pt",
    "bond": {"embedding": True},
}


class Attributes(dict):  # type: ignore[type-arg]
    """A dictionary with attributes, as Lightning keeps hyper-parameters."""


class Stage(enum.Enum):
    TRAIN = "train"


@dataclasses.dataclass(slots=True)
class FitLoop:
    """An object with slots, nested in the checkpoint."""

    epoch: int
    owner: Any = None


class Callback:
    class State:
        def __init__(self) -> None:
            self.best = torch.tensor(0.25)


class Metric(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(3))


def parity_state() -> dict[str, Tensor]:
    """Weights of the parity model under released names, in released order, which safetensors does not keep."""
    assert SHARED is not None
    state: dict[str, Tensor] = load_file(SHARED / "parity" / "pretrain_model.safetensors")
    with torch.device("meta"):
        model = PretrainingModel(GemNetOCConfig.from_released(parity_settings()))
    return {name: state[name] for name, _ in released_names(model.state_dict())}


def parity_settings() -> dict[str, Any]:
    """Backbone settings of the parity model."""
    assert SHARED is not None
    settings: dict[str, Any] = json.loads((SHARED / "parity" / "config.json").read_text())["backbone"]
    return settings


def perturbed(state: Mapping[str, Tensor], seed: int = 0) -> tuple[Tensor, ...]:
    """Averaged weights: every trained tensor, a little different from the live one, in stored order."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        value + 0.01 * torch.randn(value.shape, generator=generator, dtype=value.dtype)
        for name, value in state.items()
        if is_parameter(name)
    )


def lightning_checkpoint(
    state: Mapping[str, Tensor], settings: Mapping[str, Any], *, trained: tuple[int, ...] = (1, 6, 8)
) -> dict[str, Any]:
    """The dictionary that `torch.save` got: weights, averages, moments, and wrapper objects of all kinds."""
    module = torch.nn.Linear(1, 1)
    released = collections.OrderedDict(state)
    released._metadata = module.state_dict()._metadata  # type: ignore[attr-defined]
    for number, task in enumerate(PRETRAINING_TASKS):
        released[f"task_steps._module_dict._typed_moduledict_{task}.value"] = torch.tensor(float(number))
    embedding = state["embedding.atom_embedding.weight"]
    square = torch.zeros_like(embedding)
    square[[z - 1 for z in trained]] = 0.5
    hyper_parameters = Attributes(backbone=Attributes({**settings, **LEFTOVERS}), stage=Stage.TRAIN)
    hyper_parameters["root"] = pathlib.PurePosixPath("/checkpoint/somebody")
    return {
        "epoch": 1,
        "global_step": 1234,
        "pytorch-lightning_version": "2.0.2",
        "state_dict": released,
        "loops": {"fit_loop": {"state_dict": {}, "loop": FitLoop(1, Metric())}},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5), "state": Callback.State()}},
        "optimizer_states": [
            {
                "opt": {
                    "state": {0: {"step": torch.tensor(1234.0), "exp_avg_sq": square}},
                    "param_groups": [{"lr": 1e-4, "params": [0], "betas": (0.9, 0.95)}],
                },
                "ema": perturbed(state),
                "current_step": 1234,
                "decay": 0.99,
                "every_n_steps": 1,
            }
        ],
        "lr_schedulers": [{"base_lrs": [3e-4], "history": collections.defaultdict(list, {"lr": [1.0]})}],
        "MixedPrecisionPlugin": {"scale": 65536.0, "growth_factor": 2.0},
        "hparams_name": "hparams",
        "hyper_parameters": hyper_parameters,
    }


def write_parity_checkpoint(path: Path, **changes: Any) -> Path:
    """The parity model in the released layout; `changes` replace top-level entries, None removes one."""
    content = lightning_checkpoint(parity_state(), parity_settings()) | changes
    torch.save({key: value for key, value in content.items() if value is not None}, path)
    return path
