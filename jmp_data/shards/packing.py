"""Cut a stream of blocks of any size into storage blocks: as many structures as fit, in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from jmp_data.errors import InvalidStructureError
from jmp_data.schema import Block
from jmp_data.shards.layout import Layout


def plan_cuts(natoms: npt.NDArray[Any], id_bytes: npt.NDArray[Any], layout: Layout) -> list[int]:
    """End positions of greedily filled storage blocks; the last one may not be full.

    Args:
        natoms: (n,) atoms per structure, each at most `layout.block_atoms`.
        id_bytes: (n,) bytes that each source id takes on disk.
        layout: the capacities.
    """
    atoms_before = np.concatenate([[0], np.cumsum(natoms, dtype=np.int64)])
    bytes_before = np.concatenate([[0], np.cumsum(id_bytes, dtype=np.int64)])
    cuts, start = [], 0
    while start < len(natoms):
        start = min(
            start + layout.block_structures,
            int(np.searchsorted(atoms_before, atoms_before[start] + layout.block_atoms, "right")) - 1,
            int(np.searchsorted(bytes_before, bytes_before[start] + layout.block_id_bytes, "right")) - 1,
        )
        cuts.append(start)
    return cuts


def _refuse_oversized(block: Block, layout: Layout) -> None:
    too_large = np.flatnonzero(block.natoms > layout.block_atoms)
    if len(too_large):
        name = block.source_ids[too_large[0]].decode(errors="replace")
        raise InvalidStructureError(
            f"{name}: {block.natoms[too_large[0]]} atoms do not fit into a block of {layout.block_atoms}", "too_large"
        )


def repack(blocks: Iterable[Block], layout: Layout) -> Iterator[Block]:
    """Storage blocks holding the same structures in the same order, all full but the last.

    Raises:
        InvalidStructureError: one structure is larger than a whole block.
    """
    pending: list[Block] = []
    structures = atoms = 0
    for incoming in blocks:
        if len(incoming) == 0:
            continue
        _refuse_oversized(incoming, layout)
        pending.append(incoming)
        structures += len(incoming)
        atoms += incoming.num_atoms
        if structures > layout.block_structures or atoms > layout.block_atoms:
            *full, rest = _split(Block.concatenate(pending), layout)
            yield from full
            pending, structures, atoms = [rest], len(rest), rest.num_atoms
    if pending:
        yield from _split(Block.concatenate(pending), layout)


def _split(block: Block, layout: Layout) -> list[Block]:
    ends = plan_cuts(block.natoms, np.char.str_len(block.source_ids) + 1, layout)
    return [block.take(slice(start, end)) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
