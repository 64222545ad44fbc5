"""Read a finished data set: by structure, by block, or only its sizes; Zarr and WebDataset, local and remote alike.

Opening parses `summary.json`, which does not grow with the data, after a look at the beginning of the manifest.
With the first block that is read come `blocks.npy` (32 bytes a block) and `shards.npy` (8 bytes a shard); `natoms` is
memory-mapped. The manifest, with its lists of shards and raw files, is parsed where they are asked for.
"""

from __future__ import annotations

import io
import os
import tokenize
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from jmp_data.errors import ManifestError, MissingFileError, ShardError
from jmp_data.schema import Block, Schema, Structure
from jmp_data.shards import tar_codec
from jmp_data.shards.formats import BlockReader, block_reader, digest, stored_name
from jmp_data.shards.graph_layer import GraphLayer
from jmp_data.shards.layout import SOURCE_ID
from jmp_data.shards.manifest import MANIFEST_NAME, DatasetManifest
from jmp_data.shards.stores import AbsentFileError, LocalStore, RemoteStore, Store, open_store
from jmp_data.shards.summary import SUMMARY_FILE, DatasetSummary

if TYPE_CHECKING:
    from jmp_data.graphs import Edges

NATOMS_FILE = "natoms.npy"
BLOCKS_FILE = "blocks.npy"
SHARDS_FILE = "shards.npy"
_CACHED_BLOCKS = 4
_SMALL_FILE = 1 << 20  # read whole and checked against its digest; larger ones are memory-mapped


class ShardDataset:
    """One split on disk or behind a URL. Open it with `open_dataset`.

    Attributes:
        store: where the bytes lie.
        summary: what reading needs to know about the split.
    """

    def __init__(self, store: Store, summary: DatasetSummary, manifest: DatasetManifest | None = None) -> None:
        self.store = store
        self.summary = summary
        self._manifest = manifest
        self._reader: tuple[int, BlockReader] | None = None
        self._cache: OrderedDict[int, Block] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: self.__dict__[name] for name in ("store", "summary", "_manifest")}
        return {**kept, "_reader": None, "_cache": OrderedDict()}

    @property
    def manifest(self) -> DatasetManifest:
        """Everything about the split that is not an array; read when first asked for.

        Raises:
            ManifestError: damaged, or no longer the one of this data set.
            MissingFileError: deleted since.
        """
        if self._manifest is None:
            payload = _read_manifest(self.store, self.path)
            manifest = DatasetManifest.from_bytes(payload, where=f"{self.path}/{MANIFEST_NAME}")
            if digest(payload) != self.summary.manifest:
                raise ManifestError(f"{self.path}: {MANIFEST_NAME} has changed since the data set was opened")
            self._manifest = manifest
        return self._manifest

    def __len__(self) -> int:
        return self.summary.num_structures

    def __repr__(self) -> str:
        m = self.summary
        return (
            f"<{m.name}/{m.split}: {m.num_structures:,} structures, {m.num_atoms:,} atoms, {m.format} at {self.path}>"
        )

    @property
    def name(self) -> str:
        """Data set name."""
        return self.summary.name

    @property
    def split(self) -> str:
        """Split name."""
        return self.summary.split

    @property
    def path(self) -> str:
        """Folder or URL."""
        return self.store.url

    @property
    def schema(self) -> Schema:
        """The columns."""
        return self.summary.schema

    @property
    def fingerprint(self) -> str:
        """Digest of schema and content: equal fingerprints mean equal data."""
        return self.summary.content_sha256

    @property
    def references(self) -> Mapping[str, Any]:
        """Energy references and normalisers stored with the data."""
        return self.summary.references

    @cached_property
    def _blocks(self) -> npt.NDArray[np.int64]:
        return np.asarray(self.read_sidecar(BLOCKS_FILE), np.int64).reshape(-1, 4)

    @cached_property
    def block_structures(self) -> npt.NDArray[np.int64]:
        """(num_blocks,) structures in each block."""
        return np.ascontiguousarray(self._blocks[:, 0])

    @cached_property
    def block_ptr(self) -> npt.NDArray[np.int64]:
        """(num_blocks + 1,) first structure of each block."""
        return np.concatenate([[0], np.cumsum(self._blocks[:, 0])])

    @cached_property
    def _shard_ptr(self) -> npt.NDArray[np.int64]:
        if self._manifest is None and SHARDS_FILE in self.summary.files:
            blocks = self.read_sidecar(SHARDS_FILE)
        else:
            blocks = np.array([shard.blocks for shard in self.manifest.shards], np.int64)
        return np.concatenate([[0], np.cumsum(blocks, dtype=np.int64)])

    @property
    def num_blocks(self) -> int:
        """Number of blocks."""
        return self.summary.num_blocks

    @cached_property
    def natoms(self) -> npt.NDArray[Any]:
        """(len,) atoms of each structure, memory-mapped where local; reads no structures."""
        return self.read_sidecar(NATOMS_FILE, mapped=True)

    def read_sidecar(self, name: str, *, mapped: bool = False) -> npt.NDArray[Any]:
        """A small array beside the shards, checked against its digest; or memory-mapped, where it is large and local.

        Raises:
            ShardError: damaged or missing.
        """
        path = self.store.local_path(name)
        try:
            if mapped and path is not None and path.stat().st_size > _SMALL_FILE:
                return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
            payload = self.store.read(name, 0, self.summary.files[name].bytes)
            if digest(payload) != self.summary.files[name]:
                raise ShardError(f"{self.path}: file {name}: content does not match its digest; run jmp-data verify")
            return np.asarray(np.load(io.BytesIO(payload), allow_pickle=False))
        except (ValueError, EOFError, SyntaxError, tokenize.TokenError) as error:
            raise ShardError(f"{self.path}: file {name}: cannot be read ({error}); run jmp-data verify") from error

    def _block_reader(self) -> BlockReader:
        if self._reader is None or self._reader[0] != os.getpid():
            m = self.summary
            self._reader = (os.getpid(), block_reader(m.format, self.store, m.schema, m.layout, self._file_sizes))
        return self._reader[1]

    @cached_property
    def _file_sizes(self) -> Mapping[str, int]:
        """Bytes of each shard file, where they are far away."""
        if isinstance(self.store, LocalStore):
            return {}
        return {name: entry.bytes for shard in self.manifest.shards for name, entry in shard.files.items()}

    def read_block(self, index: int, columns: Sequence[str] | None = None) -> Block:
        """One block.

        Args:
            index: block number, 0 to num_blocks - 1.
            columns: fields to decode; all of them and `source_id` by default.

        Raises:
            ShardError: a chunk is damaged or missing; names shard, array and block.
        """
        shard, block = self.locate_block(index)
        structures, _, offset, nbytes = (int(value) for value in self._blocks[index])
        names = (*self.schema.names, SOURCE_ID) if columns is None else columns
        return self._block_reader().read(shard, block, columns=names, extent=(structures, offset, nbytes))

    def damaged_members(self, index: int) -> list[str]:
        """What is wrong with one block of a tar, byte by byte; each message names shard, array and block."""
        _, _, offset, nbytes = (int(value) for value in self._blocks[index])
        shard, number = self.locate_block(index)
        name = stored_name("webdataset", self.schema, self.summary.layout, staged="", shard=shard)
        where = f"{self.path}: shard {shard} ({name}), block {number}"
        messages = []
        for column in (*self.schema.names, SOURCE_ID):
            try:
                self.read_block(index, [column])
            except ShardError as error:
                messages.append(str(error))
        payload = self.store.read(name, offset, offset + nbytes)
        return list(dict.fromkeys(messages + tar_codec.check_block(payload, number, where=where)))

    def locate_block(self, index: int) -> tuple[int, int]:
        """Shard of a block, and its number in there."""
        if not 0 <= index < self.num_blocks:
            raise IndexError(f"block {index} of {self.num_blocks}")
        shard = int(np.searchsorted(self._shard_ptr, index, "right")) - 1
        return shard, index - int(self._shard_ptr[shard])

    @cached_property
    def graph_layer(self) -> GraphLayer | None:
        """The radius graphs that are stored with the data set, if there are any."""
        return GraphLayer(self) if self.summary.graphs else None

    def read_graphs(self, index: int) -> dict[str, Edges]:
        """Stored radius graphs of one block.

        Args:
            index: block number, 0 to num_blocks - 1.

        Returns:
            Name of each graph of the layer → its edges, with atoms numbered through the block. Structures whose edges
            are not stored have theirs searched now.

        Raises:
            MissingFileError: the data set was built without graphs.
            ShardError: a chunk is damaged or missing; names shard, array and block.
        """
        if self.graph_layer is None:
            raise MissingFileError(f"{self.path}: holds no radius graphs; build it with --graphs main or --graphs all")
        return self.graph_layer.read(index)

    def blocks(self, columns: Sequence[str] | None = None) -> Iterator[Block]:
        """All blocks in order."""
        for index in range(self.num_blocks):
            yield self.read_block(index, columns)

    def __getitem__(self, index: int) -> Structure:
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"structure {index} of {len(self)}")
        number = int(np.searchsorted(self.block_ptr, position, "right")) - 1
        block = self._cache.get(number)
        if block is None:
            block = self._cache[number] = self.read_block(number)
            if len(self._cache) > _CACHED_BLOCKS:
                self._cache.popitem(last=False)
        return block.structure(position - int(self.block_ptr[number]))

    def __iter__(self) -> Iterator[Structure]:
        for block in self.blocks():
            for row in range(len(block)):
                yield block.structure(row)


def _read_manifest(store: Store, where: str) -> bytes:
    try:
        return store.read(MANIFEST_NAME)
    except AbsentFileError:
        raise MissingFileError(
            f"{where}: no {MANIFEST_NAME} here; give the folder of one finished split, for instance shards/ani1x/train"
        ) from None


def _read_summary(store: Store) -> DatasetSummary | None:
    """The summary, where there is a sound one of this very manifest; not from afar, where asking takes longest."""
    path, manifest = store.local_path(SUMMARY_FILE), store.local_path(MANIFEST_NAME)
    if path is None or manifest is None or not path.is_file() or not manifest.is_file():
        return None
    try:
        summary = DatasetSummary.from_bytes(path.read_bytes(), where=str(path))
    except ManifestError:
        return None
    return summary if summary.describes(manifest) else None


def open_dataset(path: str | Path) -> ShardDataset:
    """Open a finished data set.

    Args:
        path: folder or fsspec URL of one split, for instance `shards/ani1x/train`.

    Raises:
        MissingFileError: no such folder, or a folder without a manifest (not a data set, or not finished).
        ManifestError: the manifest is malformed or of a newer format.
    """
    store = open_store(path)
    summary, manifest = _read_summary(store), None
    if summary is None:
        payload = _read_manifest(store, str(path))
        manifest = DatasetManifest.from_bytes(payload, where=f"{path}/{MANIFEST_NAME}")
        summary = DatasetSummary.of(manifest, payload)
    if isinstance(store, RemoteStore):
        store.version = summary.content_sha256 + str(summary.graphs.get("content_sha256", ""))
    return ShardDataset(store, summary, manifest)
