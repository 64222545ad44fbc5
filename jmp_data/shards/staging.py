"""Write one part's shards into its own staging folder, and find finished ones again.

A part is finished when its `part.json` exists: it is written last, after every other file of the part is flushed, and
it lists them with digests. Everything without one is thrown away and made anew.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from jmp_data.errors import ShardError
from jmp_data.schema import Block, Schema
from jmp_data.shards.atomic import write_atomic, write_durable
from jmp_data.shards.formats import ShardEncoder, digest, shard_encoder
from jmp_data.shards.graph_layer import LayerSettings
from jmp_data.shards.graph_layer.writer import LayerShardWriter
from jmp_data.shards.layout import Format, Layout
from jmp_data.shards.manifest import ShardRecord
from jmp_data.shards.packing import repack
from jmp_data.shards.stores import LocalStore
from jmp_data.shards.transports import Payload, Span

BUILD_FOLDER = ".build"
PART_RECORD = "part.json"
RECORDS_VERSION: Final = 2
"""Form of what a finished part keeps for finalising: `part.json`, facts of the trust pass, keys of a shuffle.

Whoever changes one of these counts up. Records without a version are of the first form.
"""
NATOMS_SIDECAR, BLOCKS_SIDECAR, GRAPHS_SIDECAR = "natoms.npy", "blocks.npy", "graph_blocks.npy"
"""Files of a staged shard that are joined with those of the others; each is one array."""


@dataclass(frozen=True, slots=True)
class PartRecord:
    """What one finished part produced.

    Attributes:
        key: content key of the part.
        shards: its shards, in order, with staged file names.
        raw_files: raw files read.
        quarantined: reason → count; the records are in `quarantine.jsonl`.
        skipped: reason → count.
        damaged_files: messages about raw files that are damaged themselves.
        statistics: mergeable sums, see `jmp_data.references`.
        version: `RECORDS_VERSION` of the code that made it.
    """

    key: str
    shards: tuple[ShardRecord, ...]
    raw_files: tuple[str, ...] = ()
    quarantined: Mapping[str, int] = field(default_factory=dict)
    skipped: Mapping[str, int] = field(default_factory=dict)
    damaged_files: tuple[str, ...] = ()
    statistics: Mapping[str, Any] = field(default_factory=dict)
    version: int = RECORDS_VERSION

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> PartRecord:
        """Inverse of `dataclasses.asdict`."""
        shards = tuple(ShardRecord.from_json(shard) for shard in entry["shards"])
        tuples = {name: tuple(entry[name]) for name in ("raw_files", "damaged_files")}
        return cls(**{**entry, **tuples, "shards": shards})


def part_folder(dataset: Path, key: str) -> Path:
    """Staging folder of a part."""
    return dataset / BUILD_FOLDER / "parts" / key


def load_part(dataset: Path, key: str) -> PartRecord | None:
    """The record of a finished part, or None if it is not finished.

    Raises:
        ShardError: another version of this code made it, and keeps its records in another form.
    """
    path = part_folder(dataset, key) / PART_RECORD
    try:
        entry = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    version = entry.get("version", 1)
    if version != RECORDS_VERSION:
        raise ShardError(
            f"{path}: was made by another version of jmp-data, whose build records have form {version}, not "
            f"{RECORDS_VERSION} as here; finish with that version, or delete {dataset / BUILD_FOLDER} and run the same "
            "command again to convert everything anew"
        )
    return PartRecord.from_json(entry)


class StagedStore:
    """The staged Zarr shards of one part under the names that they would have as a data set of their own."""

    def __init__(self, folder: Path) -> None:
        self._store = LocalStore(folder)
        self.url = str(folder)

    @staticmethod
    def _staged(name: str) -> str:
        array, _, shard, *_ = name.split("/")
        return f"{shard}/{array}"

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """See `Store.read`."""
        return self._store.read(self._staged(name), start, stop)

    def read_many(self, spans: Sequence[Span]) -> Sequence[Payload]:
        """See `Store.read_many`."""
        return self._store.read_many([span._replace(name=self._staged(span.name)) for span in spans])

    def local_path(self, name: str) -> Path | None:
        """See `Store.local_path`."""
        return self._store.local_path(self._staged(name))


def npy_bytes(array: npt.NDArray[Any]) -> bytes:
    """An array as the bytes of an `.npy` file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


class _ShardSink:
    """Writes finished shards of one part, one folder each."""

    def __init__(self, folder: Path, key: str, raw_files: tuple[str, ...]) -> None:
        self.folder, self.key, self.raw_files = folder, key, raw_files
        self.records: list[ShardRecord] = []

    @property
    def next_folder(self) -> Path:
        """Where the shard in hand goes."""
        return self.folder / str(len(self.records))

    def write(self, shard: _OpenShard) -> None:
        contents, layer = shard.encoder.files(), {}
        blocks, natoms = np.array(shard.extents, np.int64), np.concatenate(shard.natoms)
        contents |= {NATOMS_SIDECAR: npy_bytes(natoms), BLOCKS_SIDECAR: npy_bytes(blocks)}
        if shard.layer is not None:
            contents[GRAPHS_SIDECAR] = npy_bytes(shard.layer.extents)
            layer = shard.layer.finish()
        write_durable(self.next_folder, contents)
        self.records.append(
            ShardRecord(
                blocks=len(blocks),
                structures=int(blocks[:, 0].sum()),
                atoms=int(blocks[:, 1].sum()),
                files={**{name: digest(payload) for name, payload in contents.items()}, **layer},
                part=self.key,
                raw_files=self.raw_files,
            )
        )


class _OpenShard:
    """A shard that is being filled: its structures in memory, its graphs on their way to disk."""

    def __init__(self, encoder: ShardEncoder, layer: LayerShardWriter | None) -> None:
        self.encoder, self.layer = encoder, layer
        self.extents: list[tuple[int, int, int, int]] = []
        self.natoms: list[npt.NDArray[np.int32]] = []

    def add(self, block: Block) -> None:
        self.extents.append((len(block), block.num_atoms, *self.encoder.add(block)))
        self.natoms.append(block.natoms)
        if self.layer is not None:
            self.layer.add(block)


def _write_shards(
    blocks: Iterator[Block],
    sink: _ShardSink,
    schema: Schema,
    layout: Layout,
    name: Format,
    graphs: LayerSettings | None,
) -> None:
    while (first := next(blocks, None)) is not None:
        with nullcontext() if graphs is None else LayerShardWriter(sink.next_folder, graphs, layout) as layer:
            shard = _OpenShard(shard_encoder(name, schema, layout), layer)
            for block in chain([first], islice(blocks, layout.blocks_per_shard - 1)):
                shard.add(block)
            sink.write(shard)


def stage_shards(
    dataset: Path,
    key: str,
    blocks: Iterable[Block],
    *,
    schema: Schema,
    layout: Layout,
    format: Format,
    raw_files: tuple[str, ...] = (),
    graphs: LayerSettings | None = None,
) -> tuple[ShardRecord, ...]:
    """Write the shards of one part into its staging folder, replacing whatever an interrupted run left there.

    Graphs are found and stored as well where settings for them are given. The part is not finished until
    `finish_part` is called.
    """
    folder = part_folder(dataset, key)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    sink = _ShardSink(folder, key, raw_files)
    _write_shards(repack(blocks, layout), sink, schema, layout, format, graphs)
    return tuple(sink.records)


def finish_part(dataset: Path, record: PartRecord) -> None:
    """Declare a part finished."""
    payload = json.dumps(asdict(record), separators=(",", ":"), sort_keys=True).encode()
    write_atomic(part_folder(dataset, record.key) / PART_RECORD, payload)
