"""Stage one: structures of different composition are never compared. One 64-bit number a structure decides.

The number is a sum over atoms of one random word an element, so it does not depend on their order. For periodic
structures the counts are divided by their greatest common divisor first: a supercell is the same crystal.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from jmp_data.references.accumulate import NUM_ELEMENTS, composition_matrix
from jmp_data.schema import Block

Keys = npt.NDArray[np.uint64]


def _words(count: int) -> Keys:
    """The first numbers of SplitMix64: the same on every machine and in every version of NumPy."""
    with np.errstate(over="ignore"):
        z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


_ELEMENTS, _PERIODIC = np.split(_words(NUM_ELEMENTS + 4), [NUM_ELEMENTS])


def composition_keys(block: Block) -> Keys:
    """One number a structure; equal numbers mean equal composition and equally many periodic axes.

    Args:
        block: with `atomic_numbers` and `pbc`.

    Returns:
        (n,) uint64. Different compositions share a number with a chance of 5e-20 a pair.
    """
    counts = composition_matrix(block).astype(np.uint64)
    axes = block.pbc.sum(axis=1)
    divisor = np.where(axes > 0, np.gcd.reduce(counts, axis=1), np.uint64(1)).astype(np.uint64)
    keys: Keys = (counts // np.maximum(divisor, np.uint64(1))[:, None]) @ _ELEMENTS + _PERIODIC[axes]
    return keys
