"""What a build is asked to do, as plain values that travel to any worker."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from jmp_data.graphs import GraphSettings
from jmp_data.manifests import load_manifest
from jmp_data.schema import Schema
from jmp_data.schema.units import get_constants
from jmp_data.shards.graph_layer import LayerKind, LayerSettings
from jmp_data.shards.layout import FORMAT_VERSION, Format, Layout
from jmp_data.sources import Part, Source, get_source, is_own_manifest

OnError = Literal["quarantine", "fail"]


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
    graphs: LayerKind | Literal["none"] = "none"
    constants: str = "codata2014"
    on_error: OnError = "quarantine"
    layout: Layout = field(default_factory=Layout)

    def open_source(self, name: str) -> Source:
        """The source of that name, converting with these constants."""
        return get_source(name, constants=get_constants(self.constants))

    def graph_layer(self, name: str) -> LayerSettings | None:
        """The graphs to store with the source of that name: those that its manifest states, or the usual ones."""
        if self.graphs == "none":
            return None
        stated = None if is_own_manifest(name) else load_manifest(name.partition(":")[0]).graphs
        if stated is None:
            return LayerSettings(self.graphs)
        settings = GraphSettings.from_main_count(stated.max_neighbors, stated.cutoff)
        return LayerSettings(self.graphs, periodic=settings, molecule=settings)


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
    def graph_layer(self) -> LayerSettings | None:
        """The graphs to store."""
        return self.settings.graph_layer(self.source)

    @property
    def key(self) -> str:
        """Content key: the part, its raw files' sizes, and every setting that changes the output."""
        settings = {**asdict(self.settings), "on_error": None}
        source = Path(self.source).name  # of a YAML file, not the place where it lies; its content is in the part
        facts = [source, self.part.key(self.raw), self.limit, settings, FORMAT_VERSION]
        if self.graph_layer is not None:
            facts.append(self.graph_layer.to_json())
        text = json.dumps(facts, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:24]
