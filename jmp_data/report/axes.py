"""Bins, ticks and numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

BINS: Final = 44
_TAIL = 0.001  # of the values at either end may lie beyond the axis; one wild value must not flatten the rest


def value_edges(values: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.float64]:
    """Equal bins over all but the outermost values of several samples.

    Args:
        values: one array a sample, finite.

    Returns:
        (BINS + 1,) edges.
    """
    pooled = np.concatenate([np.asarray(v, np.float64) for v in values])
    low, high = np.quantile(pooled, [_TAIL, 1 - _TAIL])
    # An axis that reaches a little further and then holds everything is better than one with a footnote.
    span = max(high - low, 1e-9 * max(abs(low), abs(high), 1.0))
    low = pooled.min() if pooled.min() >= low - 0.1 * span else low
    high = pooled.max() if pooled.max() <= high + 0.1 * span else high
    if high - low < 1e-9 * max(abs(low), abs(high), 1.0):
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, BINS + 1)


def count_edges(counts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.float64]:
    """Bins of whole numbers, centred on them.

    Args:
        counts: one array a sample; entry k is how often the number k occurs.
    """
    used = [np.flatnonzero(c) for c in counts]
    used = [u for u in used if len(u)]
    low, high = min(int(u[0]) for u in used), max(int(u[-1]) for u in used)
    width = max(1, -(-(high - low + 1) // 60))
    low, high = low - (4 if high - low < 8 else 0), high + (4 if high - low < 8 else 0)
    bins = -(-(high - max(low, 0) + 1) // width)
    return np.asarray(max(low, 0) - 0.5 + width * np.arange(bins + 1), np.float64)


def rebin(counts: npt.NDArray[Any], edges: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Counts by whole number, gathered into bins."""
    return np.histogram(np.arange(len(counts)), edges, weights=counts)[0].astype(np.int64)


def nice_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from low to high, about `most` of them at most."""
    span = max(high - low, 1e-12)
    raw = span / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def plain(value: float) -> str:
    """A number with as many digits as it needs, thousands set apart, a true minus sign."""
    if value == 0:
        return "0"
    magnitude = abs(value)
    if magnitude >= 1e7 or magnitude < 1e-3:
        text = f"{magnitude:.3g}"
    elif magnitude >= 1000:
        text = f"{magnitude:,.0f}"
    else:
        text = f"{magnitude:.4g}"
    return ("−" if value < 0 else "") + text


def compact(count: float) -> str:
    """A count in at most four characters or so: 950, 1.2k, 34k, 5.6M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= 0.9995 * size:
            short = count / size
            return f"{short:.1f}{unit}" if short < 9.95 else f"{short:.0f}{unit}"
    return f"{count:.0f}"
