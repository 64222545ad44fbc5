from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from jmp_data.errors import InvalidStructureError
from jmp_data.graphs import MOLECULE, Edges, FourGraphs, batch_four_graphs, batch_radius_graph, torch_batched
from jmp_data.graphs.dropout import draw_seeds
from tests.jmp_data.graphs.batches import PARITY, Batch, assert_same_graphs, batches, parity_batch
from tests.shared import needs_shared


def tensors(batch: Batch) -> tuple[torch.Tensor, ...]:
    return tuple(torch.as_tensor(array) for array in (*batch.geometry, batch.tags))


def as_arrays(graphs: dict[str, torch_batched.TensorEdges]) -> FourGraphs:
    return FourGraphs(**{n: Edges(e.edge_index.numpy(), e.cell_offsets.numpy()) for n, e in graphs.items()})


def check_same(batch: Batch, dropout: float) -> None:
    expected = batch_four_graphs(
        *batch.geometry, batch.tags, batch.settings, edge_dropout=dropout, rng=np.random.default_rng(3)
    )
    seeds = torch.from_numpy(draw_seeds(len(batch.natoms), dropout, np.random.default_rng(3)))
    found = torch_batched.batch_four_graphs(*tensors(batch), batch.settings, edge_dropout=dropout, seeds=seeds)
    assert_same_graphs(as_arrays(found), expected)


@needs_shared
@pytest.mark.parametrize("name", PARITY)
def test_equals_the_kernel_on_parity_systems(name: str) -> None:
    check_same(parity_batch(name)[0], 0.1)


@settings(max_examples=40)
@given(batches())
def test_equals_the_kernel(batch: Batch) -> None:
    check_same(batch, 0.0)
    check_same(batch, 0.4)


@pytest.mark.slow
@settings(max_examples=2000)
@given(batches())
def test_equals_the_kernel_often(batch: Batch) -> None:
    check_same(batch, 0.0)
    check_same(batch, 0.4)


@settings(max_examples=40)
@given(batches())
def test_radius_graph_equals_the_kernel(batch: Batch) -> None:
    for limit in (None, 4):
        expected = batch_radius_graph(*batch.geometry, cutoff=4.0, max_neighbors=limit)
        edges, lengths = torch_batched.batch_radius_graph(*tensors(batch)[:4], cutoff=4.0, max_neighbors=limit)
        np.testing.assert_array_equal(edges.edge_index.numpy(), expected.edge_index)
        np.testing.assert_array_equal(edges.cell_offsets.numpy(), expected.cell_offsets)
        np.testing.assert_allclose(lengths.numpy(), expected.distances, rtol=1e-15)


def test_small_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    arguments = (
        torch.from_numpy(rng.random((30, 3)) * 6), torch.eye(3).expand(3, 3, 3) * 6, torch.ones(3, 3, dtype=torch.bool),
        torch.tensor([12, 0, 18]),
    )  # fmt: skip
    whole, _ = torch_batched.batch_radius_graph(*arguments, cutoff=5.0)
    monkeypatch.setattr(torch_batched, "PAIRS_AT_ONCE", 1000)
    chunked, _ = torch_batched.batch_radius_graph(*arguments, cutoff=5.0)
    assert torch.equal(whole.edge_index, chunked.edge_index)
    assert torch.equal(whole.cell_offsets, chunked.cell_offsets)


def test_positions_that_need_a_gradient_are_taken() -> None:
    positions = torch.rand(5, 3, requires_grad=True)
    molecule = (torch.zeros(1, 3, 3), torch.zeros(1, 3, dtype=torch.bool), torch.tensor([5]))
    edges, lengths = torch_batched.batch_radius_graph(positions, *molecule, cutoff=3.0)
    assert edges.edge_index.shape == (2, 20)
    assert not lengths.requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cell": torch.zeros(1, 3, 3)}, "structure 0: periodic cell spans no volume"),
        ({"cell": torch.eye(3)[None] * 1e-4}, "check the units"),
        ({"positions": torch.full((2, 3), torch.nan)}, "NaN"),
        ({"settings": [MOLECULE, MOLECULE]}, "2 graph settings for 1"),
        ({"edge_dropout": 0.1}, "needs seeds"),
    ],
)
def test_bad_batches_are_refused(change: dict, message: str) -> None:
    arguments = {
        "positions": torch.rand(2, 3), "cell": torch.eye(3)[None] * 4, "pbc": torch.ones(1, 3, dtype=torch.bool),
        "natoms": torch.tensor([2]), "tags": torch.zeros(2, dtype=torch.int64), "settings": MOLECULE, **change,
    }  # fmt: skip
    with pytest.raises(InvalidStructureError, match=message):
        torch_batched.batch_four_graphs(**arguments)


@pytest.mark.gpu
@settings(max_examples=100)
@given(batches())
def test_equals_the_kernel_on_the_gpu(batch: Batch) -> None:
    seeds = draw_seeds(len(batch.natoms), 0.3, np.random.default_rng(3))
    expected = batch_four_graphs(
        *batch.geometry, batch.tags, batch.settings, edge_dropout=0.3, rng=np.random.default_rng(3)
    )
    on_gpu = torch_batched.batch_four_graphs(
        *(tensor.cuda() for tensor in tensors(batch)),
        batch.settings,
        edge_dropout=0.3,
        seeds=torch.from_numpy(seeds).cuda(),
    )
    back = {n: torch_batched.TensorEdges(e.edge_index.cpu(), e.cell_offsets.cpu()) for n, e in on_gpu.items()}
    assert_same_graphs(as_arrays(back), expected)
