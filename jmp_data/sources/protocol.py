"""What a source is: it plans parts from the raw files that are there, and reads one part as blocks in eV and Å.

A source knows one published layout and nothing about shards, splits on disk or processes. Planning is cheap and pure
given the files; reading is streaming. Every record that a part promises comes out as a row of a block, as a
`Quarantined` record or in a `Skipped` count: the sums close.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

from jmp_data.schema import Block, Schema


@dataclass(frozen=True, slots=True)
class Part:
    """A unit of conversion work: some records of some raw files, bound for one split.

    Attributes:
        split: output split.
        files: raw files that the part reads, relative to the raw folder, POSIX separators.
        selection: plain JSON that the source's `read` understands (groups, row ranges); never data.
        num_records: records that `read` will account for.
    """

    split: str
    files: tuple[str, ...]
    selection: tuple[Any, ...] = ()
    num_records: int = 0

    def key(self, raw: Path) -> str:
        """Content key: what the part reads, with the sizes of its raw files. A changed file is a changed part."""
        sizes = [(name, (raw / name).stat().st_size) for name in self.files]
        text = json.dumps([self.split, sizes, self.selection, self.num_records], separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:24]


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A record that did not become a structure: kept, counted, with its reason.

    Attributes:
        source_id: raw file and record.
        reason: short reason code, for counting.
        message: one clear line.
        record: the record itself as text (raw lines or JSON), as far as it could be read.
        damaged_file: the raw file itself is damaged (truncated), not only this record.
    """

    source_id: str
    reason: str
    message: str
    record: str = ""
    damaged_file: bool = False


@dataclass(frozen=True, slots=True)
class Skipped:
    """Records left out by a stated rule (an exact repeat, say), counted under a reason code."""

    reason: str
    count: int


Item: TypeAlias = Block | Quarantined | Skipped


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """The parts of one split in their final order, and where they came from.

    Attributes:
        split: output split.
        parts: in their final order.
        notes: what should be said about this split.
        schema: columns, where they depend on the files; None for those of the source.
        required: targets that must be finite, where they depend on the files; None for those of the source.
    """

    split: str
    parts: tuple[Part, ...]
    notes: tuple[str, ...] = field(default=())
    schema: Schema | None = None
    required: tuple[str, ...] | None = None


@runtime_checkable
class Source(Protocol):
    """One published data set (or one molecule, task or subset of it).

    Attributes:
        name: name on the command line, with `source:part` for one of several parts.
        required: targets that must be finite in every record.
    """

    name: str
    required: tuple[str, ...]

    @property
    def schema(self) -> Schema:
        """The columns that this source delivers."""
        ...

    def splits(self, raw: Path) -> tuple[str, ...]:
        """Output splits for which raw files are there, train first. Raises MissingFileError where there are none."""
        ...

    def plan(self, raw: Path, split: str) -> SplitPlan:
        """Parts of one split, in a fixed order. Checks file pairs and keys; raises RawFileError before any work."""
        ...

    def read(self, raw: Path, part: Part) -> Iterator[Item]:
        """The records of one part, streaming, as blocks of at most a few thousand structures."""
        ...
