"""One test for all searches: whoever proposes the pairs, the graph is the same to the last bit."""

from __future__ import annotations

import importlib.util
from typing import get_args

import numpy as np
import pytest
from ase.build import bulk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jmp_data.errors import MissingExtraError
from jmp_data.graphs import radius_graph
from jmp_data.graphs.backends import BackendName
from tests.jmp_data.graphs.structures import Case, cases, rotated

EXTRAS = {"torch_cluster": "torch_cluster", "nvalchemi": "nvalchemiops"}
LIBRARIES = [
    pytest.param(name, marks=pytest.mark.skipif(not importlib.util.find_spec(EXTRAS.get(name, "numpy")), reason=name))
    for name in get_args(BackendName)
    if name not in ("auto", "numba")
]


def examples(count: int) -> settings:
    return settings(
        max_examples=count, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
    )


def check_same(case: Case, backend: str) -> None:
    if backend == "torch_cluster" and case.pbc.any():
        case = Case(case.positions, case.cell, np.zeros(3, bool), case.cutoff, case.max_neighbors)
    arguments = {"cutoff": case.cutoff, "max_neighbors": case.max_neighbors}
    ours = radius_graph(case.positions, case.cell, case.pbc, **arguments)
    theirs = radius_graph(case.positions, case.cell, case.pbc, backend=backend, **arguments)
    np.testing.assert_array_equal(theirs.edge_index, ours.edge_index)
    np.testing.assert_array_equal(theirs.cell_offsets, ours.cell_offsets)
    np.testing.assert_array_equal(theirs.distances, ours.distances)
    assert theirs.edge_index.dtype == ours.edge_index.dtype
    assert theirs.cell_offsets.dtype == ours.cell_offsets.dtype


@pytest.mark.parametrize("backend", LIBRARIES)
@examples(30)
@given(case=cases(), turn=st.none() | st.integers(0, 2**32 - 1))
def test_agrees_with_the_kernel(backend: str, case: Case, turn: int | None) -> None:
    check_same(case if turn is None else rotated(case, turn), backend)


@pytest.mark.slow
@pytest.mark.parametrize("backend", LIBRARIES)
@examples(2000)
@given(case=cases(), turn=st.none() | st.integers(0, 2**32 - 1))
def test_agrees_with_the_kernel_often(backend: str, case: Case, turn: int | None) -> None:
    check_same(case if turn is None else rotated(case, turn), backend)


@pytest.mark.parametrize("backend", ["vesin", "pymatgen"])
def test_agrees_on_thousands_of_atoms(backend: str) -> None:
    atoms = bulk("Cu", cubic=True).repeat(11)[:5000]
    atoms.rattle(0.2, seed=1)
    atoms.positions[::7] += 2 * atoms.cell.array[0]
    for pbc in (True, False, (True, False, True)):
        check_same(Case(atoms.positions, atoms.cell.array, np.broadcast_to(pbc, 3), 4.2, 12), backend)


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "nvalchemiops", None)
    monkeypatch.setitem(sys.modules, "nvalchemiops.torch.neighbors", None)
    monkeypatch.delitem(sys.modules, "jmp_data.graphs.backends.nvalchemi_search", raising=False)
    with pytest.raises(MissingExtraError, match=r"jmp-data\[nvalchemi\]"):
        radius_graph(np.zeros((1, 3)), None, False, cutoff=1.0, backend="nvalchemi")
