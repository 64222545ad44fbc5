"""Turn finished parts into a data set: give shards their final numbers and names, write the indexes, then the manifest.

Shards are renamed, never copied. The placement (which part's shard has which number) is written before anything moves,
so a run that is killed here finds every file again, and adding raw files later moves only what changes its number.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from jmp_data.errors import ShardError
from jmp_data.schema import Schema
from jmp_data.shards.atomic import sync_folder, write_atomic, write_atomic_pieces
from jmp_data.shards.dataset import BLOCKS_FILE, NATOMS_FILE, SHARDS_FILE
from jmp_data.shards.formats import digest_file, metadata_files, stored_name
from jmp_data.shards.graph_layer import LayerSettings
from jmp_data.shards.graph_layer import layout as layer_layout
from jmp_data.shards.layout import Format, Layout
from jmp_data.shards.manifest import MANIFEST_NAME, DatasetManifest, FileDigest, ShardRecord
from jmp_data.shards.staging import (
    BLOCKS_SIDECAR,
    BUILD_FOLDER,
    GRAPHS_SIDECAR,
    NATOMS_SIDECAR,
    PartRecord,
    npy_bytes,
    part_folder,
)
from jmp_data.shards.summary import SUMMARY_FILE, DatasetSummary

_SIDECARS = (NATOMS_SIDECAR, BLOCKS_SIDECAR, GRAPHS_SIDECAR)
QUARANTINE_FILE = "quarantine.jsonl"
Placement: TypeAlias = dict[str, tuple[str, int, str]]
"""Final name → (part key, shard of the part, staged name)."""


def plan_placement(
    parts: Sequence[PartRecord], schema: Schema, layout: Layout, format: Format, graphs: LayerSettings | None = None
) -> Placement:
    """Final names of all shard files, shards numbered in the order of the parts."""
    columns = {} if graphs is None else layer_layout.layer_columns(graphs, layout)
    placement: Placement = {}
    shard = 0
    for part in parts:
        for number, record in enumerate(part.shards):
            for staged in record.files:
                if layer_layout.is_layer_file(staged):
                    placement[layer_layout.final_name(staged, shard, columns)] = (part.key, number, staged)
                elif staged not in _SIDECARS:
                    name = stored_name(format, schema, layout, staged=staged, shard=shard)
                    placement[name] = (part.key, number, staged)
            shard += 1
    return placement


def _staged_path(dataset: Path, entry: tuple[str, int, str]) -> Path:
    key, number, staged = entry
    return part_folder(dataset, key) / str(number) / staged


def _read_placement(path: Path) -> Placement:
    if not path.exists():
        return {}
    return {name: (key, int(number), staged) for name, (key, number, staged) in json.loads(path.read_bytes()).items()}


def _withdraw(dataset: Path, current: Placement, wanted: Placement) -> None:
    """Move shard files whose place changes back to their part's staging folder."""
    for name, entry in current.items():
        if wanted.get(name) == entry or not (dataset / name).exists():
            continue
        target = _staged_path(dataset, entry)
        target.parent.mkdir(parents=True, exist_ok=True)
        (dataset / name).replace(target)


def _deploy(dataset: Path, placement: Placement) -> None:
    folders = set()
    for name, entry in placement.items():
        staged, final = _staged_path(dataset, entry), dataset / name
        if staged.exists():
            if final.parent not in folders:
                final.parent.mkdir(parents=True, exist_ok=True)
                folders.add(final.parent)
            staged.replace(final)
        elif not final.exists():
            raise ShardError(f"{final}: shard file vanished from the build folder; delete {dataset} and build again")
    for folder in folders:
        sync_folder(folder)


def place_shards(dataset: Path, placement: Placement) -> None:
    """Bring every shard file to its final name; safe to interrupt and repeat."""
    record = dataset / BUILD_FOLDER / "placement.json"
    current = _read_placement(record)
    if current != placement:
        (dataset / MANIFEST_NAME).unlink(missing_ok=True)
        _withdraw(dataset, current, placement)
        write_atomic(record, json.dumps(placement, separators=(",", ":")).encode())
    _deploy(dataset, placement)


def _concatenated(dataset: Path, parts: Sequence[PartRecord], name: str, empty: npt.NDArray[Any]) -> npt.NDArray[Any]:
    arrays = [
        np.load(part_folder(dataset, part.key) / str(number) / name, allow_pickle=False)
        for part in parts
        for number in range(len(part.shards))
    ]
    return np.concatenate(arrays) if arrays else empty


def _natoms_pieces(dataset: Path, parts: Sequence[PartRecord]) -> Iterator[bytes]:
    """`natoms.npy` of the data set, piece by piece: 134 million structures take half a gigabyte."""
    header = io.BytesIO()
    structures = sum(shard.structures for part in parts for shard in part.shards)
    facts = {"descr": "<i4", "fortran_order": False, "shape": (structures,)}
    np.lib.format.write_array_header_1_0(header, facts)
    yield header.getvalue()
    for part in parts:
        for number in range(len(part.shards)):
            path = part_folder(dataset, part.key) / str(number) / NATOMS_SIDECAR
            yield np.load(path, allow_pickle=False).astype("<i4", copy=False).tobytes()


def _digest_pieces(pieces: Iterable[bytes]) -> FileDigest:
    size, sha256 = 0, hashlib.sha256()
    for piece in pieces:
        size += len(piece)
        sha256.update(piece)
    return FileDigest(size, sha256.hexdigest())


def _store_pieces(path: Path, pieces: Callable[[], Iterable[bytes]]) -> FileDigest:
    """Write a file, unless it holds just this already."""
    expected = _digest_pieces(pieces())
    if not path.exists() or digest_file(path) != expected:
        write_atomic_pieces(path, pieces())
    return expected


def _quarantine_lines(dataset: Path, parts: Sequence[PartRecord]) -> Iterator[bytes]:
    for part in parts:
        path = part_folder(dataset, part.key) / QUARANTINE_FILE
        if path.exists():
            yield path.read_bytes()


def _final_shards(parts: Sequence[PartRecord], placement: Placement) -> tuple[ShardRecord, ...]:
    by_shard: dict[tuple[str, int], dict[str, str]] = {}
    for name, (key, number, staged) in placement.items():
        by_shard.setdefault((key, number), {})[staged] = name
    return tuple(
        replace(shard, files={final: shard.files[staged] for staged, final in by_shard[part.key, number].items()})
        for part in parts
        for number, shard in enumerate(part.shards)
    )


def content_digest(schema: Schema, shards: Sequence[ShardRecord]) -> str:
    """Digest of what the data are: the schema and the digests of all shard files but graphs, in order."""
    text = json.dumps([schema.to_json(), [_digests(shard, layer=False) for shard in shards]])
    return hashlib.sha256(text.encode()).hexdigest()


def _digests(shard: ShardRecord, *, layer: bool) -> list[tuple[str, str]]:
    """Names and digests of a shard's files, either of its graphs or of all else."""
    return sorted((n, d.sha256) for n, d in shard.files.items() if layer_layout.is_layer_file(n) == layer)


def _graph_facts(graphs: LayerSettings, shards: Sequence[ShardRecord], blocks: npt.NDArray[Any]) -> dict[str, Any]:
    """What the manifest says about a graph layer."""
    edges, not_stored = (int(total) for total in blocks.sum(axis=0))
    text = json.dumps([graphs.to_json(), [_digests(shard, layer=True) for shard in shards]])
    content = {"content_sha256": hashlib.sha256(text.encode()).hexdigest()}
    return {**graphs.to_json(), "edges": edges, "structures_not_stored": not_stored, **content}


def _clear_leftovers(dataset: Path, keys: set[str], keep: set[str]) -> None:
    """Remove staging folders of parts that are no longer planned, and stored files that no shard owns."""
    for folder in (dataset / BUILD_FOLDER / "parts").glob("*"):  # there are none where there were no records
        if folder.name not in keys:
            shutil.rmtree(folder, ignore_errors=True)
    for folder_name, folders, files in os.walk(dataset):
        if BUILD_FOLDER in folders:
            folders.remove(BUILD_FOLDER)
        for name in files:
            path = Path(folder_name) / name
            if path.relative_to(dataset).as_posix() not in keep:
                path.unlink()


def assemble(
    dataset: Path,
    parts: Sequence[PartRecord],
    *,
    name: str,
    split: str,
    schema: Schema,
    layout: Layout,
    format: Format,
    facts: Mapping[str, Any],
    graphs: LayerSettings | None = None,
    origins: Sequence[PartRecord] = (),
    extra_files: Mapping[str, bytes] | None = None,
) -> DatasetManifest:
    """Finish a split from its finished parts; the manifest is written last.

    Args:
        dataset: folder of the split.
        parts: records of all parts, in plan order.
        name: data set name.
        split: split name.
        schema: columns.
        layout: capacities.
        format: storage format.
        facts: further `DatasetManifest` fields (references, raw files, provenance, ...).
        graphs: the graphs that the parts were staged with.
        origins: parts that these were gathered from, where they were; their quarantine and build records are kept.
        extra_files: further files of the folder, name → content.

    Raises:
        ShardError: a finished part has lost a file.
    """
    placement = plan_placement(parts, schema, layout, format, graphs)
    place_shards(dataset, placement)
    shards = _final_shards(parts, placement)
    contents = {
        BLOCKS_FILE: npy_bytes(_concatenated(dataset, parts, BLOCKS_SIDECAR, np.zeros((0, 4), np.int64))),
        SHARDS_FILE: npy_bytes(np.array([shard.blocks for shard in shards], np.int64)),
    }
    layer, graph_facts = {}, {}
    if graphs is not None:
        extents = _concatenated(dataset, parts, GRAPHS_SIDECAR, np.zeros((0, 2), np.int64))
        contents[layer_layout.BLOCKS_FILE] = npy_bytes(extents)
        fullest = int(extents[:, 0].max(initial=0))
        layer = layer_layout.layer_metadata(graphs, layout, num_shards=len(shards), fullest_block=fullest)
        graph_facts = _graph_facts(graphs, shards, extents)
    contents |= metadata_files(format, schema, layout, num_shards=len(shards), layer=layer)
    contents |= extra_files or {}
    quarantine = b"".join(_quarantine_lines(dataset, [*origins, *parts]))
    if quarantine:
        contents[QUARANTINE_FILE] = quarantine
    pieces: dict[str, Callable[[], Iterable[bytes]]] = {
        NATOMS_FILE: partial(_natoms_pieces, dataset, parts),
        **{file_name: partial(iter, [payload]) for file_name, payload in contents.items()},
    }
    files = {file_name: _store_pieces(dataset / file_name, make) for file_name, make in pieces.items()}
    manifest = DatasetManifest(
        name=name,
        split=split,
        format=format,
        schema=schema,
        layout=layout,
        shards=shards,
        files=files,
        graphs=graph_facts,
        content_sha256=content_digest(schema, shards),
        **facts,
    )
    kept = {MANIFEST_NAME, SUMMARY_FILE, *placement, *files}
    _clear_leftovers(dataset, {part.key for part in (*origins, *parts)}, kept)
    payload = manifest.to_bytes()
    path = dataset / MANIFEST_NAME
    _store_pieces(dataset / SUMMARY_FILE, lambda: [DatasetSummary.of(manifest, payload).to_bytes()])
    if not path.exists() or path.read_bytes() != payload:
        write_atomic(path, payload)
    return manifest
