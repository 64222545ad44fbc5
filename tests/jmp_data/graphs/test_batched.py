from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings

from jmp_data.errors import InvalidStructureError
from jmp_data.graphs import (
    GRAPH_NAMES,
    MOLECULE,
    PERIODIC,
    GraphSettings,
    batch_four_graphs,
    batch_radius_graph,
    four_graphs,
    nest_graphs,
    radius_graph,
)
from tests.jmp_data.graphs.batches import PARITY, Batch, assert_same_graphs, batches, parity_batch
from tests.jmp_data.graphs.structures import Case, brute_force, nearness
from tests.shared import needs_shared


def edge_set(edge_index: np.ndarray, cell_offsets: np.ndarray) -> set[tuple[int, ...]]:
    return set(map(tuple, np.concatenate([edge_index, cell_offsets.T]).T.tolist()))


@needs_shared
@pytest.mark.parametrize("name", PARITY)
def test_equals_the_reference_edge_for_edge(name: str) -> None:
    batch, stored = parity_batch(name)
    graphs = batch_four_graphs(*batch.geometry, batch.tags, batch.settings)
    for graph in GRAPH_NAMES:
        edges = getattr(graphs, graph)
        expected = edge_set(stored[f"{graph}_edge_index"], stored[f"{graph}_cell_offset"])
        assert edge_set(edges.edge_index, edges.cell_offsets) == expected
        assert len(edges) == len(expected)


@needs_shared
def test_ideal_fcc_keeps_the_reference_distances_though_not_its_choice_among_ties() -> None:
    batch, stored = parity_batch("fcc_ties")
    graphs = batch_four_graphs(*batch.geometry, batch.tags, batch.settings)
    assert edge_set(graphs.a2a.edge_index, graphs.a2a.cell_offsets) == edge_set(
        stored["a2a_edge_index"], stored["a2a_cell_offset"]
    )
    lengths = np.linalg.norm(graphs.main.cell_offsets @ batch.cell[0], axis=1)
    np.testing.assert_allclose(np.sort(lengths), np.sort(stored["main_distance"]))


@settings(max_examples=60)
@given(batches())
def test_subsets_of_brute_force(batch: Batch) -> None:
    """The definition, structure by structure, from the untruncated edges of the brute force."""
    graphs = batch_four_graphs(*batch.geometry, batch.tags, batch.settings)
    expected: dict[str, list[tuple[int, ...]]] = {name: [] for name in GRAPH_NAMES}
    first = 0
    for b, (natoms, s) in enumerate(zip(batch.natoms, batch.settings, strict=True)):
        positions = batch.positions[first : first + natoms]
        edges = brute_force(Case(positions, batch.cell[b], batch.pbc[b], s.cutoff, s.a2a))
        for name in GRAPH_NAMES:
            for target in range(natoms):
                own = [e for e in edges if e[0] == target]
                near = sorted(own, key=nearness)[: getattr(s, name)]
                for edge in sorted(near):
                    ends = batch.tags[first + edge[1]], batch.tags[first + target]
                    if name != "qint" or any(tag in s.qint_tags for tag in ends):
                        expected[name].append((first + edge[1], first + target, *edge[2]))
        first += natoms
    for name in GRAPH_NAMES:
        edges = getattr(graphs, name)
        assert list(map(tuple, np.concatenate([edges.edge_index, edges.cell_offsets.T]).T.tolist())) == expected[name]


@settings(max_examples=60)
@given(batches())
def test_dropout_drops_what_the_plain_rules_drop(batch: Batch) -> None:
    for dropout in (0.0, 0.3, 1.0):
        options = {"edge_dropout": dropout, "rng": np.random.default_rng(5)}
        kernel = batch_four_graphs(*batch.geometry, batch.tags, batch.settings, **options)
        whole = batch_four_graphs(*batch.geometry, batch.tags, batch.settings)
        options["rng"] = np.random.default_rng(5)
        assert_same_graphs(kernel, nest_graphs(whole.a2a, *batch.geometry, batch.tags, batch.settings, **options))


@settings(max_examples=30)
@given(batches())
def test_batch_is_its_structures_side_by_side(batch: Batch) -> None:
    together = batch_radius_graph(*batch.geometry, cutoff=4.0, max_neighbors=6)
    four = batch_four_graphs(*batch.geometry, batch.tags, batch.settings)
    first, edge, main = 0, 0, 0
    for b, natoms in enumerate(batch.natoms):
        atoms = slice(first, first + natoms)
        alone = radius_graph(batch.positions[atoms], batch.cell[b], batch.pbc[b], cutoff=4.0, max_neighbors=6)
        edges = slice(edge, edge + len(alone))
        np.testing.assert_array_equal(together.edge_index[:, edges], alone.edge_index + first)
        np.testing.assert_array_equal(together.cell_offsets[edges], alone.cell_offsets)
        np.testing.assert_array_equal(together.distances[edges], alone.distances)
        graphs = four_graphs(batch.positions[atoms], batch.cell[b], batch.pbc[b], batch.tags[atoms], batch.settings[b])
        own = slice(main, main + len(graphs.main))
        np.testing.assert_array_equal(four.main.edge_index[:, own], graphs.main.edge_index + first)
        first, edge, main = first + natoms, edge + len(alone), main + len(graphs.main)
    assert (edge, main) == (len(together), len(four.main))


def test_dropout_keeps_the_right_share_and_differs_between_draws() -> None:
    rng = np.random.default_rng(0)
    positions, cell = rng.random((40, 3)) * 12, np.eye(3) * 12
    arguments = (positions, cell, True, np.full(40, 2), GraphSettings(cutoff=6.0, qint=3))
    whole = len(four_graphs(*arguments).a2a)
    first, second = (four_graphs(*arguments, edge_dropout=0.1, rng=rng) for _ in range(2))
    assert abs(len(first.a2a) / whole - 0.9) < 4 * np.sqrt(0.09 / whole)
    assert edge_set(first.a2a.edge_index, first.a2a.cell_offsets) != edge_set(
        second.a2a.edge_index, second.a2a.cell_offsets
    )
    # An edge falls without its reverse, and what survives fills the neighbour limits again.
    kept = edge_set(first.a2a.edge_index, first.a2a.cell_offsets)
    assert any((t, s, -a, -b, -c) not in kept for s, t, a, b, c in kept)
    assert len(first.qint) == 40 * 3


def test_a_structure_loses_the_same_edges_wherever_it_stands_in_a_batch() -> None:
    rng = np.random.default_rng(0)
    positions = rng.random((6, 3)) * 5
    batch = (np.concatenate([positions] * 3), np.zeros((3, 3, 3)), np.zeros((3, 3), bool), [6, 6, 6], np.full(18, 2))
    graphs = batch_four_graphs(*batch, MOLECULE, edge_dropout=0.5, rng=np.random.default_rng(1))
    target = graphs.a2a.edge_index[1]
    first_seed = np.random.default_rng(1).integers(0, 2**63, size=3, dtype=np.int64)[0]

    class Replay:
        def integers(self, *_: object, **__: object) -> np.ndarray:
            return np.array([first_seed])

    alone = four_graphs(positions, None, False, np.full(6, 2), MOLECULE, edge_dropout=0.5, rng=Replay())
    np.testing.assert_array_equal(graphs.a2a.edge_index[:, target < 6], alone.a2a.edge_index)


def test_molecules_and_crystals_lose_nothing_to_the_tag_filter() -> None:
    positions = np.random.default_rng(0).random((9, 3)) * 4
    graphs = four_graphs(positions, None, False, np.full(9, 2), MOLECULE)
    assert len(graphs.qint) == 9 * 8
    assert len(four_graphs(positions, None, False, np.zeros(9), MOLECULE).qint) == 0


def test_threads_search_at_the_same_time() -> None:
    rng = np.random.default_rng(0)
    positions = [rng.random((50, 3)) * 10 for _ in range(16)]
    cell, tags = np.eye(3) * 10, np.full(50, 2)
    expected = [four_graphs(p, cell, True, tags, PERIODIC) for p in positions]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda p: four_graphs(p, cell, True, tags, PERIODIC), positions))
    for ours, theirs in zip(found, expected, strict=True):
        assert_same_graphs(ours, theirs)


def test_many_neighbours_are_ranked_like_few() -> None:
    """More candidates than the all-pairs ranking takes, with many ties."""
    positions = np.stack(np.meshgrid(*[np.arange(5.0)] * 3), -1).reshape(-1, 3)
    wide = GraphSettings(cutoff=4.0, main=150, a2ee2a=140, qint=131, a2a=1000)
    cell, pbc, tags = np.eye(3)[None] * 5.0, np.ones((1, 3), bool), np.full(125, 2)
    kernel = batch_four_graphs(positions, cell, pbc, [125], tags, wide)
    assert len(kernel.main) == 125 * 150
    assert_same_graphs(kernel, nest_graphs(kernel.a2a, positions, cell, pbc, [125], tags, wide))


def test_fewer_neighbours_than_any_limit_keeps_them_all() -> None:
    """More targets in a row than a radius that grows by half for each of them could survive."""
    positions = np.random.default_rng(0).random((250, 3)) * 8.0
    generous = GraphSettings(cutoff=14.0, main=400, a2ee2a=400, qint=400, a2a=400)
    graphs = four_graphs(positions, None, False, np.full(250, 2), generous)
    assert {len(getattr(graphs, name)) for name in GRAPH_NAMES} == {250 * 249}


def test_settings_follow_the_published_proportions() -> None:
    def limits(n: int) -> tuple[int, ...]:
        s = GraphSettings.from_main_count(n, 12.0)
        return s.main, s.a2ee2a, s.qint, s.a2a

    assert limits(30) == (30, 20, 8, 1000)
    assert limits(100) == (100, 66, 26, 3333)
    assert limits(10) == (10, 6, 2, 333)
    assert limits(5) == (5, 3, 1, 166)
    assert GraphSettings.from_main_count(30, 12.0) == PERIODIC
    assert GraphSettings.from_main_count(30, 8.0) == MOLECULE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tags": np.zeros(3)}, "tags have shape"),
        ({"tags": np.array([0, 63])}, "tags run from"),
        ({"cell": np.zeros((1, 3, 3)), "pbc": np.ones((1, 3), bool)}, "structure 0: periodic cell spans no volume"),
        ({"positions": np.array([[0, 0, 0], [np.nan, 0, 0]])}, "structure 0: positions hold NaN"),
        ({"cell": np.full((1, 3, 3), np.inf), "pbc": np.ones((1, 3), bool)}, "structure 0: cell holds NaN"),
        ({"natoms": [3]}, "positions has shape"),
        ({"natoms": [3, -1]}, "structure 1 has -1 atoms"),
        ({"settings": [MOLECULE, MOLECULE]}, "2 graph settings for 1"),
        ({"edge_dropout": 1.5, "rng": np.random.default_rng(0)}, "probability"),
        ({"edge_dropout": 0.1}, "needs rng"),
    ],
)
def test_bad_batches_are_refused_with_where_and_what(change: dict, message: str) -> None:
    arguments = {
        "positions": np.zeros((2, 3)), "cell": np.eye(3)[None] * 4, "pbc": np.zeros((1, 3), bool), "natoms": [2],
        "tags": np.zeros(2), "settings": MOLECULE, **change,
    }  # fmt: skip
    with pytest.raises(InvalidStructureError, match=message):
        batch_four_graphs(**arguments)


@pytest.mark.parametrize("change", [{"main": 0}, {"cutoff": -1.0}, {"qint_tags": (63,)}])
def test_settings_that_make_no_sense_are_refused(change: dict) -> None:
    with pytest.raises(InvalidStructureError):
        GraphSettings(**{"cutoff": 8.0, **change})
