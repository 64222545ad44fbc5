"""What an epoch on some number of ranks will look like, from the indexes alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from jmp_data.mixture import Member, Mixture
from jmp_data.stream.balance import CostModel, imbalance
from jmp_data.stream.budget import BudgetCuts
from jmp_data.stream.epoch_order import WINDOW_BLOCKS, EpochOrder
from jmp_data.stream.limits import BatchLimits

SAMPLED_STEPS = 200
EXACT_UP_TO = 4_000_000
"""Structures of an epoch up to which budgeted steps are counted one by one; beyond, they are estimated."""


def simulate(
    mixture: Mixture,
    limits: BatchLimits,
    *,
    seed: int = 0,
    epoch: int = 0,
    shuffle: bool = True,
    cost: CostModel | None = None,
    window_blocks: int = WINDOW_BLOCKS,
) -> dict[str, Any]:
    """Plan an epoch without reading a structure.

    Balance and batch sizes are measured on up to `SAMPLED_STEPS` steps spread over the epoch.

    Args:
        mixture: what the epoch is of.
        limits: batch size or budgets, and the number of ranks.
        seed: as for `StreamLoader`.
        epoch: as for `StreamLoader`.
        shuffle: as for `StreamLoader`.
        cost: as for `StreamLoader`.
        window_blocks: as for `StreamLoader`.

    Returns:
        A JSON-able summary: steps (and whether they are exact), structures and atoms of the epoch, structures and atoms
        per rank and step (smallest, mean, largest), imbalance (heaviest rank over the mean: mean and largest), the
        share of structures that exceed a rank's budget alone and so get a rank to themselves, and the mixture's table
        with the share of each data set in the sampled steps.

    Raises:
        ManifestError: the epoch has fewer structures than there are ranks.
    """
    order = EpochOrder(mixture, seed=seed, epoch=epoch, window_blocks=window_blocks, shuffle=shuffle)
    steps = limits.cut(order, cost=cost)
    exact = limits.is_fixed or order.size <= EXACT_UP_TO
    starts = _sampled_starts(order.size, limits, exact and steps.num_steps <= SAMPLED_STEPS)
    structures, atoms, heaviest, of_dataset, oversized = [], [], [], np.zeros(len(mixture)), 0
    for number, start in starts:
        stops = steps.stops(number, start, 1)
        while len(stops) < SAMPLED_STEPS // len(starts) and stops[-1] < order.size:
            more = steps.stops(number + len(stops), int(stops[-1]), int(stops[0]) - start)
            stops = np.concatenate([stops, more])
        samples, bounds = order.samples(start, int(stops[-1])), np.concatenate([[start], stops]) - start
        ranks = steps.assign(samples, bounds)
        place = np.repeat(np.arange(len(stops)), np.diff(bounds)) * limits.world_size + ranks
        structures.append(np.bincount(place, minlength=len(stops) * limits.world_size))
        atoms.append(np.bincount(place, samples.natoms, minlength=len(stops) * limits.world_size))
        work = np.asarray(samples.natoms if cost is None else cost(samples.natoms), np.float64)
        heaviest.append(imbalance(work, ranks, bounds, limits.world_size))
        of_dataset += np.bincount(samples.dataset, minlength=len(mixture))
        if isinstance(steps, BudgetCuts):
            oversized += int(np.any(steps.weigh(samples) > steps.limits, axis=1).sum())
    per_step = float(np.concatenate(structures).mean()) * limits.world_size
    shares = of_dataset / of_dataset.sum()
    return {
        "world_size": limits.world_size,
        **limits.of_all_ranks,
        "steps": steps.num_steps if exact else round(order.size / per_step),
        "steps_are_exact": exact,
        "structures": order.size,
        "atoms": sum(_atoms_of(member, shuffle) for member in mixture),
        "structures_per_rank": _spread(np.concatenate(structures)),
        "atoms_per_rank": _spread(np.concatenate(atoms)),
        "imbalance": {key: _spread(np.concatenate(heaviest))[key] for key in ("mean", "largest")},
        "oversized_share": float(oversized / of_dataset.sum()),
        "datasets": [{**row, "sampled_share": float(s)} for row, s in zip(mixture.table(), shares, strict=True)],
    }


def _sampled_starts(size: int, limits: BatchLimits, all_steps: bool) -> list[tuple[int, int]]:
    """Step number and position of each run of sampled steps; budgeted steps may start anywhere."""
    if all_steps:
        return [(0, 0)]
    positions = np.linspace(0, size * 0.95, 8, dtype=np.int64).tolist()
    if not limits.is_fixed:
        return [(0, position) for position in positions]
    global_batch = limits.of_all_ranks["global_batch_size"]
    return [(position // global_batch, position // global_batch * global_batch) for position in positions]


def _spread(values: np.ndarray[Any, Any]) -> dict[str, float]:
    return {"smallest": float(values.min()), "mean": float(values.mean()), "largest": float(values.max())}


def _atoms_of(member: Member, shuffle: bool) -> int:
    """Atoms that a data set contributes to an epoch."""
    copies, odd = divmod(member.samples if shuffle else member.size, member.size)
    natoms = member.dataset.natoms
    if member.selection.is_everything:
        return int(natoms.sum(dtype=np.int64)) * copies + int(natoms[:odd].sum(dtype=np.int64))
    total = extra = 0
    for block in range(member.dataset.num_blocks):
        own = natoms[member.dataset.block_ptr[block] + member.selection.rows(block)]
        before = member.selection.kept_ptr[block]
        total += int(own.sum(dtype=np.int64))
        extra += int(own[: max(odd - int(before), 0)].sum(dtype=np.int64))
    return total * copies + extra
