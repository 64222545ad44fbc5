"""Read the layer of one block."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from jmp_data.errors import ShardError
from jmp_data.shards import zarr_codec
from jmp_data.shards.graph_layer.layer_block import LayerBlock
from jmp_data.shards.graph_layer.layout import EDGE_COLUMNS, layer_columns, piece_edges, stored_file
from jmp_data.shards.graph_layer.settings import LayerSettings
from jmp_data.shards.layout import Layout
from jmp_data.shards.shard_chunks import ShardChunks
from jmp_data.shards.stores import Store
from jmp_data.shards.transports import Payload


class LayerReader:
    """Reads blocks of a graph layer.

    Args:
        store: the data set.
        settings: what its layer holds.
        layout: capacities.
    """

    def __init__(self, store: Store, settings: LayerSettings, layout: Layout) -> None:
        self._url = store.url
        self._piece = piece_edges(settings, layout)
        self._columns = layer_columns(settings, layout)
        self._shards = ShardChunks(store, layout.blocks_per_shard)

    def _where(self, shard: int, block: int, array: str) -> str:
        return f"{self._url}: shard {shard}, array graphs/{array}, block {block}"

    def read(self, shard: int, block: int, natoms: npt.NDArray[np.integer], nedges: int) -> LayerBlock:
        """One block, its edges still compressed.

        Args:
            shard: shard number.
            block: number of the block inside the shard.
            natoms: (n,) atoms of its structures.
            nedges: edges stored for them.

        Raises:
            ShardError: damaged or missing; names shard, array and block.
        """
        pieces = range(-(-nedges // self._piece))
        wanted = [("nedges", 0), ("neighbor_counts", 0), *((name, piece) for name in EDGE_COLUMNS for piece in pieces)]
        chunks = dict(zip(wanted, self._chunks(shard, block, wanted), strict=True))
        counts = {}
        for name, rows in (("nedges", len(natoms)), ("neighbor_counts", int(natoms.sum()))):
            where = self._where(shard, block, name)
            counts[name] = zarr_codec.decode_chunk(self._columns[name], chunks.pop((name, 0)), where=where)[:rows]
        for name, stored in counts.items():
            if int(np.maximum(stored, 0).sum()) != nedges:
                raise ShardError(f"{self._where(shard, block, name)}: does not add up to {nedges} edges; damaged")
        ends = np.cumsum(natoms)
        before = np.concatenate([[0], np.cumsum(counts["neighbor_counts"], dtype=np.int64)])
        if not np.array_equal(before[ends] - before[ends - natoms], np.maximum(counts["nedges"], 0)):
            where = self._where(shard, block, "neighbor_counts")
            raise ShardError(f"{where}: does not add up to the edges of each structure; damaged")
        verified = {
            name: tuple(
                np.frombuffer(zarr_codec.verified(chunks[name, piece], where=self._where(shard, block, name)), np.uint8)
                for piece in pieces
            )
            for name in EDGE_COLUMNS
        }
        return LayerBlock(natoms, counts["nedges"], counts["neighbor_counts"], verified, self._piece)

    def verify(self, shard: int, block: int, array: str, piece: int, nedges: int) -> None:
        """Check one chunk, if a block of so many edges has it.

        Raises:
            ShardError: damaged or missing; names shard, array and block.
        """
        if array in EDGE_COLUMNS and piece * self._piece >= nedges:
            return
        (chunk,) = self._chunks(shard, block, [(array, piece)])
        zarr_codec.verified(chunk, where=self._where(shard, block, array))

    def _chunks(self, shard: int, block: int, wanted: list[tuple[str, int]]) -> list[Payload]:
        files = {stored_file(self._columns[name], shard, piece): name for name, piece in wanted}
        where = {file: self._where(shard, block, name) for file, name in files.items()}
        return self._shards.read(block, list(files), where)
