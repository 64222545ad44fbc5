"""Angular functions against SciPy and against the formula with explicit angles."""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import eval_legendre

from jmp_model.gemnet_oc import angular


def unit_vectors(count: int, seed: int) -> torch.Tensor:
    vectors = torch.randn(count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return vectors / vectors.norm(dim=1, keepdim=True)


def test_legendre_basis_agrees_with_scipy() -> None:
    x = torch.linspace(-1, 1, 101, dtype=torch.float64)
    for num in (1, 2, 7, 9):
        ours = angular.legendre_basis(x, num).numpy()
        expected = np.stack([np.sqrt((2 * n + 1) / (4 * np.pi)) * eval_legendre(n, x.numpy()) for n in range(num)], -1)
        np.testing.assert_allclose(ours, expected, atol=1e-14)


def test_separated_dihedral_basis_equals_the_explicit_one() -> None:
    axis, c, d = unit_vectors(200, 1), unit_vectors(200, 2), unit_vectors(200, 3)
    frames = angular.axis_frames(axis)
    inner = angular.dihedral_input_terms(angular.azimuths(d, frames, 7))
    outer = angular.dihedral_output_terms(angular.azimuths(c, frames, 7), 7)
    ours = (outer @ inner[:, :, None]).squeeze(-1)
    theta = angular.dihedral_angles(torch.linalg.cross(c, axis), torch.linalg.cross(d, axis))
    torch.testing.assert_close(ours, angular.legendre_basis(torch.cos(theta), 7), rtol=0, atol=1e-12)


def test_atoms_on_the_axis_have_right_angles_with_all_others() -> None:
    axis = unit_vectors(3, 4)
    c = torch.stack([axis[0], unit_vectors(1, 5)[0], -axis[2]])
    d = torch.stack([unit_vectors(1, 6)[0], -axis[1], axis[2]])
    frames = angular.axis_frames(axis)
    inner = angular.dihedral_input_terms(angular.azimuths(d, frames, 7))
    outer = angular.dihedral_output_terms(angular.azimuths(c, frames, 7), 7)
    right_angle = angular.legendre_basis(torch.zeros(3, dtype=torch.float64), 7)
    torch.testing.assert_close((outer @ inner[:, :, None]).squeeze(-1), right_angle, rtol=0, atol=1e-14)


def test_azimuths_have_right_second_derivatives() -> None:
    axis = unit_vectors(4, 7).requires_grad_()
    vectors = unit_vectors(4, 8).requires_grad_()

    def basis(axis: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        frames = angular.axis_frames(axis / axis.norm(dim=1, keepdim=True))
        inner = angular.dihedral_input_terms(angular.azimuths(vectors, frames, 4))
        outer = angular.dihedral_output_terms(angular.azimuths(vectors.flip(0), frames, 4), 4)
        return (outer @ inner[:, :, None]).squeeze(-1)

    assert torch.autograd.gradcheck(basis, (axis, vectors))
    assert torch.autograd.gradgradcheck(basis, (axis, vectors))


def test_frames_are_right_handed_and_orthonormal() -> None:
    axis = torch.cat([unit_vectors(20, 9), torch.eye(3, dtype=torch.float64), -torch.eye(3, dtype=torch.float64)])
    first, second = angular.axis_frames(axis)
    matrix = torch.stack([first, second, axis], dim=1)
    torch.testing.assert_close(matrix @ matrix.transpose(1, 2), torch.eye(3, dtype=torch.float64).expand(26, 3, 3))
    torch.testing.assert_close(torch.linalg.det(matrix), torch.ones(26, dtype=torch.float64))
