"""What a build is asked to do, as plain values that travel to any worker."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from jmp_data.schema import Schema
from jmp_data.schema.units import get_constants
from jmp_data.shards.layout import FORMAT_VERSION, Format, Layout
from jmp_data.sources import Part, Source, get_source

OnError = Literal["quarantine", "fail"]
GraphLayer = Literal["none", "main", "all"]


@dataclass(frozen=True, slots=True)
class BuildSettings:
    """Choices that change what is written.

    Attributes:
        format: storage format.
        graphs: radius graphs to store beside the structures.
        constants: named set of unit constants.
        on_error: keep bad records aside, or stop at the first.
        layout: block and shard capacities.
    """

    format: Format = "zarr"
    graphs: GraphLayer = "none"
    constants: str = "codata2014"
    on_error: OnError = "quarantine"
    layout: Layout = field(default_factory=Layout)

    def open_source(self, name: str) -> Source:
        """The source of that name, converting with these constants."""
        return get_source(name, constants=get_constants(self.constants))


@dataclass(frozen=True, slots=True)
class PartJob:
    """One part to convert: small, picklable, without data.

    Attributes:
        source: source name as on the command line.
        raw: raw folder.
        dataset: folder of the output split.
        part: what to read.
        limit: convert only the first records of the part (None: all).
        settings: what to write.
        schema: columns, where the plan decided them (None: those of the source).
        required: targets that must be finite, where the plan decided them (None: those of the source).
    """

    source: str
    raw: Path
    dataset: Path
    part: Part
    settings: BuildSettings
    limit: int | None = None
    schema: Schema | None = None
    required: tuple[str, ...] | None = None

    @property
    def key(self) -> str:
        """Content key: the part, its raw files' sizes, and every setting that changes the output."""
        settings = {**asdict(self.settings), "on_error": None}
        source = Path(self.source).name  # of a YAML file, not the place where it lies; its content is in the part
        text = json.dumps([source, self.part.key(self.raw), self.limit, settings, FORMAT_VERSION], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:24]
