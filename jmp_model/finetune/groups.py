"""Layer-wise learning rates: groups of parameters with a factor each, as published for JMP-S and JMP-L."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from jmp_data.errors import ManifestError

EMBEDDING_FACTOR = 0.30
BLOCK_FACTORS: Mapping[int, tuple[float, ...]] = {
    4: (0.30, 0.40, 0.55, 0.625),
    6: (0.55, 0.40, 0.30, 0.40, 0.55, 0.625),
}
"""Number of interaction blocks → factor of each block: JMP-S, and JMP-L, whose factors are not monotone. One re-run of
JMP-S has 0.35 for the first block."""


@dataclass(frozen=True)
class LayerGroup:
    """Parameters that share a learning rate.

    Attributes:
        name: for people.
        factor: times the base rate.
        parameters: names.
    """

    name: str
    factor: float
    parameters: tuple[str, ...]


def layer_groups(
    module: nn.Module, rates: Literal["published", "uniform"] | Mapping[str, float], *, num_blocks: int
) -> list[LayerGroup]:
    """Sort the trainable parameters into groups.

    Args:
        module: a model with `embedding`, `backbone` and heads.
        rates: "published" for the published factors, if the model has 4 or 6 blocks, otherwise one rate; "uniform" for
            one rate; or beginnings of parameter names → factor, the longest match counting.
        num_blocks: interaction blocks of the backbone.

    Raises:
        ManifestError: a beginning that no parameter has.
    """
    if rates == "published":
        rates = published_rates(num_blocks)
    elif rates == "uniform":
        rates = {}
    names = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_longest_match(name, list(rates)), []).append(name)
    unused = sorted(set(rates) - set(groups) - {_group_of(prefix, rates) for prefix in groups})
    frozen = [name for name, parameter in module.named_parameters() if not parameter.requires_grad]
    for prefix in unused:
        if not any(_longest_match(name, list(rates)) == prefix for name in frozen):
            raise ManifestError(f"optimizer.layer_rates: no parameter begins with {prefix!r}")
    return [LayerGroup(prefix or "rest", rates.get(prefix, 1.0), tuple(found)) for prefix, found in groups.items()]


def published_rates(num_blocks: int) -> dict[str, float]:
    """Beginnings of parameter names → factor; empty for a model of another depth than the published ones."""
    factors = BLOCK_FACTORS.get(num_blocks)
    if factors is None:
        return {}
    rates = {"embedding.": EMBEDDING_FACTOR}
    for block, factor in enumerate(factors):
        rates[f"backbone.int_blocks.{block}."] = factor
        rates[f"backbone.out_blocks.{block + 1}."] = factor
    rates["backbone.out_blocks.0."] = factors[0]
    return rates


def _longest_match(name: str, prefixes: Sequence[str]) -> str:
    return max((prefix for prefix in prefixes if name.startswith(prefix)), key=len, default="")


def _group_of(prefix: str, rates: Mapping[str, float]) -> str:
    return prefix if prefix in rates else ""
