"""Graphs that are built on the device of a batch are those that the loader builds, dropped edges too."""

from __future__ import annotations

import itertools

import pytest
import torch

from jmp_data.graphs import GRAPH_NAMES, GraphSettings
from jmp_data.mixture import Mixture
from jmp_data.stream import StreamLoader
from tests.jmp_data.stream.memory_dataset import make_dataset

SMALL = GraphSettings(5.0, main=12, a2ee2a=8, qint=4, a2a=60)


def mixture() -> Mixture:
    pair = {
        "cells": make_dataset("cells", (9, 6), periodic=True),
        "balls": make_dataset("balls", (8, 5), periodic=False),
    }
    return Mixture.from_datasets(pair)


def assert_same_graphs(batch, expected, names=GRAPH_NAMES) -> None:
    assert {key for key in batch.to_dict() if key.endswith("_edge_index")} == {f"{name}_edge_index" for name in names}
    for name in names:
        for part in ("edge_index", "cell_offsets"):
            assert torch.equal(batch[f"{name}_{part}"], expected[f"{name}_{part}"]), name


@pytest.mark.parametrize("edge_dropout", [0.0, 0.3])
@pytest.mark.parametrize("graphs", [SMALL, {"cells": SMALL, "balls": GraphSettings(3.0)}], ids=["one", "each"])
@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (1, 2)])
def test_same_edges_as_in_the_loader(edge_dropout: float, graphs: object, rank: int, world_size: int) -> None:
    options = {"seed": 3, "rank": rank, "world_size": world_size, "graphs": graphs, "edge_dropout": edge_dropout}
    expected, stream = StreamLoader(mixture(), 4, **options), StreamLoader(mixture(), 4, **options, graphs_on="device")
    for batch, other in zip(stream, expected, strict=True):
        assert "main_edge_index" not in batch
        assert_same_graphs(stream.attach_graphs(batch), other)
        assert expected.attach_graphs(other) is other


def test_edges_stay_after_resuming_and_for_single_structures() -> None:
    options = {"graphs": SMALL, "edge_dropout": 0.3, "graph_names": ("qint", "main")}
    stream = StreamLoader(mixture(), 4, **options, graphs_on="device")
    list(itertools.islice(stream, 2))
    workers = StreamLoader(mixture(), 4, **options)
    workers.load_state_dict(stream.state_dict())
    stream.load_state_dict(stream.state_dict())
    batch, other = next(iter(stream)), next(iter(workers))
    alone = [stream.attach_graphs(batch.from_data_list([batch[number]])) for number in range(len(batch))]
    assert_same_graphs(stream.attach_graphs(batch), other, ("main", "qint"))
    for number, one in enumerate(alone):
        assert torch.equal(one.main_edge_index, other[number].main_edge_index)
