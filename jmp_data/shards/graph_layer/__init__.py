"""Radius graphs stored beside the structures of a data set: an optional layer that is read or left alone.

The layer lies in the folder `graphs` of a data set, in Zarr or WebDataset sets alike, as a Zarr group of five arrays
with the same blocks and shards as the structures. It holds one list of edges per structure, the widest that is stored,
and which of the narrower graphs each edge belongs to. Distances and vectors follow from the positions.
"""

from jmp_data.shards.graph_layer.layer import GraphLayer
from jmp_data.shards.graph_layer.layer_block import LayerBlock
from jmp_data.shards.graph_layer.settings import RULE, LayerKind, LayerSettings

__all__ = ["RULE", "GraphLayer", "LayerBlock", "LayerKind", "LayerSettings"]
