"""`torch.compile` for the dense parts of a model: its blocks and what joins their outputs, each on its own.

Index structures and the coefficients made from them depend on data throughout and stay outside, and so do heads, whose
numbers of rows may be none. Blocks of a kind share one program, so compiling does not take longer for a deeper model.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.fx.experimental._config
from torch import nn

from jmp_model.gemnet_oc.backbone import GemNetOC
from jmp_model.gemnet_oc.interaction import InteractionBlock
from jmp_model.gemnet_oc.output import FinalEdgeFeatures, FinalFeatures, OutputBlock

COMPILED = (InteractionBlock, OutputBlock, FinalFeatures, FinalEdgeFeatures)


def compile_blocks(model: nn.Module, *, mode: str | None = None) -> None:
    """Let every block of the model run compiled in training, for sizes that change from batch to batch.

    Names of modules and parameters stay as they are. Scale factors must be fitted before.

    Args:
        model: contains blocks.
        mode: of `torch.compile`.
    """
    # Two sizes that are equal in the first batch, such as edges with and without quadruplets, need not stay so.
    torch.fx.experimental._config.use_duck_shape = False
    for module in model.modules():
        if isinstance(module, GemNetOC):
            module.one_block = True
        if isinstance(module, COMPILED):
            _compile_training(module, mode)


def _compile_training(block: nn.Module, mode: str | None) -> None:
    """Leave evaluation as it is: it would need programs of its own, which take longer to make than validations do."""
    plain, compiled = block.forward, torch.compile(block.forward, dynamic=True, mode=mode)

    def forward(*args: Any) -> Any:
        return compiled(*args) if block.training else plain(*args)

    block.forward = forward
