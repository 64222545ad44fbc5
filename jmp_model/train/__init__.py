"""Pre-training: targets, loss, optimiser step, loop, validation, checkpoints and logs."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jmp_model.train.config import PretrainConfig, load_pretrain_config
    from jmp_model.train.result import PretrainResult
    from jmp_model.train.trainer import pretrain

# Loaded on first use: reading a recipe needs no model.
_HOMES = {
    "PretrainConfig": "jmp_model.train.config",
    "PretrainResult": "jmp_model.train.result",
    "load_pretrain_config": "jmp_model.train.config",
    "pretrain": "jmp_model.train.trainer",
}

__all__ = ["PretrainConfig", "PretrainResult", "load_pretrain_config", "pretrain"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
