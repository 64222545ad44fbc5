import numpy as np
import pytest

from jmp_data.graphs import MOLECULE, PERIODIC, batch_four_graphs
from jmp_data.graphs.memory import edges_in

NAMES = ("main", "a2a", "a2ee2a", "qint")


def four_graphs(settings, natoms):
    rng = np.random.default_rng(0)
    atoms = int(np.sum(natoms))
    cells, pbc = np.tile(np.eye(3) * 7.0, (len(natoms), 1, 1)), np.ones((len(natoms), 3), bool)
    return batch_four_graphs(rng.random((atoms, 3)) * 7, cells, pbc, natoms, rng.integers(0, 3, atoms), settings)


@pytest.mark.parametrize("natoms", [[5, 1, 9], [1], []])
@pytest.mark.parametrize("settings", [MOLECULE, PERIODIC])
def test_edges_are_the_same_in_memory_of_the_callers_choice_and_lie_in_it(settings, natoms):
    pieces = []

    def allocate(words):
        pieces.append(np.full(words, -7))
        return pieces[-1]

    expected = four_graphs(settings, natoms)
    with edges_in(allocate):
        found = four_graphs(settings, natoms)
    again = four_graphs(settings, natoms)
    assert len(pieces) == 1
    for name in NAMES:
        for part in ("edge_index", "cell_offsets"):
            left, right = (getattr(getattr(graphs, name), part) for graphs in (expected, found))
            assert left.dtype == right.dtype
            assert np.array_equal(left, right)
            assert not right.size or np.shares_memory(right, pieces[0])
            assert not np.shares_memory(getattr(getattr(again, name), part), pieces[0])
