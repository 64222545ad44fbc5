"""Angular functions: Legendre circular basis, and the dihedral basis separated into one factor per side.

The dihedral angle θ of d→b→a←c is the difference of two azimuths about the axis b→a, one of d and one of c. Its
basis P_j(cos θ) is a short cosine series, and cos m(φ_c − φ_d) = cos mφ_c cos mφ_d + sin mφ_c sin mφ_d, so that a sum
over quadruplets becomes a sum over d of azimuthal terms followed by one over the pairs (c, b→a): no quadruplet is ever
listed.

Where c or d lies on the axis its azimuth is undefined. The original's formula, atan2(max(|n₁×n₂|, 1e-9), n₁·n₂), gives
θ = π/2 there in exact arithmetic and noise otherwise; here such an atom has θ = π/2 with all others, by a threshold
well above rounding in either precision.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.polynomial import chebyshev, legendre
from torch import Tensor

COLLINEAR_SINE = 1e-5
"""An atom closer to the axis than this (sine of the angle) has no azimuth."""

CLAMP = 1e-9
"""Smallest |n₁×n₂| of the original's dihedral."""


def legendre_basis(cosine: Tensor, num_spherical: int) -> Tensor:
    """Real m = 0 spherical harmonics Y_l = √((2l+1)/4π)·P_l.

    Args:
        cosine: (...) in [−1, 1].
        num_spherical: number of orders l = 0, 1, ….

    Returns:
        (..., num_spherical).
    """
    norms = [math.sqrt((2 * order + 1) / (4 * math.pi)) for order in range(num_spherical)]
    values = [torch.full_like(cosine, norms[0]), cosine * (norms[0] * math.sqrt(3))]
    for order in range(2, num_spherical):
        # l·P_l = (2l − 1)·x·P_{l−1} − (l − 1)·P_{l−2}, with the norms within the factors.
        gain = (2 * order - 1) / order * norms[order] / norms[order - 1]
        loss = (order - 1) / order * norms[order] / norms[order - 2]
        values.append(torch.add(cosine * values[-1], values[-2], alpha=-loss / gain) * gain)
    return torch.stack(values[:num_spherical], dim=-1)


def legendre_outer(cosine: Tensor, cosine_dihedral: Tensor, num_spherical: int) -> Tensor:
    """Outer product Y_i(cos φ)·Y_j(cos θ) with index num_spherical·i + j: (..., num_spherical²)."""
    circular = legendre_basis(cosine, num_spherical)
    dihedral = legendre_basis(cosine_dihedral, num_spherical)
    return (circular[..., :, None] * dihedral[..., None, :]).flatten(-2)


def cosines(first: Tensor, second: Tensor) -> Tensor:
    """Cosines between unit vectors (..., 3), clamped to [−1, 1]."""
    return (first * second).sum(-1).clamp(-1.0, 1.0)


def pairwise_cosines(first: Tensor, second: Tensor) -> Tensor:
    """Cosines between all unit vectors of two blocks, (groups, n, 3) and (groups, m, 3): (groups, n, m).

    Written out, because a matrix product may be carried out in reduced precision.
    """
    x, y, z = (first[:, :, None, i] * second[:, None, :, i] for i in range(3))
    return (x + y + z).clamp(-1.0, 1.0)


def dihedral_angles(first: Tensor, second: Tensor) -> Tensor:
    """Angle in [0, π] between two plane normals (..., 3), as the original computes it."""
    y = torch.linalg.cross(first, second).norm(dim=-1).clamp(min=CLAMP)
    return torch.atan2(y, (first * second).sum(-1))


@dataclass(frozen=True)
class Azimuths:
    """Azimuthal terms of vectors about an axis.

    Attributes:
        terms: (..., 2·S − 1): 1, cos φ, sin φ, cos 2φ, …; all zero where the vector lies on the axis.
        collinear: (...) bool, the vector lies on the axis.
        sine_square: (...) of the angle with the axis, not differentiable.
    """

    terms: Tensor
    collinear: Tensor
    sine_square: Tensor


def axis_frames(axes: Tensor) -> tuple[Tensor, Tensor]:
    """Two unit vectors perpendicular to each axis and to each other.

    Args:
        axes: (..., 3) unit vectors.

    Returns:
        Two (..., 3) tensors, smooth functions of the axis except where the smallest component changes.
    """
    smallest = axes.detach().abs().argmin(dim=-1, keepdim=True)
    helper = torch.zeros_like(axes).scatter(-1, smallest, 1.0)
    first = helper - (helper * axes).sum(-1, keepdim=True) * axes
    first = first / first.norm(dim=-1, keepdim=True)
    return first, torch.linalg.cross(axes, first)


def azimuths(vectors: Tensor, frames: tuple[Tensor, Tensor], num_spherical: int) -> Azimuths:
    """Azimuthal terms of vectors about axes.

    Args:
        vectors: (..., 3) unit vectors (zero vectors count as collinear).
        frames: two (..., 3) unit vectors perpendicular to the axis, broadcastable.
        num_spherical: S, orders 0 … S − 1.
    """
    x, y = (vectors * frames[0]).sum(-1), (vectors * frames[1]).sum(-1)
    square = x * x + y * y
    sine_square = square.detach()
    collinear = sine_square < COLLINEAR_SINE**2
    inverse = torch.rsqrt(torch.where(collinear, torch.ones_like(square), square))
    cos1, sin1 = x * inverse, y * inverse
    terms = [torch.ones_like(cos1)]
    cos_m, sin_m = cos1, sin1
    for order in range(1, num_spherical):
        if order > 1:
            cos_m, sin_m = cos_m * cos1 - sin_m * sin1, sin_m * cos1 + cos_m * sin1
        terms += [cos_m, sin_m]
    stacked = torch.stack(terms, dim=-1)
    return Azimuths(torch.where(collinear[..., None], torch.zeros_like(stacked), stacked), collinear, sine_square)


def dihedral_series(num_spherical: int) -> np.ndarray:
    """Coefficients of Y_j(cos θ) = Σ_m c[j, m] cos mθ: (S, S)."""
    series = np.zeros((num_spherical, num_spherical))
    for order in range(num_spherical):
        coefficients = chebyshev.poly2cheb(legendre.leg2poly([0.0] * order + [1.0]))
        series[order, : len(coefficients)] = coefficients * math.sqrt((2 * order + 1) / (4 * math.pi))
    return series


@lru_cache(maxsize=16)
def _output_constants(num_spherical: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Series coefficients of each azimuthal term, (S, 2S − 1), and Y_j(cos π/2), (S,): sent once, not in every pass."""
    series = dihedral_series(num_spherical)
    of_terms = np.concatenate([series[:, :1], series[:, 1:].repeat(2, axis=1)], axis=1)
    right_angle = series @ np.cos(np.arange(num_spherical) * math.pi / 2)
    with torch.inference_mode(False):
        return torch.tensor(of_terms, dtype=dtype, device=device), torch.tensor(right_angle, dtype=dtype, device=device)


def dihedral_input_terms(azimuth: Azimuths) -> Tensor:
    """Factor of the inner side d: (..., 2S), the azimuthal terms and a last one that marks collinear atoms."""
    return torch.cat([azimuth.terms, azimuth.collinear[..., None].to(azimuth.terms.dtype)], dim=-1)


def dihedral_output_terms(azimuth: Azimuths, num_spherical: int) -> Tensor:
    """Factor of the outer side c: (..., S, 2S); contracting its last axis with the inner side gives Y_j(cos θ)."""
    of_terms, right_angle = _output_constants(num_spherical, azimuth.terms.dtype, azimuth.terms.device)
    regular = azimuth.terms[..., None, :] * of_terms
    collinear = azimuth.collinear[..., None].to(azimuth.terms.dtype)
    first = regular[..., :1] + (collinear * right_angle)[..., None]
    last = right_angle.expand(regular.shape[:-1])[..., None]
    return torch.cat([first, regular[..., 1:], last], dim=-1)
