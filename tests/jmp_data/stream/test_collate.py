import copy
import io
import pickle

import numpy as np
import pytest
import torch
from torch_geometric.data import Batch, Data

from jmp_data.mixture import Mixture
from jmp_data.schema import Field, Schema
from jmp_data.schema.fields import ENERGY, FORCES
from jmp_data.stream import StreamLoader
from jmp_data.stream.collate import AtomsData
from tests.jmp_data.stream.memory_dataset import make_dataset

SCHEMA = Schema((ENERGY, FORCES, Field("dipole", "structure", "float32", (3,)), Field("site", "atom", "int32")))
FIELDS = {
    "pos": torch.float32,
    "atomic_numbers": torch.int64,
    "cell": torch.float32,
    "pbc": torch.bool,
    "natoms": torch.int64,
    "tags": torch.int64,
    "fixed": torch.bool,
    "energy": torch.float64,
    "forces": torch.float32,
    "dipole": torch.float32,
    "site": torch.int32,
    "batch": torch.int64,
    "ptr": torch.int64,
    "dataset_index": torch.int64,
    "structure_index": torch.int64,
}


@pytest.fixture(scope="module")
def datasets():
    return {"a": make_dataset("a", (9, 4), schema=SCHEMA), "b": make_dataset("b", (20, 6), seed=1, schema=SCHEMA)}


@pytest.fixture
def batches(datasets):
    return list(StreamLoader(Mixture.from_datasets(datasets), batch_size=7))


def single(datasets, dataset_index, structure_index):
    """One structure as a `Data`, read from its block by hand."""
    dataset = list(datasets.values())[dataset_index]
    block = int(np.searchsorted(dataset.block_ptr, structure_index, "right")) - 1
    row = structure_index - int(dataset.block_ptr[block])
    content = dataset.read_block(block)
    atoms = slice(int(content.ptr[row]), int(content.ptr[row + 1]))
    data = AtomsData()
    for field in SCHEMA:
        part = content.columns[field.name][atoms if field.level == "atom" else slice(row, row + 1)]
        key = "pos" if field.name == "positions" else field.name
        data[key] = torch.from_numpy(part.astype(np.int64 if field.name in ("atomic_numbers", "tags") else part.dtype))
    data.natoms = torch.tensor([len(data.pos)])
    data.dataset_index, data.structure_index = torch.tensor([dataset_index]), torch.tensor([structure_index])
    return data


def assert_same(batch, other):
    assert set(batch.keys()) == set(other.keys())
    for key in other.to_dict():
        assert batch[key].dtype == other[key].dtype, key
        assert torch.equal(batch[key], other[key]), key


def test_batches_are_those_of_torch_geometric(datasets, batches):
    for batch in batches:
        examples = [
            single(datasets, d, s)
            for d, s in zip(batch.dataset_index.tolist(), batch.structure_index.tolist(), strict=True)
        ]
        expected = Batch.from_data_list(examples)
        assert_same(batch, expected)
        assert type(batch) is type(expected)
        assert batch._slice_dict.keys() == expected._slice_dict.keys()
        for key in expected._slice_dict:
            assert torch.equal(batch._slice_dict[key], expected._slice_dict[key]), key
            assert torch.equal(batch._inc_dict[key], expected._inc_dict[key]), key


def test_types_and_shapes_are_the_documented_ones(batches):
    batch = batches[0]
    assert {key: batch[key].dtype for key in batch.to_dict()} == FIELDS
    B, N = 7, int(batch.natoms.sum())
    assert batch.cell.shape == (B, 3, 3)
    assert batch.pbc.shape == (B, 3)
    assert batch.energy.shape == batch.dataset_index.shape == (B,)
    assert batch.pos.shape == batch.forces.shape == (N, 3)
    assert batch.num_nodes == N


def test_batches_come_apart_and_together_again(batches):
    batch = batches[0]
    assert len(batch) == batch.num_graphs == 7
    examples = batch.to_data_list()
    assert torch.equal(examples[3].pos, batch.pos[batch.batch == 3])
    assert examples[3].structure_index.item() == batch.structure_index[3].item()
    assert_same(Batch.from_data_list(examples), batch)
    assert torch.equal(batch[3].forces, batch.get_example(3).forces)
    assert len(batch.index_select([0, 2])) == 2


def test_batches_survive_copying_pickling_and_moving(batches):
    batch = batches[0]
    for twin in (
        copy.copy(batch),
        copy.deepcopy(batch),
        batch.clone(),
        pickle.loads(pickle.dumps(batch)),
        batch.to("cpu"),
        batch.contiguous(),
    ):
        assert_same(twin, batch)
        assert torch.equal(twin.get_example(2).pos, batch.get_example(2).pos)
    buffer = io.BytesIO()
    torch.save(batch.clone().to_dict(), buffer)
    assert buffer.tell() < 100_000


def test_meta_device_move_keeps_the_way_apart(batches):
    moved = batches[0].clone().to("meta")
    assert moved.pos.device.type == "meta"
    assert moved.get_example(1).pos.shape == batches[0].get_example(1).pos.shape


def test_batches_do_not_touch_each_other(datasets):
    fresh = list(StreamLoader(Mixture.from_datasets(datasets), batch_size=7))
    touched = StreamLoader(Mixture.from_datasets(datasets), batch_size=7)
    for batch, expected in zip(touched, fresh, strict=True):
        assert_same(batch, expected)
        for key in ("pos", "forces", "energy", "cell"):
            batch[key].fill_(7.0)


def test_new_fields_can_be_added(batches):
    batch = batches[0]
    batch.noise = torch.zeros_like(batch.pos)
    assert "noise" in batch.to_dict()
    assert isinstance(batch, Data)


def test_missing_targets_are_nan_or_zero(datasets):
    mixed = {"full": datasets["a"], "plain": make_dataset("plain", (12,), schema=Schema((ENERGY,)))}
    for batch in StreamLoader(Mixture.from_datasets(mixed), batch_size=5):
        plain = batch.dataset_index == 1
        atoms = plain[batch.batch]
        assert batch.dipole[plain].isnan().all()
        assert not batch.dipole[~plain].isnan().any()
        assert batch.forces[atoms].isnan().all()
        assert not batch.forces[~atoms].isnan().any()
        assert (batch.site[atoms] == 0).all()
        assert not batch.energy.isnan().any()


def test_only_asked_targets_are_read(datasets):
    batch = next(iter(StreamLoader(datasets["a"], targets=["dipole"])))
    assert "dipole" in batch.to_dict()
    assert "energy" not in batch.to_dict()
