from __future__ import annotations

import numpy as np
import pytest
import torch
from torch_geometric.data import Batch

from jmp_data.errors import ManifestError
from jmp_model.train.targets import TargetNormalizer, TaskNormalizer


def make_batch() -> Batch:
    return Batch(
        atomic_numbers=torch.tensor([1, 8, 1, 29]),
        batch=torch.tensor([0, 0, 0, 1]),
        natoms=torch.tensor([3, 1]),
        energy=torch.tensor([-2081.0, -45012.123456789], dtype=torch.float64),
        forces=torch.tensor(np.arange(12.0).reshape(4, 3), dtype=torch.float32),
        fixed=torch.tensor([False, True, False, False]),
        dataset_index=torch.tensor([1, 0]),
    )


def normalizer() -> TargetNormalizer:
    return TargetNormalizer(
        [
            TaskNormalizer("metal", {29: -45012.0}, 0.001, 0.5),
            TaskNormalizer("water", {1: -13.5, 8: -2050.0}, 2.0, 4.0, energy_mean=1.0),
        ]
    )


def test_reference_is_subtracted_in_double_precision() -> None:
    targets = normalizer().normalize(make_batch(), dtype=torch.float32)
    # float32 keeps only 4e-3 eV of an energy of 45000 eV; here the digits below survive.
    assert targets.energy.tolist() == pytest.approx([(-2081.0 + 27.0 + 2050.0 - 1.0) / 2.0, -123.456789], rel=1e-6)
    assert targets.energy.dtype == torch.float32


def test_each_structure_has_the_scale_of_its_own_task() -> None:
    targets = normalizer().normalize(make_batch(), dtype=torch.float64)
    assert targets.forces[0].tolist() == pytest.approx([0.0, 0.25, 0.5])
    assert targets.forces[3].tolist() == pytest.approx([18.0, 20.0, 22.0])
    assert targets.free.tolist() == [True, False, True, True]
    assert targets.energy_std.tolist() == [2.0, 0.001]


def test_task_can_be_given_for_a_single_data_set() -> None:
    targets = normalizer().normalize(make_batch(), task=torch.tensor([1, 1]))
    assert targets.task.tolist() == [1, 1]
    assert targets.force_std.tolist() == [4.0, 4.0]


def test_constants_survive_a_round_trip() -> None:
    for task in normalizer().tasks:
        assert TaskNormalizer.from_json(task.to_json()) == task


@pytest.mark.parametrize("std", [0.0, -1.0, float("nan"), float("inf")])
def test_a_useless_scale_is_refused(std: float) -> None:
    with pytest.raises(ManifestError, match="ani1x"):
        TaskNormalizer("ani1x", {}, std, 1.0)
