"""Read a whole split of a source, and check that its counts close."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jmp_data.schema import Block
from jmp_data.sources.protocol import Part, Quarantined, Skipped, Source


@dataclass(frozen=True)
class Collected:
    block: Block
    quarantined: list[Quarantined]
    skipped: Counter[str]

    @property
    def ids(self) -> list[str]:
        return [source_id.decode() for source_id in self.block.source_ids]


def collect(source: Source, raw: Path, split: str) -> Collected:
    """All items of a split, parts sent through JSON-like plain values as a build does."""
    blocks: list[Block] = []
    quarantined: list[Quarantined] = []
    skipped: Counter[str] = Counter()
    for part in source.plan(raw, split).parts:
        seen = 0
        for item in source.read(raw, Part(part.split, part.files, part.selection, part.num_records)):
            if isinstance(item, Block):
                blocks.append(item)
                seen += len(item)
            elif isinstance(item, Skipped):
                skipped[item.reason] += item.count
                seen += item.count
            else:
                quarantined.append(item)
                seen += 1
        assert seen == part.num_records
    nothing = {field.name: np.zeros((0, *field.shape), field.dtype) for field in source.schema}
    empty = Block.from_columns(source.schema, np.zeros(0, np.int32), [], nothing)
    return Collected(Block.concatenate(blocks) if blocks else empty, quarantined, skipped)
