import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jmp_data.mixture import Mixture
from jmp_data.stream import BatchLimits, StreamLoader, simulate, simulation
from tests.jmp_data.stream.memory_dataset import IndexDataset, make_dataset
from tests.jmp_data.stream.mixtures import mixtures
from tests.jmp_data.stream.test_epoch_order import real_sizes

LIMITS = st.sampled_from([{"batch_size": 3}, {"max_atoms": 50}, {"max_edges": 1500, "batch_size": 4}])


@given(mixtures(max_blocks=4), LIMITS, st.sampled_from([1, 2, 4]), st.booleans())
@settings(max_examples=40, deadline=None)
def test_says_what_the_loader_does(mixture, limits, world_size, shuffle):
    size = mixture.epoch_size if shuffle else mixture.num_structures
    if size < world_size:
        return
    report = simulate(mixture, BatchLimits(**limits, world_size=world_size), shuffle=shuffle)
    ranks = [
        list(StreamLoader(mixture, rank=rank, world_size=world_size, shuffle=shuffle, **limits))
        for rank in range(world_size)
    ]
    atoms = [int(batch.natoms.sum()) for rank in ranks for batch in rank]
    assert report["steps"] == len(ranks[0])
    assert report["steps_are_exact"]
    assert report["structures"] == size
    assert report["atoms"] == sum(atoms)
    if report["steps"] <= simulation.SAMPLED_STEPS:
        assert report["atoms_per_rank"]["smallest"] == min(atoms)
        assert report["atoms_per_rank"]["largest"] == max(atoms)
    json.dumps(report)


def test_everything_is_measured_where_the_epoch_is_short(monkeypatch):
    monkeypatch.setattr(simulation, "SAMPLED_STEPS", 8000)
    mixture = Mixture.from_datasets({"a": make_dataset("a", (40, 30)), "b": make_dataset("b", (20,), seed=1)})
    report = simulate(mixture, BatchLimits(batch_size=5, world_size=2))
    loads = [[int(batch.natoms.sum()) for batch in StreamLoader(mixture, 5, 0, rank, 2)] for rank in (0, 1)]
    heaviest = [max(pair) / (sum(pair) / 2) for pair in zip(*loads, strict=True)]
    assert report["imbalance"]["largest"] == pytest.approx(max(heaviest))
    assert [row["dataset"] for row in report["datasets"]] == ["a", "b"]
    assert report["datasets"][0]["sampled_share"] == pytest.approx(report["datasets"][0]["probability"], abs=0.1)


def test_an_epoch_of_174_million_on_64_ranks_takes_a_moment():
    mixture = Mixture.from_datasets(real_sizes(), temperature=2.0)
    report = simulate(mixture, BatchLimits(batch_size=8, world_size=64))
    assert report["steps"] == -(-174_049_185 // 512)
    assert report["imbalance"]["largest"] < 1.05
    budgeted = simulate(mixture, BatchLimits(max_atoms=1000, world_size=64))
    assert not budgeted["steps_are_exact"]
    assert budgeted["steps"] == pytest.approx(report["atoms"] / 64000, rel=0.1)
    assert budgeted["atoms_per_rank"]["largest"] <= 1000


def test_structures_beyond_the_budget_are_counted():
    natoms = np.array([5] * 96 + [50] * 4)
    mixture = Mixture.single(IndexDataset("a", [50, 50], natoms))
    assert simulate(mixture, BatchLimits(max_atoms=49, world_size=2))["oversized_share"] == 0.04
    assert simulate(mixture, BatchLimits(max_atoms=50, world_size=2))["oversized_share"] == 0.0
    assert simulate(mixture, BatchLimits(batch_size=2))["oversized_share"] == 0.0


def test_cost_model_changes_what_is_balanced():
    dataset = IndexDataset("a", [400] * 4, make_dataset("x", (400,) * 4, atoms=(1, 60)).natoms)
    limits = BatchLimits(batch_size=8, world_size=8)
    squared = simulate(Mixture.single(dataset), limits, cost=lambda natoms: natoms.astype(float) ** 2)
    plain = simulate(Mixture.single(dataset), limits)
    assert squared["imbalance"]["mean"] < 1.2
    assert squared["atoms_per_rank"]["largest"] > plain["atoms_per_rank"]["largest"]
