"""The multilayer perceptron of all heads: equal hidden widths, scaled SiLU between, PyTorch's own initialisation."""

from __future__ import annotations

from torch import Tensor, nn

from jmp_model.gemnet_oc import fused
from jmp_model.gemnet_oc.layers import ScaledSiLU


class HeadMLP(nn.Sequential):
    """A perceptron whose linear layers sit at the even positions, as in the released checkpoints."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (rows, width) to (rows, out_features)."""
        return fused.perceptron(x, [(layer.weight, layer.bias) for layer in self if isinstance(layer, nn.Linear)])


def head_mlp(
    width: int, out_features: int, *, num_layers: int = 5, bias: bool = True, last_bias: bool = False
) -> HeadMLP:
    """Build `num_layers` linear layers, the last one to `out_features`.

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
    return HeadMLP(*layers, nn.Linear(width, out_features, bias=last_bias))
