"""`torch.compile` for the dense parts of a model: its interaction and output blocks, each on its own.

Index structures and the coefficients made from them depend on data throughout and stay outside. Blocks of a kind share
one program, so compiling does not take longer for a deeper model.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.fx.experimental._config
from torch import nn

from jmp_model.gemnet_oc.backbone import GemNetOC
from jmp_model.gemnet_oc.interaction import InteractionBlock
from jmp_model.gemnet_oc.output import OutputBlock


def compile_blocks(model: nn.Module) -> None:
    """Let every block of the model run compiled in training, for sizes that change from batch to batch.

    Names of modules and parameters stay as they are. Scale factors must be fitted before.
    """
    # Two sizes that are equal in the first batch, such as edges with and without quadruplets, need not stay so.
    torch.fx.experimental._config.use_duck_shape = False
    for module in model.modules():
        if isinstance(module, GemNetOC):
            module.one_block = True
        if isinstance(module, InteractionBlock | OutputBlock):
            _compile_training(module)


def _compile_training(block: nn.Module) -> None:
    """Leave evaluation as it is: it would need programs of its own, which take longer to make than validations do."""
    plain, compiled = block.forward, torch.compile(block.forward, dynamic=True)

    def forward(*args: Any) -> Any:
        return compiled(*args) if block.training else plain(*args)

    block.forward = forward
