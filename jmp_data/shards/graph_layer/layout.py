"""Arrays of a graph layer and the names of their files. Pure facts, no I/O.

    nedges           (blocks, structures)  int32    edges of each structure; -1: not stored, compute them
    neighbor_counts  (blocks, atoms)       uint16   edges of each target atom
    source           (blocks, edges)       uint16   source atom, counted within its structure
    cell_offsets     (blocks, edges, 3)    int8     lattice translation of the source
    membership       (blocks, edges)       uint8    1: edge of main, 2: of a2ee2a, 4: of qint

Edges are sorted by target. Their number differs from block to block, by far more than padding could hide, so an edge
array has as many pieces of `piece_edges` edges a block as the fullest block needs, each piece number in a file of its
own, and the pieces that a block does not need are absent.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from jmp_data.graphs.codec import MEMBERSHIP_BITS
from jmp_data.shards.graph_layer.settings import LayerSettings
from jmp_data.shards.layout import Column, Layout
from jmp_data.shards.zarr_codec import GRANULE, array_metadata, group_metadata

FOLDER: Final = "graphs"
BLOCKS_FILE: Final = f"{FOLDER}/blocks.npy"
"""(num_blocks, 2) int64: edges of each block, and structures whose edges are not stored."""

MOST_PIECE_EDGES: Final = 1 << 20
EDGE_COLUMNS: Final = ("source", "cell_offsets", "membership")

_STAGED = f"{FOLDER}-"


def piece_edges(settings: LayerSettings, layout: Layout) -> int:
    """Edges in one piece of a block: a whole number of granules, enough for a whole block if that is not too many."""
    most = settings.most_neighbors * layout.block_atoms
    granules = -(-min(most, MOST_PIECE_EDGES) // GRANULE)
    return granules * GRANULE


def layer_columns(settings: LayerSettings, layout: Layout) -> dict[str, Column]:
    """The arrays by name, in storage order."""
    piece = piece_edges(settings, layout)
    columns = (
        Column("nedges", np.dtype("int32"), (layout.block_structures,), "structure"),
        Column("neighbor_counts", np.dtype("uint16"), (layout.block_atoms,), "atom"),
        Column("source", np.dtype("uint16"), (piece,), "edge"),
        Column("cell_offsets", np.dtype("int8"), (piece, 3), "edge"),
        Column("membership", np.dtype("uint8"), (piece,), "edge"),
    )
    return {column.name: column for column in columns}


def staged_file(array: str, piece: int) -> str:
    """Name of a file in the staging folder of its shard."""
    return f"{_STAGED}{array}-{piece}"


def is_layer_file(name: str) -> bool:
    """Whether a file, staged or in its final place, belongs to the layer."""
    return name.startswith((f"{FOLDER}/", _STAGED))


def stored_file(column: Column, shard: int, piece: int) -> str:
    """Name of a file relative to the data set folder."""
    return "/".join([FOLDER, column.name, "c", str(shard), str(piece), *["0"] * (len(column.chunk) - 1)])


def final_name(staged: str, shard: int, columns: dict[str, Column]) -> str:
    """Final name of a staged file."""
    array, _, piece = staged.removeprefix(_STAGED).rpartition("-")
    return stored_file(columns[array], shard, int(piece))


def split_name(name: str) -> tuple[str, int]:
    """Array and piece of a file in its final place."""
    parts = name.split("/")
    return parts[1], int(parts[4])


def layer_metadata(
    settings: LayerSettings, layout: Layout, *, num_shards: int, fullest_block: int
) -> dict[str, dict[str, Any]]:
    """The Zarr metadata of the layer's group and arrays, by folder relative to the data set's.

    Args:
        settings: what is stored.
        layout: capacities.
        num_shards: number of shards.
        fullest_block: edges of the block that has most.
    """
    pieces = max(1, -(-fullest_block // piece_edges(settings, layout)))
    attributes = {"membership_bits": MEMBERSHIP_BITS, "note": "nedges == -1: not stored; see manifest.json"}
    nodes = {FOLDER: group_metadata(attributes)}
    for name, column in layer_columns(settings, layout).items():
        in_pieces = pieces if column.level == "edge" else 1
        nodes[f"{FOLDER}/{name}"] = array_metadata(column, layout, num_shards, pieces=in_pieces)
    return nodes
