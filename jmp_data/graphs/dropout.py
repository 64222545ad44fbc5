"""Edge dropout that depends on the seed and the edge alone: the same edges fall on every device, in any batch order.

An edge of target t and source s through cell offset o survives if the top 53 bits of
`scramble(scramble(seed + (t + 1) · GOLDEN) + s · KEYS[0] + o · KEYS[1:])` are at least `dropout` · 2⁵³, all in 64-bit
wrap-around arithmetic with atoms numbered within their structure; `scramble` is the finaliser of SplitMix64.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from jmp_data.errors import InvalidStructureError

GOLDEN: Final = 0x1E3779B97F4A7C15
KEYS: Final = (-0x2E5AD4B612DF56FD, -0x54367C77A07053FD, -0x7346D458D0C27229, 0x61C8864680B583EB)
SCRAMBLE: Final = (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)
"""Multipliers of the finaliser, as signed 64-bit integers."""


def draw_seeds(count: int, edge_dropout: float, rng: np.random.Generator | None) -> npt.NDArray[np.int64]:
    """One seed a structure; zeros, and nothing drawn, without dropout.

    Args:
        count: number of structures.
        edge_dropout: probability, 0 to 1.
        rng: required with dropout.

    Returns:
        (count,) int64, not negative.

    Raises:
        InvalidStructureError: not a probability, or dropout without rng.
    """
    if not 0.0 <= edge_dropout <= 1.0:
        raise InvalidStructureError(f"edge_dropout is {edge_dropout}; it is a probability", "graph_settings")
    if edge_dropout == 0.0:
        return np.zeros(count, np.int64)
    if rng is None:
        raise InvalidStructureError("edge_dropout needs rng, a numpy Generator", "graph_settings")
    return rng.integers(0, 2**63, size=count, dtype=np.int64)


def surviving_edges(seed: Any, source: Any, target: Any, cell_offsets: Any, edge_dropout: float) -> Any:
    """Which edges survive; NumPy arrays or torch tensors alike, as both wrap around in int64.

    Args:
        seed: int64, scalar or (nedges,).
        source: (nedges,) int64, numbered within the structure.
        target: (nedges,) int64, the same.
        cell_offsets: (nedges, 3) int64.
        edge_dropout: probability, 0 to 1.

    Returns:
        (nedges,) bool.
    """
    x = _scramble(seed + (target + 1) * GOLDEN) + source * KEYS[0]
    x = x + cell_offsets[:, 0] * KEYS[1] + cell_offsets[:, 1] * KEYS[2] + cell_offsets[:, 2] * KEYS[3]
    return _unsigned_shift(_scramble(x), 11) >= int(edge_dropout * 2.0**53)


def _scramble(x: Any) -> Any:
    x = (x ^ _unsigned_shift(x, 30)) * SCRAMBLE[0]
    x = (x ^ _unsigned_shift(x, 27)) * SCRAMBLE[1]
    return x ^ _unsigned_shift(x, 31)


def _unsigned_shift(x: Any, bits: int) -> Any:
    return (x >> bits) & ((1 << (64 - bits)) - 1)
