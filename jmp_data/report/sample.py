"""Which blocks of a split are read for a report: all of a small one, evenly spread ones of a large one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from jmp_data.shards import ShardDataset

STRUCTURES: Final = 20_000
"""Structures a split, about; enough for a histogram whose bars are right to a percent."""


@dataclass(frozen=True, slots=True, eq=False)
class BlockSample:
    """Blocks to read.

    Attributes:
        blocks: block numbers, ascending.
        structures: how many structures they hold.
        everything: whether these are all blocks.
    """

    blocks: npt.NDArray[np.int64]
    structures: int
    everything: bool


def choose_blocks(dataset: ShardDataset, structures: int = STRUCTURES) -> BlockSample:
    """All blocks, or evenly spread ones with about the wanted number of structures.

    Args:
        dataset: one split.
        structures: how many are enough.
    """
    sizes = dataset.block_structures
    if len(dataset) <= structures:
        return BlockSample(np.arange(len(sizes)), len(dataset), everything=True)
    wanted = max(1, round(structures / float(sizes.mean())))
    # The middle of each of `wanted` equal stretches, so that neither the first nor the last files weigh more.
    blocks = np.unique(((np.arange(wanted) + 0.5) * len(sizes) / wanted).astype(np.int64))
    return BlockSample(blocks, int(sizes[blocks].sum()), everything=len(blocks) == len(sizes))
