"""Scale factors: fixed scalars, fitted once, that keep the variance of each message at that of its input.

A stored 0 means "not fitted". The original then multiplies by 1 without a word; here that is an error unless the model
says `allow_unfitted`, because a model trained without its scales is a different model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jmp_data.errors import CheckpointError

_ROUNDING = 1e-9
"""A variance that is smaller than this part of the mean square is rounding."""


@dataclass
class VarianceSums:
    """Running sums of n·variance and n·mean square of a layer's output and of its reference; n: rows of the output."""

    output: float = 0.0
    reference: float = 0.0
    output_square: float = 0.0
    reference_square: float = 0.0

    def add(self, output: Tensor, reference: Tensor, counts: Tensor | None) -> None:
        """Add one batch; fewer than two rows have no variance and add nothing."""
        total = reference.shape[0] if counts is None else int(counts.sum())
        if output.shape[0] < 2 or total < 2:
            return
        self.output += output.shape[0] * mean_feature_variance(output)
        self.reference += output.shape[0] * mean_feature_variance(reference, counts)
        self.output_square += output.shape[0] * mean_square(output)
        self.reference_square += output.shape[0] * mean_square(reference, counts)

    def factor(self, name: str) -> float:
        """√(reference/output), of mean squares where all rows of the reference are equal, as atoms of one element are.

        Raises:
            CheckpointError: the layer saw nothing it could be fitted on.
        """
        output, reference = self.output, self.reference
        if reference <= _ROUNDING * self.reference_square:
            output, reference = self.output_square, self.reference_square
        if not output > 0 or not reference > 0:
            raise CheckpointError(f"{name}: nothing to fit a scale on: the batches hold no such edges")
        return float((reference / output) ** 0.5)


def mean_feature_variance(rows: Tensor, counts: Tensor | None = None) -> float:
    """Mean over features of the unbiased variance over rows.

    Args:
        rows: (rows, features).
        counts: (rows,) how often each row counts.
    """
    rows = rows.detach().double()
    if counts is None:
        return float(rows.var(dim=0, unbiased=True).mean())
    weights = counts.to(rows.dtype)[:, None]
    mean = (weights * rows).sum(0) / weights.sum()
    return float(((weights * (rows - mean) ** 2).sum(0) / (weights.sum() - 1)).mean())


def mean_square(rows: Tensor, counts: Tensor | None = None) -> float:
    """Mean of the squares of all numbers (rows, features), row i counted `counts[i]` times."""
    squares = rows.detach().double().square().mean(1)
    return float(squares.mean() if counts is None else (counts * squares).sum() / counts.sum())


class ScaleFactor(nn.Module):
    """Multiplies by a fixed scalar.

    Attributes:
        scale_factor: scalar buffer; 0 means not fitted.
        allow_unfitted: act as identity where not fitted, instead of refusing.
    """

    scale_factor: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale_factor", torch.zeros(()))
        self.allow_unfitted = False
        self.sums: VarianceSums | None = None
        self._is_fitted: bool | None = None
        self.register_load_state_dict_post_hook(_forget_fitted)  # type: ignore[no-untyped-call]

    @property
    def is_fitted(self) -> bool:
        """Whether the factor is not zero; read from the device once, then remembered."""
        if self._is_fitted is None:
            self._is_fitted = bool(self.scale_factor != 0)
        return self._is_fitted

    def set(self, value: float) -> None:
        """Set the factor; 0 resets it to "not fitted"."""
        self.scale_factor.fill_(value)
        self._is_fitted = value != 0

    @property
    def observing(self) -> bool:
        """Whether the factor is being fitted and wants to see its layer's output."""
        return self.sums is not None

    def observe(self, output: Tensor, reference: Tensor, counts: Tensor | None = None) -> None:
        """Note the variances of a layer's output, before scaling, and of its reference.

        Args:
            output: (rows, features).
            reference: (other rows, other features), whose variance the factor should keep.
            counts: how often each row of the reference counts; None for once.
        """
        if self.sums is not None:
            self.sums.add(output, reference, counts)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x, of any shape: a layer's output, or the weight that makes it.

        Raises:
            CheckpointError: not fitted, and not allowed to be.
        """
        if self.is_fitted:
            return x * self.scale_factor
        if not self.allow_unfitted:
            raise CheckpointError(
                "the model has scale factors that were never fitted: load a checkpoint that has them, fit them with "
                "`jmp fit-scales` (fit_scale_factors), or say allow_unfitted to go on without"
            )
        return x


def _forget_fitted(module: nn.Module, _: Any) -> None:
    module._is_fitted = None  # type: ignore[assignment]


def scale_factors(model: nn.Module) -> Iterator[tuple[str, ScaleFactor]]:
    """All scale factors with their module names, in module order."""
    for name, module in model.named_modules():
        if isinstance(module, ScaleFactor):
            yield name, module


def unfitted_scales(model: nn.Module) -> list[str]:
    """Names of the scale factors that are still 0."""
    return [name for name, factor in scale_factors(model) if not factor.is_fitted]


def set_allow_unfitted(model: nn.Module, allowed: bool) -> None:
    """Let unfitted factors act as identity (or forbid it again)."""
    for _, factor in scale_factors(model):
        factor.allow_unfitted = allowed


@contextmanager
def _observing(model: nn.Module, stage: Sequence[ScaleFactor]) -> Iterator[None]:
    allowed = [(factor, factor.allow_unfitted) for _, factor in scale_factors(model)]
    was_training = model.training
    try:
        model.eval()
        set_allow_unfitted(model, True)
        for factor in stage:
            factor.sums = VarianceSums()
        yield
    finally:
        model.train(was_training)
        for factor, value in allowed:
            factor.allow_unfitted = value
            factor.sums = None


@torch.no_grad()
def fit_scale_factors(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    on_stage: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Fit all scale factors of a model, one after the other in the order that the layers run.

    Factors that do not feed each other are fitted in one pass, which gives the same numbers as one pass each: four
    passes per interaction block and one for the last output block.

    Args:
        model: has `scale_stages()`, names of factors that may be fitted together, in running order.
        batches: re-iterable; each item is passed to `model(item)`. Only running sums are kept.
        on_stage: told (stages done, stages) after each pass, for progress bars.

    Returns:
        Module name → fitted value, in module order.

    Raises:
        CheckpointError: a layer saw nothing, for example because no structure has quadruplets.
    """
    factors = dict(scale_factors(model))
    for factor in factors.values():
        factor.set(0.0)
    stages: list[list[str]] = model.scale_stages()  # type: ignore[operator]
    for done, names in enumerate(stages, start=1):
        with _observing(model, [factors[name] for name in names]):
            for batch in batches:
                model(batch)
            sums = {name: factors[name].sums for name in names}
        for name, found in sums.items():
            factors[name].set((found or VarianceSums()).factor(name))
        if on_stage is not None:
            on_stage(done, len(stages))
    return {name: float(factor.scale_factor) for name, factor in factors.items()}
