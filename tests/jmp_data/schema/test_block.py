import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jmp_data.errors import InvalidStructureError
from jmp_data.schema import Block, Schema
from jmp_data.schema.block import ragged_take
from jmp_data.schema.validate import check_block
from tests.structures import assert_same_structure, random_structures, structure_lists


@given(structure_lists())
def test_structures_come_back(structures) -> None:
    block = Block.from_structures(structures, Schema())
    for row, structure in enumerate(structures):
        assert_same_structure(block.structure(row), structure)


@given(structure_lists(), st.data())
def test_take_equals_picking_structures(structures, data) -> None:
    block = Block.from_structures(structures, Schema())
    rows = data.draw(st.lists(st.integers(0, len(structures) - 1), max_size=30))
    taken = block.take(np.array(rows, int))
    assert len(taken) == len(rows)
    for row, index in enumerate(rows):
        assert_same_structure(taken.structure(row), structures[index])
    cut = data.draw(st.integers(0, len(structures)))
    parts = [block.take(slice(0, cut)), block.take(slice(cut, None))]
    whole = Block.concatenate([part for part in parts if len(part)])
    for name, column in block.columns.items():
        np.testing.assert_array_equal(whole.columns[name], column)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=10), st.data())
def test_ragged_take_against_a_loop(lengths, data) -> None:
    ptr = np.concatenate([[0], np.cumsum(lengths)])
    rows = np.array(data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=12)), int)
    expected = [index for row in rows for index in range(ptr[row], ptr[row + 1])]
    assert ragged_take(ptr, rows).tolist() == expected


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(InvalidStructureError, match="positions"):
        Block(np.array([2], np.int32), {"positions": np.zeros((3, 3), np.float32)}, np.array([b""]), Schema())


def test_each_rule_rejects_its_row() -> None:
    block = Block.from_structures(random_structures(3, 8, low=2), Schema())
    columns = {name: column.copy() for name, column in block.columns.items()}
    ptr = block.ptr
    columns["forces"][ptr[1]] = np.nan
    columns["energy"][2] = np.inf
    columns["positions"][ptr[3] + 1] = np.nan
    columns["atomic_numbers"][ptr[4]] = 0
    columns["pbc"][5] = True
    columns["cell"][5] = 0
    broken = Block(block.natoms, columns, block.source_ids, block.schema)
    found = {rejection.row: rejection.reason for rejection in check_block(broken, ("energy", "forces"))}
    assert found == {
        1: "nonfinite_forces",
        2: "nonfinite_energy",
        3: "nonfinite_positions",
        4: "atomic_number",
        5: "bad_cell",
    }
    assert check_block(broken, ())[0].row == 3
