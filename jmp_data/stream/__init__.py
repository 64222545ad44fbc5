"""Batches in an order that is a pure function of (mixture, seed, epoch), for any number of ranks and workers.

Planning (`EpochOrder`, the cuts, the balance) needs NumPy only; `StreamLoader` brings torch and is imported on first
use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jmp_data.stream.limits import BatchLimits
from jmp_data.stream.simulation import simulate

if TYPE_CHECKING:
    from jmp_data.stream.loader import StreamLoader

__all__ = ["BatchLimits", "StreamLoader", "simulate"]


def __getattr__(name: str) -> Any:
    if name == "StreamLoader":
        from jmp_data.stream.loader import StreamLoader

        return StreamLoader
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
