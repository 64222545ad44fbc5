import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jmp_data.errors import ShardError
from jmp_data.mixture import Mixture
from jmp_data.schema import Field, Schema
from jmp_data.schema.fields import ENERGY
from jmp_data.stream.columns import batch_columns
from jmp_data.stream.epoch_order import EpochOrder
from jmp_data.stream.gather import gather
from tests.jmp_data.stream.memory_dataset import make_dataset

ODD = Schema((ENERGY, Field("tensor", "atom", "float64", (2, 3)), Field("flag", "structure", "bool")))


@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.integers(0, 50), st.data())
@settings(max_examples=50, deadline=None)
def test_gathers_what_a_loop_gathers(sizes, seed, data):
    datasets = {"a": make_dataset("a", sizes, seed=seed, schema=ODD), "b": make_dataset("b", (7, 5), seed=seed)}
    mixture = Mixture.from_datasets(datasets)
    columns = batch_columns(mixture)
    order = EpochOrder(mixture, seed=seed, epoch=0, window_blocks=2)
    samples = order.samples(0, order.size)
    chosen = np.array(data.draw(st.lists(st.integers(0, order.size - 1), max_size=30)), np.int64)
    samples = samples.take(chosen)
    members = mixture.members
    gathered = gather(
        samples, columns, lambda window, visit: members[window.dataset].dataset.read_block(int(window.blocks[visit]))
    )
    ends = np.cumsum(samples.natoms)
    for place, (dataset, index) in enumerate(zip(samples.dataset, samples.index, strict=True)):
        source = members[dataset].dataset
        number = int(np.searchsorted(source.block_ptr, index, "right")) - 1
        block = source.read_block(number)
        row = int(index - source.block_ptr[number])
        for column in columns:
            atom = column.field.level == "atom"
            mine = slice(ends[place] - samples.natoms[place], ends[place]) if atom else slice(place, place + 1)
            theirs = slice(block.ptr[row], block.ptr[row + 1]) if atom else slice(row, row + 1)
            if column.field.name in source.schema:
                expected = block.columns[column.field.name][theirs]
                np.testing.assert_array_equal(gathered.columns[column.key][mine], expected)
            elif np.dtype(column.dtype).kind == "f":
                assert np.isnan(gathered.columns[column.key][mine]).all()
            else:
                assert not gathered.columns[column.key][mine].any()


def test_a_block_shorter_than_the_index_says_is_refused():
    dataset = make_dataset("a", (6,))
    mixture = Mixture.single(dataset)
    samples = EpochOrder(mixture, seed=0, epoch=0, window_blocks=1).samples(0, 6)
    short = dataset.read_block(0).take(slice(0, 4))
    with pytest.raises(ShardError, match="structure sizes differ"):
        gather(samples, batch_columns(mixture), lambda window, visit: short)
