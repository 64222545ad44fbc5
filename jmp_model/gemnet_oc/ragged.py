"""Moving rows between a flat list sorted by group and a zero-padded (group, slot) block, differentiable twice.

Autograd's own backward of a gather is a scatter-add with atomics. Here every index is injective, so the backward
of each move is the opposite move, which is a plain copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def group_counts(groups: Tensor, num_groups: int) -> Tensor:
    """Number of rows in each group: (num_groups,) int64, without a device synchronisation."""
    return torch.zeros(num_groups, dtype=torch.long, device=groups.device).index_add_(
        0, groups, torch.ones_like(groups)
    )


def group_ranks(groups: Tensor, counts: Tensor) -> Tensor:
    """Running number of each row within its group; `groups` must be sorted."""
    first = torch.cumsum(counts, 0) - counts
    return torch.arange(groups.shape[0], device=groups.device) - first[groups]


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
    def of(cls, groups: Tensor, num_groups: int) -> PaddedLayout:
        """Lay out rows whose (sorted) groups are given."""
        counts = group_counts(groups, num_groups)
        width = max(1, int(counts.max())) if num_groups else 1
        return cls(slot=groups * width + group_ranks(groups, counts), num_groups=num_groups, width=width)

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
        flat = torch.zeros(self.num_groups * self.width, dtype=torch.bool, device=self.slot.device)
        return flat.index_fill_(0, self.slot, True).view(self.num_groups, self.width)


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
