"""Random orders as pure functions of integers: the same on every machine, process and NumPy version.

NumPy does not promise that `Generator.permutation` gives the same numbers in its next release, and a stream that is to
be resumed for months needs that promise. SplitMix64 is a published, fixed function of a counter; sorting its words
gives a permutation. The position sits in the low bits of each word, so no two keys are equal and the sort cannot
matter.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


def derive_key(*parts: int) -> int:
    """Fold integers into one 64-bit key; different sequences give unrelated keys."""
    key = len(parts)
    for part in parts:
        key = _mix_int((key ^ (part & _MASK)) + _GOLDEN)
    return key


def _mix_int(word: int) -> int:
    word &= _MASK
    word = ((word ^ (word >> 30)) * _MIX_1) & _MASK
    word = ((word ^ (word >> 27)) * _MIX_2) & _MASK
    return word ^ (word >> 31)


def random_words(count: int, key: int) -> npt.NDArray[np.uint64]:
    """(count,) SplitMix64 output for counters 1 to `count`, started at `key`."""
    words = np.arange(1, count + 1, dtype=np.uint64)
    words *= np.uint64(_GOLDEN)
    words += np.uint64(key)
    words ^= words >> np.uint64(30)
    words *= np.uint64(_MIX_1)
    words ^= words >> np.uint64(27)
    words *= np.uint64(_MIX_2)
    words ^= words >> np.uint64(31)
    return words


def permutation(count: int, key: int) -> npt.NDArray[np.int64]:
    """(count,) the integers 0 to count - 1 in an order that depends on `key` alone."""
    mask = np.uint64((1 << max(count - 1, 0).bit_length()) - 1)
    keys = (random_words(count, key) & ~mask) | np.arange(count, dtype=np.uint64)
    keys.sort()
    return (keys & mask).astype(np.int64)


def stratified_order(counts: npt.NDArray[np.int64], key: int) -> npt.NDArray[np.int64]:
    """Merge several sequences so that every stretch of the result holds nearly the share of each.

    Sequence i is cut into `counts[i]` equal strata of time, its elements get one random moment each in their own
    stratum, and all elements are sorted by time. Within any stretch the count of each sequence is off by less than
    two.

    Args:
        counts: (num_sequences,) elements of each sequence.
        key: what the moments depend on.

    Returns:
        (sum of counts,) indices into the concatenation of the sequences; each sequence keeps its own order.
    """
    total = int(counts.sum())
    bits = max(total - 1, 0).bit_length()
    starts = np.cumsum(counts) - counts
    within = np.arange(total, dtype=np.int64) - np.repeat(starts, counts)
    jitter = (random_words(total, key) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    moments = (within + jitter) / np.repeat(counts, counts)
    # (j + u) / n can round up to 1.0, which would not fit the field.
    field = 2.0 ** (63 - bits)
    keys = np.minimum(moments * field, field - 1.0).astype(np.uint64) << np.uint64(bits)
    keys |= np.arange(total, dtype=np.uint64)
    keys.sort()
    return (keys & np.uint64((1 << bits) - 1)).astype(np.int64)
