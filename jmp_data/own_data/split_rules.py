"""Which structure goes to which split: a pure function of the rule, the seed and what the files hold."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from jmp_data.sources.splits import shuffled

Rows = npt.NDArray[np.int64]


def split_sizes(count: int, fractions: Mapping[str, float]) -> dict[str, int]:
    """Sizes that add up to `count`: rounded down, what is left over goes to the largest remainders.

    Args:
        count: structures.
        fractions: split → share; they add up to 1. The first split gets a structure before any other.
    """
    exact = {name: count * fraction for name, fraction in fractions.items()}
    sizes = {name: int(value + 1e-9) for name, value in exact.items()}
    first = next(iter(fractions))
    by_remainder = sorted(fractions, key=lambda name: (sizes[first] > 0 or name != first, sizes[name] - exact[name]))
    for name in by_remainder[: count - sum(sizes.values())]:
        sizes[name] += 1
    return sizes


def split_at_random(count: int, fractions: Mapping[str, float], seed: int) -> dict[str, Rows]:
    """Each structure on its own, by NumPy's legacy generator; rows ascending within a split."""
    return _cut(shuffled(count, seed), split_sizes(count, fractions))


def split_in_order(count: int, fractions: Mapping[str, float]) -> dict[str, Rows]:
    """Stretches of the files' own order: the first split takes the front."""
    return _cut(np.arange(count, dtype=np.int64), split_sizes(count, fractions))


def split_by_group(groups: Sequence[str], fractions: Mapping[str, float], seed: int) -> dict[str, Rows]:
    """Whole groups: in an order that the seed decides, each goes to the split that lacks most of its share.

    Args:
        groups: (n,) group of each structure.
        fractions: split → share of the structures.
        seed: of the order.

    Returns:
        Split → rows, ascending. Groups are never divided, so sizes only approach the shares.
    """
    names, owner, sizes = np.unique(np.array(groups, dtype=np.str_), return_inverse=True, return_counts=True)
    lacking = np.array([fraction * len(groups) for fraction in fractions.values()])
    order = sorted(range(len(names)), key=lambda place: hashlib.sha256(f"{seed}/{names[place]}".encode()).digest())
    chosen = np.zeros(len(names), np.int64)
    for place in order:
        chosen[place] = int(np.argmax(lacking))
        lacking[chosen[place]] -= sizes[place]
    of_row = chosen[owner]
    return {name: np.flatnonzero(of_row == number) for number, name in enumerate(fractions)}


def _cut(rows: Rows, sizes: Mapping[str, int]) -> dict[str, Rows]:
    ends = np.cumsum(list(sizes.values()))
    return {
        name: np.sort(rows[end - size : end]) for (name, size), end in zip(sizes.items(), ends.tolist(), strict=True)
    }
