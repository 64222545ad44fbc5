"""Errors of a model on a split, in the units that papers report."""

from __future__ import annotations

import torch
from lightning_fabric import Fabric
from torch import nn

from jmp_data import ShardDataset
from jmp_model.finetune.data import stream, with_graphs
from jmp_model.finetune.objective import Objective, Sums
from jmp_model.finetune.step import add_over_ranks
from jmp_model.train.sharding import reshard


@torch.no_grad()
def evaluate_split(
    module: nn.Module,
    forward: nn.Module,
    dataset: ShardDataset,
    objective: Objective,
    *,
    fabric: Fabric,
    batch_size: int,
    first: int | None = None,
) -> dict[str, float]:
    """Target → MAE in report units (or balanced accuracy); and `loss`. Collective.

    Args:
        module: the bare model, holding the weights to evaluate.
        forward: the same, as set up by Fabric.
        dataset: split.
        objective: task and scales.
        fabric: device and ranks.
        batch_size: structures per pass and rank.
        first: only the first so many structures.
    """
    was_training = forward.training
    forward.eval()
    task = objective.task
    # A split with fewer structures than ranks is evaluated by all of them, and counted once.
    shared = min(len(dataset), first or len(dataset)) >= fabric.world_size
    batches = stream(
        dataset,
        task,
        batch_size=batch_size,
        first=first,
        shuffle=False,
        rank=fabric.global_rank if shared else 0,
        world_size=fabric.world_size if shared else 1,
    )
    sums = Sums({})
    for batch in with_graphs(batches, task.graph):
        targets = objective.targets(batch).to(fabric.device)
        sums.add(objective.loss(forward(fabric.to_device(batch)), targets, {})[1])
    forward.train(was_training)
    reshard(module)
    if shared:
        sums = add_over_ranks(fabric, sums)
    return {"loss": objective.total(sums), **objective.metrics(sums)}
