"""Write the layer of one shard block by block, straight to its files: the a2a graphs of a shard may be gigabytes."""

from __future__ import annotations

import hashlib
import os
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np

from jmp_data.schema import Block
from jmp_data.shards import zarr_codec
from jmp_data.shards.graph_layer.block_edges import NOT_STORED, block_edges
from jmp_data.shards.graph_layer.layout import layer_columns, staged_file
from jmp_data.shards.graph_layer.settings import LayerSettings
from jmp_data.shards.layout import Layout
from jmp_data.shards.manifest import FileDigest


class _ShardFile:
    """A shard file that grows chunk by chunk."""

    def __init__(self, path: Path, blocks_per_shard: int) -> None:
        self._file, self._digest = path.open("wb"), hashlib.sha256()
        self._extents = np.full((blocks_per_shard, 2), zarr_codec.ABSENT, np.uint64)
        self._size = 0

    def _write(self, payload: bytes) -> None:
        self._file.write(payload)
        self._digest.update(payload)
        self._size += len(payload)

    def add(self, block: int, chunk: bytes) -> None:
        self._extents[block] = self._size, len(chunk)
        self._write(chunk)

    def finish(self) -> FileDigest:
        """Append the index and bring everything to disk."""
        self._write(zarr_codec.encode_index(self._extents, len(self._extents)))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.close()
        return FileDigest(self._size, self._digest.hexdigest())

    def close(self) -> None:
        self._file.close()


class LayerShardWriter:
    """The graph layer of one shard; a context manager, because files are open.

    Args:
        folder: staging folder of the shard.
        settings: which graphs.
        layout: capacities.
    """

    def __init__(self, folder: Path, settings: LayerSettings, layout: Layout) -> None:
        self._folder, self._settings, self._layout = folder, settings, layout
        self._columns = layer_columns(settings, layout)
        self._files: dict[str, _ShardFile] = {}
        self._extents: list[tuple[int, int]] = []
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> LayerShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        with ExitStack() as stack:
            for file in self._files.values():
                stack.callback(file.close)

    @property
    def extents(self) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
        """(blocks, 2) edges and structures not stored, of each block so far."""
        return np.array(self._extents, np.int64).reshape(-1, 2)

    def add(self, block: Block) -> None:
        """Find, compress and write the edges of one storage block."""
        found = block_edges(block, self._settings)
        for name, column in self._columns.items():
            rows = getattr(found, name)
            capacity = column.chunk[0]
            for piece, start in enumerate(range(0, len(rows), capacity)):
                chunk = zarr_codec.encode_chunk(column, rows[start : start + capacity])
                self._open(staged_file(name, piece)).add(len(self._extents), chunk)
        self._extents.append((len(found.source), int((found.nedges == NOT_STORED).sum())))

    def _open(self, name: str) -> _ShardFile:
        if name not in self._files:
            self._files[name] = _ShardFile(self._folder / name, self._layout.blocks_per_shard)
        return self._files[name]

    def finish(self) -> dict[str, FileDigest]:
        """Finish all files; staged name → size and digest."""
        return {name: file.finish() for name, file in sorted(self._files.items())}
