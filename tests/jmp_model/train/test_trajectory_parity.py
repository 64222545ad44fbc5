"""The stored optimiser trajectory, followed by the trainer's own step."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from jmp_model.train.trajectory_parity import relative_error, replay_trajectory
from tests.shared import SHARED, needs_shared

RUNS = {"trajectory/structurewise", "trajectory/atomwise", "trajectory/missing_tasks", "trajectory/mixed_clipping"}


@needs_shared
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-5)])
def test_trajectory_is_followed(dtype: torch.dtype, tolerance: float) -> None:
    assert SHARED is not None
    errors = replay_trajectory(SHARED / "parity", dtype)
    assert errors.keys() == RUNS
    worst = {f"{run}/{name}": error for run, arrays in errors.items() for name, error in arrays.items()}
    assert max(worst.values()) < tolerance, max(worst, key=worst.__getitem__)


@needs_shared
def test_every_array_of_the_files_is_compared() -> None:
    assert SHARED is not None
    errors = replay_trajectory(SHARED / "parity")
    not_results = {"batch_index", "param_names", "shared_names", "clip_value"}
    for run, arrays in errors.items():
        with np.load(SHARED / "parity" / f"{run}.npz") as stored:
            assert set(stored.files) - not_results - set(arrays) == set()
    assert {"params_step8", "ema_step8"} <= errors["trajectory/structurewise"].keys()


def test_without_a_trajectory_nothing_is_reported(tmp_path) -> None:
    assert replay_trajectory(tmp_path) == {}


def test_nan_must_stand_against_nan() -> None:
    assert relative_error(np.array([1.0, np.nan]), np.array([1.0, np.nan])) == 0.0
    assert math.isinf(relative_error(np.array([1.0, 2.0]), np.array([1.0, np.nan])))
    assert relative_error(np.array([1.5, 4.0]), np.array([1.0, 4.0])) == 0.125
