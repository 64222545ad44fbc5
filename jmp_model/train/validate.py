"""Errors on the validation splits, with the averaged weights, in eV and eV/Å."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lightning_fabric import Fabric
from torch import nn

from jmp_data import StreamLoader
from jmp_model.train.losses import LossWeights, select_task, structure_losses
from jmp_model.train.metrics import TaskSums, task_sums
from jmp_model.train.sharding import reshard
from jmp_model.train.targets import TargetNormalizer


@torch.no_grad()
def validate(
    module: nn.Module,
    forward: nn.Module,
    streams: Sequence[tuple[int, StreamLoader]],
    *,
    fabric: Fabric,
    normalizer: TargetNormalizer,
    weights: LossWeights,
) -> TaskSums:
    """Evaluate all validation splits; collective.

    Args:
        module: the bare model, holding the weights to evaluate.
        forward: the same, as set up by Fabric.
        streams: task and loader of each split; the loaders of the ranks share each split.
        fabric: device and ranks.
        normalizer: of all tasks.
        weights: of the loss.
    """
    was_training = forward.training
    forward.eval()
    num_tasks = len(normalizer.tasks)
    total = TaskSums.zeros(num_tasks, weights.force_loss, fabric.device)
    for task, stream in streams:
        for batch in stream:
            of_task = torch.full_like(batch.natoms, task)
            targets = normalizer.normalize(batch, task=of_task).to(fabric.device)
            out = forward(stream.attach_graphs(fabric.to_device(batch)), task_index=targets.task)
            energy, forces = select_task(out.energy, out.forces, targets)
            losses = structure_losses(energy, forces, targets, weights)
            total += task_sums(energy, forces, targets, losses, num_tasks=num_tasks, force_loss=weights.force_loss)
    forward.train(was_training)
    reshard(module)
    if fabric.world_size == 1:
        return total
    return TaskSums(fabric.all_reduce(total.values, reduce_op="sum"), total.force_loss)
