"""GemNet-OC models of the JMP family: architecture, weights, training and use.

The names below load on first use, so that reading a recipe needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jmp_model.calculator import JMPCalculator
    from jmp_model.inference import JMPModel, load_model

_HOMES = {
    "JMPCalculator": "jmp_model.calculator",
    "JMPModel": "jmp_model.inference",
    "load_model": "jmp_model.inference",
}

__all__ = ["JMPCalculator", "JMPModel", "load_model"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'jmp_model' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
