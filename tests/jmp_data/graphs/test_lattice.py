from __future__ import annotations

import numpy as np
from hypothesis import given

from jmp_data.graphs.lattice import reduce_cells
from tests.jmp_data.graphs.structures import Case, cases


@given(cases())
def test_reduced_cell_spans_the_same_lattice_compactly(case: Case) -> None:
    cell = np.where(case.pbc[:, None], case.cell, 0.0)
    (reduced,), (transform,), (reciprocal,), (volume,) = reduce_cells(cell[None], case.pbc[None])
    periodic = np.flatnonzero(case.pbc)
    np.testing.assert_allclose((transform @ cell)[periodic], reduced[periodic], atol=1e-9)
    assert abs(round(np.linalg.det(transform))) == 1
    np.testing.assert_allclose(reciprocal @ reduced.T, np.eye(3), atol=1e-9)
    assert volume > 0.49 * np.linalg.norm(reduced, axis=1).prod()
    assert np.linalg.norm(reduced, axis=1)[periodic].sum() <= np.linalg.norm(cell, axis=1)[periodic].sum() + 1e-9


def test_flat_cells_have_no_volume() -> None:
    flat = np.array([[4.0, 0, 0], [0, 4, 0], [3, 5, 0]])
    assert reduce_cells(flat[None], np.ones((1, 3), bool))[3] == 0.0
    assert reduce_cells(np.zeros((1, 3, 3)), np.array([[True, False, False]]))[3] == 0.0
    assert reduce_cells(flat[None], np.array([[True, True, False]]))[3] > 0.0
