from __future__ import annotations

import numpy as np
import pytest
import torch
from torch_geometric.data import Batch, Data

from jmp_data.errors import InvalidStructureError
from jmp_data.graphs import GRAPH_NAMES, MOLECULE, PERIODIC, GraphSettings, attach_graphs, batch_four_graphs


def make_batch() -> Batch:
    rng = np.random.default_rng(0)
    parts = []
    for natoms, periodic in ((4, False), (6, True)):
        parts.append(
            Data(
                pos=torch.from_numpy((rng.random((natoms, 3)) * 5).astype(np.float32)),
                cell=torch.eye(3)[None] * 5,
                pbc=torch.full((1, 3), periodic),
                natoms=torch.tensor([natoms]),
                tags=torch.full((natoms,), 2, dtype=torch.uint8),
                num_nodes=natoms,
            )
        )
    batch = Batch.from_data_list(parts)
    batch.dataset_index = torch.tensor([0, 1])  # PyG would shift a name with "index" in it while collating
    return batch


def expected(batch: Batch, settings: list[GraphSettings]) -> dict[str, np.ndarray]:
    graphs = batch_four_graphs(
        batch.pos.numpy(), batch.cell.numpy(), batch.pbc.numpy(), batch.natoms.numpy(), batch.tags.numpy(), settings
    )
    return {name: getattr(graphs, name).edge_index for name in GRAPH_NAMES}


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (None, [MOLECULE, PERIODIC]),
        ([GraphSettings(3.0), GraphSettings(4.0)], [GraphSettings(3.0), GraphSettings(4.0)]),
        (GraphSettings(3.5), [GraphSettings(3.5)] * 2),
    ],
)
def test_every_graph_is_on_the_batch(given: object, meant: list[GraphSettings]) -> None:
    batch = attach_graphs(make_batch(), given)
    for name, edge_index in expected(batch, meant).items():
        np.testing.assert_array_equal(batch[f"{name}_edge_index"].numpy(), edge_index)
        assert batch[f"{name}_edge_index"].dtype == torch.int64
        assert batch[f"{name}_cell_offsets"].shape == (edge_index.shape[1], 3)


def test_dropout_comes_from_the_generator() -> None:
    first, second = (attach_graphs(make_batch(), edge_dropout=0.5, rng=np.random.default_rng(7)) for _ in range(2))
    assert torch.equal(first.a2a_edge_index, second.a2a_edge_index)
    assert first.a2a_edge_index.shape[1] < attach_graphs(make_batch()).a2a_edge_index.shape[1]


def test_data_set_without_settings_is_refused() -> None:
    with pytest.raises(InvalidStructureError, match="data set 1"):
        attach_graphs(make_batch(), [MOLECULE])


@pytest.mark.gpu
def test_batch_on_the_gpu_gets_the_same_graphs_there() -> None:
    here = attach_graphs(make_batch(), edge_dropout=0.2, rng=np.random.default_rng(1))
    there = attach_graphs(make_batch().to("cuda"), edge_dropout=0.2, rng=np.random.default_rng(1))
    for name in GRAPH_NAMES:
        assert there[f"{name}_edge_index"].is_cuda
        assert torch.equal(here[f"{name}_edge_index"], there[f"{name}_edge_index"].cpu())
        assert torch.equal(here[f"{name}_cell_offsets"], there[f"{name}_cell_offsets"].cpu())
