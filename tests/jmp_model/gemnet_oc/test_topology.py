"""Symmetrisation and index sets against loops over atoms and edges that follow the definitions word by word."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from hypothesis import given
from hypothesis import strategies as st

from jmp_model.gemnet_oc import indices
from jmp_model.gemnet_oc.graphs import EdgeSet
from jmp_model.gemnet_oc.ragged import GroupCounts, PaddedLayout, chosen, exchange, pick, spread
from jmp_model.gemnet_oc.topology import Topology, build_topology, symmetrize
from tests.jmp_model.gemnet_oc.structures import make_inputs, rattled, some_crystal, some_molecule, some_slab

Edge = tuple[int, int, tuple[int, int, int]]


def listed(source: torch.Tensor, target: torch.Tensor, offsets: torch.Tensor) -> list[Edge]:
    return [
        (int(s), int(t), tuple(int(x) for x in o))  # type: ignore[misc]
        for s, t, o in zip(source, target, offsets, strict=True)
    ]


def add(a: tuple[int, ...], b: tuple[int, ...], sign: int = 1) -> tuple[int, ...]:
    return tuple(x + sign * y for x, y in zip(a, b, strict=True))


STRUCTURES = {
    "molecule": [some_molecule(1)],
    "crystal": [some_crystal(1)],
    "slab": [some_slab(1)],
    "batch": [some_molecule(2, "H2O"), Atoms("H"), some_crystal(3)],
}


@pytest.fixture(scope="module", params=STRUCTURES)
def topology(request: pytest.FixtureRequest) -> Topology:
    inputs = make_inputs(STRUCTURES[request.param])
    return build_topology(inputs.graphs, len(inputs.positions))


def test_reference_symmetrisation_keeps_one_direction_and_adds_its_reverse() -> None:
    inputs = make_inputs([some_slab(4), some_crystal(5)])
    before = inputs.graphs.main
    edges = listed(*before.edge_index, before.cell_offsets)
    kept = [(s, t, o) for s, t, o in edges if s < t or (s == t and next((x for x in o if x), 0) < 0)]
    expected = set(kept) | {(t, s, add((0, 0, 0), o, -1)) for s, t, o in kept}
    after, swap = symmetrize(before)
    found = listed(*after.edge_index, after.cell_offsets)
    assert set(found) == expected
    assert len(found) == len(expected) == 2 * len(kept)
    assert all(found[swap[i]] == (t, s, add((0, 0, 0), o, -1)) for i, (s, t, o) in enumerate(found))


@given(st.lists(st.booleans(), max_size=20))
def test_entries_of_known_number_are_found_in_order(entries: list[bool]) -> None:
    mask = torch.tensor(entries, dtype=torch.bool)
    assert chosen(mask, sum(entries)).tolist() == [i for i, entry in enumerate(entries) if entry]


def test_symmetric_rule_keeps_every_pair_once_per_direction() -> None:
    inputs = make_inputs([some_slab(4), some_crystal(5)])
    before = inputs.graphs.main
    edges = set(listed(*before.edge_index, before.cell_offsets))
    after, swap = symmetrize(before, rule="symmetric")
    found = listed(*after.edge_index, after.cell_offsets)
    assert set(found) == edges | {(t, s, add((0, 0, 0), o, -1)) for s, t, o in edges}
    assert len(set(found)) == len(found)
    assert torch.equal(swap[swap], torch.arange(len(found)))


def test_reverse_map_is_an_involution_without_fixed_points(topology: Topology) -> None:
    main = topology.main
    edges = listed(main.source, main.target, main.cell_offsets)
    swap = topology.main_swap.tolist()
    assert all(edges[swap[i]] == (t, s, add((0, 0, 0), o, -1)) for i, (s, t, o) in enumerate(edges))
    assert all(swap[i] != i for i in range(len(edges)))


def test_triplets_follow_their_definitions(topology: Topology) -> None:
    main = listed(topology.main.source, topology.main.target, topology.main.cell_offsets)
    other = listed(topology.a2ee2a.source, topology.a2ee2a.target, topology.a2ee2a.cell_offsets)
    e2e = {(i, o) for o, eo in enumerate(main) for i, ei in enumerate(main) if ei[1] == eo[1] and i != o}
    mixed = {(i, o) for o, eo in enumerate(main) for i, ei in enumerate(other) if ei[1] == eo[1] and ei != eo}
    found = indices.edge_to_edge(topology)
    assert set(zip(found.inner.tolist(), found.outer.tolist(), strict=True)) == e2e
    found = indices.atom_to_edge(topology)
    assert set(zip(found.inner.tolist(), found.outer.tolist(), strict=True)) == mixed
    found = indices.edge_to_atom(topology)
    assert set(zip(found.outer.tolist(), found.inner.tolist(), strict=True)) == mixed


def test_quadruplets_follow_their_definition(topology: Topology) -> None:
    if topology.quads is None:
        pytest.fail("all test structures have quadruplets")
    qint = topology.quads.qint
    main = listed(topology.main.source, topology.main.target, topology.main.cell_offsets)
    middle = listed(qint.source, qint.target, qint.cell_offsets)
    by_target: dict[int, list[int]] = {}
    for i, (_, t, _) in enumerate(main):
        by_target.setdefault(t, []).append(i)
    expected = set()
    for q, (b, a, o_ba) in enumerate(middle):
        for e in by_target.get(a, []):
            c, _, o_ca = main[e]
            if c == b and o_ca == o_ba:
                continue
            for f in by_target.get(b, []):
                d, _, o_db = main[f]
                back = d == a and add(o_db, o_ba) == (0, 0, 0)
                same = c == d and add(add(o_db, o_ba), o_ca, -1) == (0, 0, 0)
                if not back and not same:
                    expected.add((f, q, e))
    found = indices.quadruplets(topology)
    listed_quads = list(zip(found.edge_db.tolist(), found.edge_ba.tolist(), found.edge_ca.tolist(), strict=True))
    assert len(set(listed_quads)) == len(listed_quads)
    assert set(listed_quads) == expected


def test_padded_moves_are_inverse_and_twice_differentiable() -> None:
    groups = torch.tensor([0, 0, 0, 2, 2, 5])
    layout = PaddedLayout.of(groups, GroupCounts.of(groups, 7))
    assert (layout.width, layout.num_groups) == (3, 7)
    rows = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    assert torch.equal(layout.unpad(layout.pad(rows)), rows)
    assert int(layout.mask().sum()) == 6
    index = torch.tensor([4, 0, 2, 7, 1, 3])
    swap = torch.tensor([1, 0, 2, 5, 4, 3])
    assert torch.autograd.gradcheck(lambda x: spread(x, index, 9), rows)
    assert torch.autograd.gradgradcheck(lambda x: spread(x, index, 9) ** 3, rows)
    assert torch.autograd.gradgradcheck(lambda x: pick(x, torch.tensor([3, 1])) ** 3, rows)
    assert torch.autograd.gradgradcheck(lambda x: exchange(x, swap) ** 3, rows)


def test_empty_graphs_have_empty_topology() -> None:
    none = EdgeSet(torch.zeros(2, 0), torch.zeros(0, 3))
    inputs = make_inputs([Atoms("H")])
    graphs = type(inputs.graphs)(main=none, a2a=none, a2ee2a=none, qint=none)
    topology = build_topology(graphs, 1)
    assert topology.main.num_edges == 0
    assert topology.quads is None
    assert len(indices.quadruplets(topology).edge_db) == 0


def test_structures_used_here_have_different_graphs() -> None:
    first, second = make_inputs([some_slab(1)]), make_inputs([rattled(some_slab(1), 9, size=0.5)])
    assert not np.array_equal(first.graphs.main.edge_index, second.graphs.main.edge_index)
