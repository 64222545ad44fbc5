from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111
from ase.io import read
from ase.neighborlist import primitive_neighbor_list
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import jmp_data
from jmp_data.errors import InvalidStructureError
from jmp_data.graphs import RadiusGraph, radius_graph
from tests.jmp_data.graphs.structures import Case, brute_force, cases, kd_tree_search, large_cases, rotated
from tests.shared import SHARED, needs_shared


def examples(count: int) -> settings:
    return settings(
        max_examples=count, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
    )


def search(case: Case, backend: str = "auto") -> RadiusGraph:
    return radius_graph(
        case.positions, case.cell, case.pbc, cutoff=case.cutoff, max_neighbors=case.max_neighbors, backend=backend
    )


def as_tuples(graph: RadiusGraph) -> list[tuple[int, int, tuple[int, ...]]]:
    source, target = graph.edge_index.tolist()
    return list(zip(target, source, map(tuple, graph.cell_offsets.tolist()), strict=True))


def check_against_brute_force(case: Case) -> None:
    expected = brute_force(case)
    graph = search(case)
    assert as_tuples(graph) == [edge[:3] for edge in expected]
    np.testing.assert_allclose(graph.distances**2, [edge[3] for edge in expected], rtol=1e-12)


def check_against_ase(case: Case) -> None:
    # ASE excludes the cutoff itself; on the grid, nothing else lies within 1e-9 Å of it.
    cutoff = case.cutoff + (1e-9 if case.pbc.any() else -1e-9)
    target, source, offsets, distance = primitive_neighbor_list(
        "ijSd", case.pbc, case.cell, case.positions, cutoff, self_interaction=False
    )
    apart = distance > 0.01
    expected = sorted(
        zip(target[apart].tolist(), source[apart].tolist(), map(tuple, offsets[apart].tolist()), strict=True)
    )
    graph = radius_graph(case.positions, case.cell, case.pbc, cutoff=case.cutoff)
    assert as_tuples(graph) == expected


def check_reverses(case: Case) -> None:
    graph = radius_graph(case.positions, case.cell, case.pbc, cutoff=case.cutoff)
    lengths = dict(zip(as_tuples(graph), graph.distances.tolist(), strict=True))
    for (target, source, offset), length in lengths.items():
        assert lengths[source, target, tuple(-o for o in offset)] == length


@examples(120)
@given(cases())
def test_equals_brute_force(case: Case) -> None:
    check_against_brute_force(case)


@pytest.mark.slow
@examples(4000)
@given(cases())
def test_equals_brute_force_often(case: Case) -> None:
    check_against_brute_force(case)


def check_against_a_kd_tree(case: Case) -> None:
    rows, squared = kd_tree_search(case)
    graph = search(case)
    np.testing.assert_array_equal(np.column_stack([graph.edge_index[::-1].T, graph.cell_offsets]), rows)
    np.testing.assert_array_equal(graph.distances, np.sqrt(squared))


@examples(20)
@given(large_cases())
def test_thousands_of_atoms_equal_a_kd_tree(case: Case) -> None:
    check_against_a_kd_tree(case)


@pytest.mark.slow
@examples(400)
@given(large_cases())
def test_thousands_of_atoms_equal_a_kd_tree_often(case: Case) -> None:
    check_against_a_kd_tree(case)


@examples(60)
@given(cases())
def test_equals_ase(case: Case) -> None:
    check_against_ase(case)


@pytest.mark.slow
@examples(2000)
@given(cases())
def test_equals_ase_often(case: Case) -> None:
    check_against_ase(case)


@examples(60)
@given(cases(), st.integers(0, 2**32 - 1))
def test_equal_distances_stay_ties_when_the_structure_is_turned(case: Case, seed: int) -> None:
    turned = rotated(case, seed)
    straight = search(Case(case.positions, case.cell, case.pbc, turned.cutoff, case.max_neighbors))
    assert as_tuples(search(turned)) == as_tuples(straight)


@examples(60)
@given(cases(), st.integers(0, 2**32 - 1))
def test_an_edge_and_its_reverse_are_equally_long_to_the_last_bit(case: Case, seed: int) -> None:
    check_reverses(rotated(case, seed))


@examples(40)
@given(cases(kinds=("slab", "wire", "left_handed", "skewed")), st.integers(0, 2**32 - 1))
def test_wrapping_an_atom_changes_offsets_only(case: Case, seed: int) -> None:
    shifts = np.random.default_rng(seed).integers(-5, 6, size=case.positions.shape) * case.pbc
    moved = Case(case.positions + shifts @ case.cell, case.cell, case.pbc, case.cutoff, None)
    here, there = radius_graph(case.positions, case.cell, case.pbc, cutoff=case.cutoff), search(moved)
    source, target = there.edge_index
    back = there.cell_offsets + shifts[source] - shifts[target]
    found = sorted(zip(target.tolist(), source.tolist(), map(tuple, back.tolist()), strict=True))
    assert found == as_tuples(here)


def test_the_package_exports_it_with_the_documented_arguments() -> None:
    atoms = bulk("Cu", cubic=True)
    edges = jmp_data.radius_graph(atoms.positions, atoms.cell.array, atoms.pbc, cutoff=12.0, max_neighbors=30)
    assert edges.edge_index.shape == (2, 120)
    assert edges.edge_index.dtype == np.int64
    assert edges.cell_offsets.shape == (120, 3)
    assert edges.distances.shape == (120,)
    assert len(edges) == 120


def test_atom_exactly_at_the_cutoff() -> None:
    pair = np.array([[0.0, 0.0, 0.0], [3.0, 0.0, 0.0]])
    assert len(radius_graph(pair, None, False, cutoff=3.0)) == 0
    assert len(radius_graph(pair, None, False, cutoff=np.nextafter(3.0, 4.0))) == 2
    box = np.eye(3) * 50.0
    assert len(radius_graph(pair, box, (False, False, True), cutoff=3.0)) == 2
    assert len(radius_graph(pair, box, True, cutoff=np.nextafter(3.0, 0.0))) == 0


def test_one_atom_cell_sees_its_own_images() -> None:
    graph = radius_graph(np.zeros((1, 3)), np.eye(3) * 2.0, True, cutoff=2.0)
    assert sorted(map(tuple, graph.cell_offsets.tolist())) == [
        (-1, 0, 0), (0, -1, 0), (0, 0, -1), (0, 0, 1), (0, 1, 0), (1, 0, 0),
    ]  # fmt: skip
    np.testing.assert_array_equal(graph.distances, 2.0)


def test_unwrapped_atom_loses_no_edges() -> None:
    """The reference finds 638 or 576 of these 680 edges, depending on the direction of the shift."""
    salt = bulk("NaCl", "rocksalt", a=5.64)
    complete = radius_graph(salt.positions, salt.cell.array, True, cutoff=12.0)
    for direction in np.eye(3):
        moved = salt.positions + np.array([np.zeros(3), 3 * direction @ salt.cell.array])
        graph = radius_graph(moved, salt.cell.array, True, cutoff=12.0)
        assert len(graph) == len(complete)
        np.testing.assert_allclose(np.sort(graph.distances), np.sort(complete.distances))


def test_degenerate_shell_is_cut_by_source_then_offset() -> None:
    graph = radius_graph(np.zeros((1, 3)), bulk("Cu", a=3.61).cell.array, True, cutoff=12.0, max_neighbors=4)
    every = radius_graph(np.zeros((1, 3)), bulk("Cu", a=3.61).cell.array, True, cutoff=3.61 / np.sqrt(2) + 0.1)
    assert len(every) == 12
    np.testing.assert_array_equal(graph.cell_offsets, every.cell_offsets[:4])


def test_truncation_keeps_the_nearest() -> None:
    atoms = fcc111("Pt", (3, 3, 3), vacuum=8.0, periodic=True)
    atoms.rattle(0.1, seed=0)
    every = radius_graph(atoms.positions, atoms.cell.array, atoms.pbc, cutoff=9.0)
    some = radius_graph(atoms.positions, atoms.cell.array, atoms.pbc, cutoff=9.0, max_neighbors=17)
    for atom in range(len(atoms)):
        own = np.sort(every.distances[every.edge_index[1] == atom])
        np.testing.assert_array_equal(np.sort(some.distances[some.edge_index[1] == atom]), own[:17])


def test_atoms_on_top_of_each_other_are_no_edge() -> None:
    positions = np.array([[0.0, 0.0, 0.0], [0.005, 0.0, 0.0], [0.0, 0.02, 0.0]])
    graph = radius_graph(positions, None, False, cutoff=1.0)
    assert as_tuples(graph) == [(0, 2, (0, 0, 0)), (1, 2, (0, 0, 0)), (2, 0, (0, 0, 0)), (2, 1, (0, 0, 0))]


@pytest.mark.parametrize("max_neighbors", [None, 5])
def test_empty_neighbourhoods(max_neighbors: int | None) -> None:
    positions = np.array([[0.0, 0.0, 0.0], [100.0, 0.0, 0.0], [101.0, 0.0, 0.0]])
    graph = radius_graph(positions, None, False, cutoff=5.0, max_neighbors=max_neighbors)
    assert graph.edge_index.tolist() == [[2, 1], [1, 2]]
    nothing = radius_graph(np.zeros((0, 3)), None, False, cutoff=5.0, max_neighbors=max_neighbors)
    assert nothing.edge_index.shape == (2, 0)
    assert nothing.cell_offsets.shape == (0, 3)


BOX = [[5.0, 0.0, 0.0], [1.0, 5.0, 0.0], [0.0, 1.0, 5.0]]
PAIR = [[0.1, 0.2, 0.3], [1.6, 0.2, 0.3]]


@pytest.mark.parametrize(
    ("positions", "cell", "pbc"),
    [
        (PAIR, BOX, [True, True, True]),
        (np.array(PAIR), np.asfortranarray(BOX), True),
        (np.array(PAIR)[::-1][::-1], np.array(BOX)[None], np.True_),
        (np.array(PAIR, ">f8"), np.array(BOX, np.float32), np.array([1, 1, 1])),
        (torch.tensor(PAIR, dtype=torch.float64, requires_grad=True), torch.tensor(BOX), torch.ones(3) > 0),
        (torch.tensor(PAIR, dtype=torch.float64), torch.tensor(BOX)[None], torch.ones(1, 3, dtype=torch.bool)),
        (PAIR, Atoms(cell=BOX).cell, None),
    ],
)
def test_arrays_lists_and_tensors_are_taken(positions: object, cell: object, pbc: object) -> None:
    expected = radius_graph(np.array(PAIR), np.array(BOX), np.array([True] * 3), cutoff=4.9)
    assert len(expected) > 2
    edge_index, cell_offsets, distances = radius_graph(positions, cell, pbc, cutoff=np.float32(4.9) * 0 + 4.9)
    np.testing.assert_array_equal(edge_index, expected.edge_index)
    np.testing.assert_array_equal(cell_offsets, expected.cell_offsets)
    np.testing.assert_array_equal(distances, expected.distances)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_narrow_floats_are_computed_in_float64(dtype: torch.dtype) -> None:
    narrow = torch.tensor(PAIR, dtype=dtype)
    graph = radius_graph(narrow, None, False, cutoff=2.0)
    wide = radius_graph(narrow.double().numpy(), None, None, cutoff=torch.tensor(2.0), max_neighbors=np.int64(30))
    np.testing.assert_array_equal(graph.distances, wide.distances)
    assert graph.distances.dtype == np.float64
    assert graph.distances[0] != 1.5


def test_what_is_given_is_not_changed() -> None:
    positions, cell, pbc = np.array(PAIR), np.array(BOX), np.array([True, False, True])
    before = positions.copy(), cell.copy(), pbc.copy()
    radius_graph(positions, cell, pbc, cutoff=3.0)
    for array, copy in zip((positions, cell, pbc), before, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cutoff": 0.0}, "positive length"),
        ({"cutoff": -1}, "positive length"),
        ({"cutoff": float("inf")}, "positive length"),
        ({"cutoff": float("nan")}, "positive length"),
        ({"cutoff": None}, "positive length"),
        ({"max_neighbors": 0}, "at least 1"),
        ({"max_neighbors": 2.5}, "whole number"),
        ({"positions": [[0.0, 0.0, 0.0], [1.0]]}, "positions cannot be read"),
        ({"positions": [["a", "b", "c"]]}, "positions cannot be read"),
        ({"positions": np.zeros(3)}, r"shape \(3,\), expected \(natoms, 3\)"),
        ({"positions": np.array([[0, 0, 0], [0, np.inf, 0]])}, "first at atom 1"),
        ({"pbc": [True, True]}, "2 flags"),
        ({"cell": np.full((3, 3), np.nan)}, "cell holds NaN"),
        ({"positions": np.zeros((2, 2))}, "expected"),
        ({"positions": np.full((2, 3), np.nan)}, "NaN"),
        ({"cell": None}, "without a cell"),
        ({"cell": np.eye(2)}, "expected"),
        ({"cell": np.ones((3, 3))}, "no volume"),
        ({"cell": np.eye(3) * 1e-3}, "check the units"),
        ({"positions": np.full((1, 3), 1e12)}, "check the units"),
        ({"cell": np.array([[4.0, 0, 0], [4e6, 4, 0], [3e6, -5e6, 4]])}, "reduced cell"),
        ({"backend": "sorcery"}, "unknown"),
        ({"backend": "torch_cluster"}, "no periodicity"),
    ],
)
def test_bad_input_is_refused_with_what_to_do(change: dict, message: str) -> None:
    arguments = {"positions": np.zeros((1, 3)), "cell": np.eye(3) * 4, "pbc": True, "cutoff": 3.0, **change}
    with pytest.raises(InvalidStructureError, match=message):
        radius_graph(**arguments)


@needs_shared
@pytest.mark.parametrize(
    "name",
    [
        "oc20/random1447590.traj", "oc20/toy_c3h8_relax.extxyz", "ase_traj/MoS2.traj",
        "ase_traj/ocp_nrr_mp-2677_H_0.traj", "ase_traj/finetune_structure_0001.traj", "extxyz/hfo2.extxyz",
        "extxyz/Perovskite.xyz", "extxyz/carbon_reduced_100.xyz", "md22/md22_Ac-Ala3-NHMe_frames0-2.xyz",
    ],
)  # fmt: skip
def test_real_structures_equal_ase(name: str) -> None:
    """No truncation or cutoff of these lies within 1e-9 Å of a distance."""
    atoms = read(SHARED / "samples" / name, index=0)
    check_against_ase(Case(atoms.positions, atoms.cell.array, atoms.pbc, 6.0, None))
