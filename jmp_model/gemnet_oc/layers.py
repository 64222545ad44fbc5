"""The dense building blocks of GemNet-OC. Bias-free throughout; activation is SiLU/0.6, which preserves variance."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from jmp_model.gemnet_oc import fused
from jmp_model.gemnet_oc.fused import SILU_GAIN
from jmp_model.gemnet_oc.initializers import he_orthogonal_


def scaled_silu(x: Tensor) -> Tensor:
    """SiLU(x)/0.6, of any shape."""
    return functional.silu(x).mul_(SILU_GAIN)


class ScaledSiLU(nn.Module):
    """`scaled_silu` as a module, for use in `nn.Sequential`."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply element-wise."""
        return scaled_silu(x)


class Dense(nn.Module):
    """Bias-free linear layer, optionally followed by the scaled SiLU."""

    def __init__(self, in_features: int, out_features: int, *, activation: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias=False)
        self.activation = activation
        he_orthogonal_(self.linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        if self.activation:
            return fused.dense_silu(x, self.weight)
        return functional.linear(x, self.weight)

    @property
    def weight(self) -> Tensor:
        """(out, in)."""
        return self.linear.weight


class ResidualLayer(nn.Module):
    """x ↦ (x + act(W₂·act(W₁·x)))/√2."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.dense_mlp = nn.Sequential(Dense(units, units, activation=True), Dense(units, units, activation=True))

    def weights(self) -> tuple[Tensor, Tensor]:
        """W₁ and W₂, both (units, units)."""
        first, second = self.dense_mlp
        assert isinstance(first, Dense)
        assert isinstance(second, Dense)
        return first.weight, second.weight

    def forward(self, x: Tensor) -> Tensor:
        """Map (rows, units) to the same shape."""
        return fused.residuals(x, [self.weights()])


class ResidualStack(nn.Sequential):
    """Residual layers in a row, evaluated as one; other layers may come before them."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (rows, in) to (rows, units)."""
        layers = []
        for layer in self:
            if isinstance(layer, ResidualLayer):
                layers.append(layer.weights())
            else:
                x = layer(x)
        return fused.residuals(x, layers)


def residual_stack(units: int, depth: int) -> ResidualStack:
    """`depth` residual layers in a row (none is the identity)."""
    return ResidualStack(*(ResidualLayer(units) for _ in range(depth)))


def dense_then_residuals(in_features: int, units: int, depth: int) -> ResidualStack:
    """A dense layer to the wanted width, left out where the width is right already, then residual layers."""
    first = [] if in_features == units else [Dense(in_features, units, activation=True)]
    return ResidualStack(*first, *(ResidualLayer(units) for _ in range(depth)))


class BilinearWeight(nn.Module):
    """Weight of an efficient bilinear layer: contracts basis index and feature index jointly.

    The released checkpoints keep it one module deeper (`….bilinear.linear.weight`), hence this wrapper.
    """

    def __init__(self, num_basis: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.bilinear = Dense(num_basis * in_features, out_features)

    @property
    def weight(self) -> Tensor:
        """(out_features, num_basis·in_features), basis index slow."""
        return self.bilinear.weight

    def forward(self, z: Tensor) -> Tensor:
        """Map (rows, num_basis·in_features) to (rows, out_features)."""
        y: Tensor = self.bilinear(z)
        return y
