"""Pure functions on stored grids: bases, activation, initialiser, angles, and a toy bilinear problem."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from jmp_model.gemnet_oc import angular
from jmp_model.gemnet_oc.bases import BasisProjection, RadialBasis, polynomial_envelope
from jmp_model.gemnet_oc.initializers import standardize
from jmp_model.gemnet_oc.kernels import edge_kernel
from jmp_model.gemnet_oc.layers import scaled_silu
from jmp_model.gemnet_oc.ragged import GroupCounts, PaddedLayout, sum_by_group
from jmp_model.parity.fixtures import DTYPES, Arrays, Errors, Precision, relative_error

_CUTOFF, _EXPONENT = 12.0, 5


def compare_functions(arrays: Arrays, precision: Precision) -> Errors:
    """Evaluate every function that the file has values of and we compute."""
    dtype = DTYPES[precision]

    def get(name: str) -> Tensor:
        value = torch.as_tensor(arrays[name])
        return value.to(dtype) if value.is_floating_point() else value.long()

    errors: Errors = {}
    for group in (_radial, _angular, _elementwise, _quadruplet_angles, _bilinear):
        try:
            computed = group(get)
        except KeyError:
            continue
        errors |= {name: relative_error(value, arrays[name]) for name, value in computed.items() if name in arrays}
    return errors


Get = Callable[[str], Tensor]


def _radial(get: Get) -> dict[str, Tensor]:
    distance = get("distance")
    basis = RadialBasis(get("gaussian_raw").shape[1], cutoff=_CUTOFF, envelope_exponent=_EXPONENT).to(distance.dtype)
    if distance.dtype == torch.float64:
        basis.rbf.offset.copy_(torch.linspace(0, 1, len(basis.rbf.offset), dtype=torch.float64))
    return {
        "envelope": polynomial_envelope(distance / _CUTOFF, _EXPONENT),
        "gaussian_raw": basis.rbf(distance / _CUTOFF),
        "radial_basis": basis(distance),
        "gaussian_offset": basis.rbf.offset,
        "gaussian_temps": basis.rbf.temps,
    }


def _angular(get: Get) -> dict[str, Tensor]:
    orders = get("circular_basis").shape[1]
    cos_phi, cos_theta = get("cos_phi"), torch.cos(get("theta"))
    return {
        "circular_basis": angular.legendre_basis(cos_phi, orders),
        "legendre_outer": angular.legendre_outer(cos_phi, cos_theta, orders),
    }


def _elementwise(get: Get) -> dict[str, Tensor]:
    return {
        "scaled_silu": scaled_silu(get("x")),
        "standardize2d": standardize(get("kernel2d")),
        "standardize3d": standardize(get("kernel3d")),
        "angle": angular.dihedral_angles(get("vec_a"), get("vec_b")),
    }


def _quadruplet_angles(get: Get) -> dict[str, Tensor]:
    c, a, b, d = get("quad_positions_cabd").unbind(1)
    ca, ba, db = (torch.nn.functional.normalize(v, dim=-1) for v in (a - c, a - b, b - d))
    angle = angular.dihedral_angles(torch.linalg.cross(ca, ba), torch.linalg.cross(db, ba))
    return {"quad_cos_cab": angular.cosines(ca, ba), "quad_cos_abd": angular.cosines(ba, db), "quad_angle": angle}


def _bilinear(get: Get) -> dict[str, Tensor]:
    """The weight's reinterpretation, then both aggregations through the model's own kernels."""
    weight = get("be_weight")
    num_edges, (_, orders, out) = len(get("be_rad")), weight.shape
    projection = BasisProjection(*weight.shape)
    projection.weight.data = weight
    projected = projection(get("be_rad"))
    outer, inner = get("be_outer"), get("be_inner")
    layout = PaddedLayout.of(outer, GroupCounts.of(outer, num_edges))
    kernel = edge_kernel(projected[:, None], layout.pad(get("be_sph"))[:, None])
    z = kernel @ layout.pad(get("be_m"))
    padded = get("be_m").new_zeros(get("be_sph_padded").shape)
    padded[outer, :, inner] = get("be_sph")
    atoms, slot = get("agg2_outer"), get("agg2_inner")
    by_atom = projected.new_zeros(int(atoms.max()) + 1, out, int(slot.max()) + 1, orders)
    by_atom[atoms, :, slot] = projected
    z_atoms = sum_by_group(z, atoms, int(atoms.max()) + 1)
    return {
        "be_radW": projected,
        "be_sph_padded": padded,
        "be_per_triplet": (projected[outer] @ get("be_sph")[..., None]).squeeze(-1),
        "bi_out": z.flatten(1) @ get("bi_weight").T,
        "agg2_radW": by_atom.flatten(2),
        "agg2_out": z_atoms.flatten(1) @ get("bi_weight").T,
    }
