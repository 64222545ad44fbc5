from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from jmp_data.errors import InvalidStructureError, ShardError
from jmp_data.graphs import (
    MOLECULE,
    Edges,
    FourGraphs,
    batch_four_graphs,
    batch_radius_graph,
    pack_edges,
    pack_four_graphs,
    unpack_edges,
    unpack_four_graphs,
)
from tests.jmp_data.graphs.batches import Batch, assert_same_graphs, batches


def molecules(natoms: list[int], span: float = 4.0) -> tuple[FourGraphs, list[int]]:
    positions = np.random.default_rng(0).random((sum(natoms), 3)) * span
    n = len(natoms)
    open_box = (np.zeros((n, 3, 3)), np.zeros((n, 3), bool))
    return batch_four_graphs(positions, *open_box, natoms, np.full(sum(natoms), 2), MOLECULE), natoms


@settings(max_examples=60)
@given(batches())
def test_round_trip_is_exact(batch: Batch) -> None:
    graphs = batch_four_graphs(*batch.geometry, batch.tags, batch.settings)
    assert_same_graphs(unpack_four_graphs(pack_four_graphs(graphs, batch.natoms), batch.natoms), graphs)
    main = unpack_edges(pack_edges(graphs.main, batch.natoms), batch.natoms)
    np.testing.assert_array_equal(main.edge_index, graphs.main.edge_index)
    np.testing.assert_array_equal(main.cell_offsets, graphs.main.cell_offsets)
    assert main.edge_index.dtype == np.int64
    assert main.cell_offsets.dtype == np.int32


def test_usual_structures_cost_five_bytes_an_edge_for_all_four_graphs() -> None:
    graphs, natoms = molecules([9, 12])
    packed = pack_four_graphs(graphs, natoms)
    assert {column.dtype for column in vars(packed).values()} == {np.dtype(np.uint8), np.dtype(np.int8)}
    assert packed.nbytes == 5 * len(graphs.a2a) + 21


def test_large_structures_and_far_atoms_widen_the_columns() -> None:
    graphs, natoms = molecules([300], span=20.0)
    assert pack_edges(graphs.main, natoms).source.dtype == np.uint16
    cell = np.eye(3)[None] * 3.0
    far = batch_radius_graph(np.array([[0.0, 0, 0], [3.0 * 500, 1, 1]]), cell, np.ones((1, 3), bool), [2], cutoff=4.0)
    packed = pack_edges(far, [2])
    assert packed.cell_offsets.dtype == np.int16
    np.testing.assert_array_equal(unpack_edges(packed, [2]).cell_offsets, far.cell_offsets)
    crowded = batch_radius_graph(np.zeros((1, 3)), cell, np.ones((1, 3), bool), [1], cutoff=14.0)
    assert len(crowded) > 255
    assert pack_edges(crowded, [1]).neighbor_counts.dtype == np.uint16


def test_no_edges_and_no_atoms() -> None:
    graphs, natoms = molecules([1, 0, 1])
    assert_same_graphs(unpack_four_graphs(pack_four_graphs(graphs, natoms), natoms), graphs)
    nothing = Edges(np.zeros((2, 0), np.int64), np.zeros((0, 3), np.int32))
    assert len(unpack_edges(pack_edges(nothing, []), [])) == 0


def test_edges_that_cannot_be_packed_are_refused() -> None:
    graphs, natoms = molecules([4, 4])
    backwards = Edges(graphs.main.edge_index[:, ::-1], graphs.main.cell_offsets)
    with pytest.raises(InvalidStructureError, match="not ascending"):
        pack_edges(backwards, natoms)
    with pytest.raises(InvalidStructureError, match="two structures"):
        pack_edges(graphs.main, [3, 5])
    with pytest.raises(InvalidStructureError, match="qint holds edges that a2a does not"):
        pack_four_graphs(
            replace(graphs, a2a=graphs.main, qint=Edges(graphs.qint.edge_index, graphs.qint.cell_offsets + 1)), natoms
        )


def test_damaged_columns_are_refused() -> None:
    graphs, natoms = molecules([4, 4])
    packed = pack_four_graphs(graphs, natoms)
    for change in (
        {"neighbor_counts": packed.neighbor_counts[:-1]},
        {"neighbor_counts": packed.neighbor_counts + np.uint8(1)},
        {"neighbor_counts": packed.neighbor_counts - np.uint8(1)},
        {"source": packed.source + np.uint8(4)},
        {"cell_offsets": packed.cell_offsets[:-1]},
        {"membership": packed.membership[:-1]},
    ):
        with pytest.raises(ShardError, match="damaged"):
            unpack_four_graphs(replace(packed, **change), natoms)
