from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jmp_model.train.losses import Denominators, LossWeights, select_task, structure_losses, total_loss
from jmp_model.train.metrics import TaskSums, task_sums
from jmp_model.train.targets import NormalizedTargets

NATOMS, TASK = np.array([2, 3, 1]), np.array([1, 0, 1])
LAMBDA = np.array([7.0, 5.0])


def make_case(seed: int) -> tuple[torch.Tensor, torch.Tensor, NormalizedTargets]:
    rng = np.random.default_rng(seed)
    total = int(NATOMS.sum())
    targets = NormalizedTargets(
        energy=torch.tensor(rng.normal(size=3)),
        forces=torch.tensor(rng.normal(size=(total, 3))),
        task=torch.tensor(TASK),
        batch=torch.tensor(np.repeat(np.arange(3), NATOMS)),
        natoms=torch.tensor(NATOMS),
        free=torch.tensor([True, False, True, True, True, True]),
        energy_std=torch.tensor([2.0, 3.0, 2.0], dtype=torch.float64),
        force_std=torch.tensor([0.5, 4.0, 0.5], dtype=torch.float64),
    )
    return torch.tensor(rng.normal(size=(3, 2))), torch.tensor(rng.normal(size=(total, 3, 2))), targets


def weights(force_loss: str) -> LossWeights:
    return LossWeights(torch.ones(2, dtype=torch.float64), torch.tensor(LAMBDA), force_loss)  # type: ignore[arg-type]


def by_hand(energy, forces, targets: NormalizedTargets, force_loss: str) -> float:
    """Straight from the definition, structure by structure."""
    energy_terms, force_terms, atom_terms = [], [], []
    start = 0
    for b, n in enumerate(NATOMS):
        task = TASK[b]
        energy_terms.append(abs(float(energy[b, task] - targets.energy[b])))
        difference = (forces[start : start + n, :, task] - targets.forces[start : start + n] + 1e-6).numpy()
        lengths = LAMBDA[task] * np.sqrt((difference**2).sum(1))
        force_terms.append(lengths.mean())
        atom_terms.extend(lengths)
        start += n
    return float(np.mean(energy_terms) + np.mean(force_terms if force_loss == "structurewise" else atom_terms))


@pytest.mark.parametrize("force_loss", ["structurewise", "atomwise"])
def test_loss_follows_its_definition(force_loss: str) -> None:
    energy, forces, targets = make_case(0)
    losses = structure_losses(*select_task(energy, forces, targets), targets, weights(force_loss))
    loss = total_loss(losses, Denominators(3, 6), force_loss)  # type: ignore[arg-type]
    assert float(loss) == pytest.approx(by_hand(energy, forces, targets, force_loss), rel=1e-12)


def test_distance_is_torch_pairwise_distance_of_prediction_and_target() -> None:
    energy, forces, targets = make_case(1)
    picked = select_task(energy, forces, targets)
    losses = structure_losses(*picked, targets, weights("atomwise"))
    lengths = torch.nn.functional.pairwise_distance(picked[1], targets.forces)
    expected = (torch.tensor(LAMBDA)[targets.task][targets.batch] * lengths).sum()
    assert float(losses.force.sum()) == pytest.approx(float(expected), rel=1e-14)


def test_heads_that_no_structure_picks_get_exact_zeros() -> None:
    energy, forces, targets = make_case(2)
    energy.requires_grad_()
    forces.requires_grad_()
    alone = NormalizedTargets(**{**vars(targets), "task": torch.zeros(3, dtype=torch.int64)})
    losses = structure_losses(*select_task(energy, forces, alone), alone, weights("structurewise"))
    total_loss(losses, Denominators(3, 6), "structurewise").backward()
    assert energy.grad is not None
    assert forces.grad is not None
    assert torch.equal(energy.grad[:, 1], torch.zeros(3, dtype=torch.float64))
    assert torch.equal(forces.grad[:, :, 1], torch.zeros(6, 3, dtype=torch.float64))
    assert (energy.grad[:, 0] != 0).all()


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), force_loss=st.sampled_from(["structurewise", "atomwise"]))
def test_task_contributions_add_up_to_the_loss(seed: int, force_loss: str) -> None:
    energy, forces, targets = make_case(seed)
    picked = select_task(energy, forces, targets)
    losses = structure_losses(*picked, targets, weights(force_loss))
    sums = task_sums(*picked, targets, losses, num_tasks=2, force_loss=force_loss)  # type: ignore[arg-type]
    total = float(sums.energy_loss_per_task().sum() + sums.force_loss_per_task().sum())
    expected = total_loss(losses, Denominators(3, 6), force_loss)  # type: ignore[arg-type]
    assert total == pytest.approx(float(expected), rel=1e-12)


def test_errors_are_in_physical_units_and_skip_fixed_atoms() -> None:
    energy, forces, targets = make_case(3)
    picked = select_task(energy, forces, targets)
    losses = structure_losses(*picked, targets, weights("structurewise"))
    sums = task_sums(*picked, targets, losses, num_tasks=3, force_loss="structurewise")
    difference = (picked[1] - targets.forces).abs().numpy()
    first = 0.5 * np.concatenate([difference[:1].ravel(), difference[5:].ravel()])
    assert sums.force_mae().tolist()[1] == pytest.approx(first.mean())
    assert sums.force_mae().tolist()[0] == pytest.approx(4.0 * difference[2:5].mean())
    assert sums.energy_mae().tolist()[0] == pytest.approx(3.0 * abs(float(picked[0][1] - targets.energy[1])))
    assert np.isnan(sums.energy_mae().tolist()[2])
    assert sums.by_task(["a", "b", "absent"]).keys() == {"a", "b"}


def test_sums_of_parts_are_the_sums_of_the_whole() -> None:
    a = TaskSums(torch.rand(2, 8, dtype=torch.float64), "structurewise")
    b = TaskSums(torch.rand(2, 8, dtype=torch.float64), "structurewise")
    assert torch.equal((a + b).values, a.values + b.values)
