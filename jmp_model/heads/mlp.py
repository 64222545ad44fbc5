"""The multilayer perceptron of all heads: equal hidden widths, scaled SiLU between, PyTorch's own initialisation."""

from __future__ import annotations

from torch import nn

from jmp_model.gemnet_oc.layers import ScaledSiLU


def head_mlp(
    width: int, out_features: int, *, num_layers: int = 5, bias: bool = True, last_bias: bool = False
) -> nn.Sequential:
    """Build `num_layers` linear layers, the last one to `out_features`.

    Linear layers sit at the even positions of the sequence, as in the released checkpoints.

    Args:
        width: input and hidden size.
        out_features: output size.
        num_layers: linear layers, the last included.
        bias: whether the hidden layers have biases.
        last_bias: whether the last layer has one.
    """
    layers: list[nn.Module] = []
    for _ in range(num_layers - 1):
        layers += [nn.Linear(width, width, bias=bias), ScaledSiLU()]
    return nn.Sequential(*layers, nn.Linear(width, out_features, bias=last_bias))
