"""The graph layer of an open data set."""

from __future__ import annotations

import os
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from jmp_data.errors import ShardError
from jmp_data.graphs import Edges, batch_four_graphs, unpack_four_graphs
from jmp_data.shards.graph_layer.joining import join_edges
from jmp_data.shards.graph_layer.layer_block import LayerBlock
from jmp_data.shards.graph_layer.layout import BLOCKS_FILE, split_name
from jmp_data.shards.graph_layer.reader import LayerReader
from jmp_data.shards.graph_layer.settings import LayerSettings

if TYPE_CHECKING:
    from jmp_data.shards.dataset import ShardDataset

_GEOMETRY = ("positions", "cell", "pbc", "tags")


class GraphLayer:
    """Stored radius graphs. Get it from `ShardDataset.graph_layer`.

    Attributes:
        settings: what is stored.
    """

    def __init__(self, dataset: ShardDataset) -> None:
        self._dataset = dataset
        self.settings = LayerSettings.from_json(dataset.summary.graphs)
        self._reader: tuple[int, LayerReader] | None = None

    @cached_property
    def _extents(self) -> npt.NDArray[np.int64]:
        return np.asarray(self._dataset.read_sidecar(BLOCKS_FILE), np.int64).reshape(-1, 2)

    def _layer_reader(self) -> LayerReader:
        if self._reader is None or self._reader[0] != os.getpid():
            layout = self._dataset.summary.layout
            self._reader = os.getpid(), LayerReader(self._dataset.store, self.settings, layout)
        return self._reader[1]

    def read_block(self, index: int) -> LayerBlock:
        """One block, its edges still compressed.

        Raises:
            ShardError: a chunk is damaged or missing; names shard, array and block.
        """
        shard, block = self._dataset.locate_block(index)
        first, stop = (int(bound) for bound in self._dataset.block_ptr[index : index + 2])
        natoms = np.asarray(self._dataset.natoms[first:stop])
        return self._layer_reader().read(shard, block, natoms, int(self._extents[index, 0]))

    def read(self, index: int) -> dict[str, Edges]:
        """See `ShardDataset.read_graphs`."""
        layer = self.read_block(index)
        stored = layer.nedges >= 0
        graphs = unpack_four_graphs(layer.take(np.flatnonzero(stored)), layer.natoms[stored])
        if stored.all():
            return {name: getattr(graphs, name) for name in self.settings.names}
        block = self._dataset.read_block(index, _GEOMETRY).take(~stored)
        each = self.settings.of_structures(block.pbc)
        found = batch_four_graphs(block.positions, block.cell, block.pbc, block.natoms, block.tags, each)
        return {
            name: join_edges(getattr(graphs, name), getattr(found, name), stored, layer.natoms)
            for name in self.settings.names
        }

    def damaged_blocks(self, blocks: range, file: str) -> list[str]:
        """What is wrong with the blocks of a shard in one of the layer's files; names shard, array and block."""
        array, piece = split_name(file)
        messages = []
        for index in blocks:
            shard, block = self._dataset.locate_block(index)
            try:
                self._layer_reader().verify(shard, block, array, piece, int(self._extents[index, 0]))
            except ShardError as error:
                messages.append(str(error))
        return messages
