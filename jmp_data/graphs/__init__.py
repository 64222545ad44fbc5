"""Radius graphs: right in every cell, the same on every backend, fast enough that no GPU waits for them."""

from jmp_data.graphs.attach import attach_graphs, attach_on_device
from jmp_data.graphs.batched import FourGraphs, batch_four_graphs, batch_radius_graph, four_graphs
from jmp_data.graphs.codec import (
    PackedEdges,
    PackedFourGraphs,
    pack_edges,
    pack_four_graphs,
    unpack_edges,
    unpack_four_graphs,
)
from jmp_data.graphs.nested import nest_graphs
from jmp_data.graphs.radius_graph import Edges, RadiusGraph, radius_graph
from jmp_data.graphs.settings import GRAPH_NAMES, MOLECULE, PERIODIC, GraphSettings

__all__ = [
    "GRAPH_NAMES",
    "MOLECULE",
    "PERIODIC",
    "Edges",
    "FourGraphs",
    "GraphSettings",
    "PackedEdges",
    "PackedFourGraphs",
    "RadiusGraph",
    "attach_graphs",
    "attach_on_device",
    "batch_four_graphs",
    "batch_radius_graph",
    "four_graphs",
    "nest_graphs",
    "pack_edges",
    "pack_four_graphs",
    "radius_graph",
    "unpack_edges",
    "unpack_four_graphs",
]
