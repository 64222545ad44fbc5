"""Moving rows between a flat list sorted by group and a zero-padded (group, slot) block, differentiable twice.

Autograd's own backward of a gather is a scatter-add with atomics. Here every index is injective, so the backward
of each move is the opposite move, which is a plain copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


def group_counts(groups: Tensor, num_groups: int) -> Tensor:
    """Number of rows in each group: (num_groups,) int64, without a device synchronisation."""
    return torch.zeros(num_groups, dtype=torch.long, device=groups.device).index_add_(
        0, groups, torch.ones_like(groups)
    )


@dataclass(frozen=True)
class GroupCounts:
    """Number of rows in each group, (num_groups,), where the rows are and on the host."""

    on_device: Tensor
    on_host: np.ndarray

    @classmethod
    def of(cls, groups: Tensor, num_groups: int) -> GroupCounts:
        """Count; one transfer to the host."""
        counts = group_counts(groups, num_groups)
        return cls(counts, counts.cpu().numpy())

    def slots(self, groups: Tensor, first: Tensor) -> Tensor:
        """Places of rows whose (sorted) groups are given, if each group's places begin at `first`, (num_groups,)."""
        first_row = torch.cumsum(self.on_device, 0) - self.on_device
        return torch.arange(groups.shape[0], device=groups.device) + (first - first_row)[groups]


def chosen(mask: Tensor, count: int) -> Tensor:
    """(count,) indices of the true entries, ascending; without a device synchronisation, as their number is known."""
    place = torch.where(mask, torch.cumsum(mask, 0) - 1, count)
    index = torch.empty(count + 1, dtype=torch.long, device=mask.device)
    return index.scatter_(0, place, torch.arange(mask.shape[0], device=mask.device))[:count]


def marked(index: Tensor, size: int) -> Tensor:
    """(size,) bool, true at the given places."""
    return torch.zeros(size, dtype=torch.bool, device=index.device).index_fill_(0, index, True)


@dataclass(frozen=True)
class PaddedLayout:
    """Where each row of a list sorted by group lies in a padded block.

    Attributes:
        slot: (rows,) int64, group·width + rank.
        num_groups: number of groups.
        width: slots per group, the largest group's size (at least 1).
    """

    slot: Tensor
    num_groups: int
    width: int

    @classmethod
    def of(cls, groups: Tensor, counts: GroupCounts) -> PaddedLayout:
        """Lay out rows whose (sorted) groups are given."""
        num_groups, width = len(counts.on_host), max(1, int(counts.on_host.max(initial=0)))
        first = torch.arange(0, num_groups * width, width, device=groups.device)
        return cls(slot=counts.slots(groups, first), num_groups=num_groups, width=width)

    def pad(self, rows: Tensor) -> Tensor:
        """Map (rows, *rest) to (num_groups, width, *rest), zeros where there is no row."""
        size = self.num_groups * self.width
        return spread(rows, self.slot, size).view(self.num_groups, self.width, *rows.shape[1:])

    def unpad(self, block: Tensor) -> Tensor:
        """Map (num_groups, width, *rest) back to (rows, *rest)."""
        return pick(block.reshape(self.num_groups * self.width, *block.shape[2:]), self.slot)

    def table(self) -> Tensor:
        """(num_groups, width) number of the row at each place, −1 where there is none."""
        rows = torch.arange(self.slot.shape[0], device=self.slot.device)
        flat = torch.full((self.num_groups * self.width,), -1, dtype=torch.long, device=self.slot.device)
        return flat.index_copy_(0, self.slot, rows).view(self.num_groups, self.width)

    def mask(self) -> Tensor:
        """(num_groups, width) bool, true where there is a row."""
        return marked(self.slot, self.num_groups * self.width).view(self.num_groups, self.width)


@dataclass(frozen=True)
class BlockedLayout:
    """Where each row of a list sorted by group lies among padded blocks, one for each run of groups of like size.

    One block for all would be as wide as the largest group: a molecule beside a crystal would be mostly padding.

    Attributes:
        slot: (rows,) int64.
        shapes: (groups, width) of each block; blocks lie one after the other.
    """

    slot: Tensor
    shapes: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, groups: Tensor, counts: GroupCounts, sizes: Sequence[int]) -> BlockedLayout:
        """Lay out rows whose (sorted) groups are given; `sizes` are the numbers of groups in each block."""
        parts = np.split(counts.on_host, np.cumsum(sizes)[:-1])
        widths = [max(1, int(part.max(initial=0))) for part in parts]
        first, start = [], 0
        for size, width in zip(sizes, widths, strict=True):
            first.append(torch.arange(start, start + size * width, width, device=groups.device))
            start += size * width
        return cls(slot=counts.slots(groups, torch.cat(first)), shapes=tuple(zip(sizes, widths, strict=True)))

    @property
    def num_slots(self) -> int:
        """Of all blocks."""
        return sum(groups * width for groups, width in self.shapes)

    def pad(self, rows: Tensor) -> Tensor:
        """Map (rows, *rest) to (num_slots, *rest), zeros where there is no row."""
        return spread(rows, self.slot, self.num_slots)

    def unpad(self, slots: Tensor) -> Tensor:
        """Map (num_slots, *rest) back to (rows, *rest)."""
        return pick(slots, self.slot)

    def blocks(self, slots: Tensor) -> list[Tensor]:
        """Views (groups, width, *rest) of (num_slots, *rest)."""
        parts = torch.split(slots, [groups * width for groups, width in self.shapes])
        return [part.view(*shape, *slots.shape[1:]) for part, shape in zip(parts, self.shapes, strict=True)]

    def mask(self) -> Tensor:
        """(num_slots,) bool, true where there is a row."""
        return marked(self.slot, self.num_slots)


def runs_of_like_size(counts: np.ndarray, run_cost: float) -> list[int]:
    """Cut groups into runs so that Σ groups·width² over runs, plus `run_cost` for each run, is smallest.

    Args:
        counts: (groups,) sizes, descending.
        run_cost: what handling one more run costs, in pairs of places.

    Returns:
        Lengths of the runs.
    """
    starts = np.flatnonzero(np.diff(counts, prepend=-1))
    stops = np.append(starts, len(counts))[1:]
    area = np.square(counts[starts].astype(float))
    best, choice = np.zeros(len(starts) + 1), np.zeros(len(starts) + 1, dtype=int)
    for end, stop in enumerate(stops, start=1):
        costs = best[:end] + (stop - starts[:end]) * area[:end] + run_cost
        choice[end] = costs.argmin()
        best[end] = costs[choice[end]]
    sizes, end = [], len(starts)
    while end:
        sizes.append(int(stops[end - 1] - starts[choice[end]]))
        end = choice[end]
    return sizes[::-1]


class _Spread(torch.autograd.Function):
    """rows → zeros(size) with `rows` written at distinct indices."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(index)
        return rows.new_zeros(size, *rows.shape[1:]).index_copy_(0, index, rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors
        return pick(grads[0], index), None, None


class _Pick(torch.autograd.Function):
    """Rows at distinct indices."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.size = rows.shape[0]
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return spread(grads[0], index, ctx.size), None


def spread(rows: Tensor, index: Tensor, size: int) -> Tensor:
    """Write rows to distinct places of a zero tensor with `size` rows."""
    out: Tensor = _Spread.apply(rows, index, size)  # type: ignore[no-untyped-call]
    return out


def pick(rows: Tensor, index: Tensor) -> Tensor:
    """Select rows at indices that are all different."""
    out: Tensor = _Pick.apply(rows, index)  # type: ignore[no-untyped-call]
    return out


class _Exchange(torch.autograd.Function):
    """Rows permuted by an involution."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, swap: Tensor) -> Tensor:
        ctx.save_for_backward(swap)
        return rows.index_select(0, swap)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (swap,) = ctx.saved_tensors
        return exchange(grads[0], swap), None


def exchange(rows: Tensor, swap: Tensor) -> Tensor:
    """Give every row the value of its partner; `swap` is an involution."""
    out: Tensor = _Exchange.apply(rows, swap)  # type: ignore[no-untyped-call]
    return out


def sum_by_group(rows: Tensor, groups: Tensor, num_groups: int) -> Tensor:
    """Sum rows (rows, *rest) that share a group: (num_groups, *rest)."""
    return rows.new_zeros(num_groups, *rows.shape[1:]).index_add(0, groups, rows)
