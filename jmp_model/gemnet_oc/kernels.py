"""Everything of a forward pass that depends on geometry and basis weights but not on features.

A message "sum over triplets of basis(distance, angle) × feature" is linear in the features. Its coefficients are put
together here once, as small dense blocks per target atom, and every interaction block then multiplies by them: one
batched matrix product instead of a gather per triplet. The edge → atom message even sums out its inner edge here.

Shapes: N atoms in blocks of n, E main edges, D/D2 slots for main/a2ee2a edges at one atom of a block, K features; see
`topology`. A tuple has one entry per block.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from jmp_model.gemnet_oc.angular import (
    Azimuths,
    axis_frames,
    azimuths,
    cosines,
    dihedral_input_terms,
    dihedral_output_terms,
    legendre_basis,
    pairwise_cosines,
)
from jmp_model.gemnet_oc.bases import Bases
from jmp_model.gemnet_oc.config import Collinear
from jmp_model.gemnet_oc.ragged import BlockedLayout, marked, pick, spread, sum_by_group
from jmp_model.gemnet_oc.single_dihedrals import SingleTerms, single_terms
from jmp_model.gemnet_oc.topology import QuadrupletTopology, TargetSorted, Topology


@dataclass(frozen=True)
class Geometry:
    """Lengths (edges,) Å and unit vectors source → target (edges, 3) of the sorted edges."""

    main_distance: Tensor
    main_vector: Tensor
    a2ee2a_distance: Tensor
    a2ee2a_vector: Tensor
    qint_distance: Tensor
    qint_vector: Tensor
    a2a_distance: Tensor


@dataclass(frozen=True)
class QuadrupletKernels:
    """Coefficients of the quadruplet interaction.

    Attributes:
        circular: (Q, D_in, q) projected circular basis of each d→b→a.
        input_terms: (Q, 2S, D_in) azimuthal terms of d, zero for excluded places.
        output: (na, D_out·w, Dq·2S) coefficients of the azimuthal sums for each main edge c→a.
        closing: (places of c→a, w, Dq) what `output` counts too much: the edge c→b, which is no quadruplet of c→a.
        single: what the original's formula gives beyond that for single quadruplets; only in double precision.
    """

    circular: Tensor
    input_terms: Tensor
    output: tuple[Tensor, ...]
    closing: Tensor
    single: SingleTerms | None


@dataclass(frozen=True)
class Kernels:
    """Radial features per edge and message coefficients.

    Attributes:
        radial: (E, R) radial basis of the main edges.
        rad_e2e, rad_qint, rad_e2a, rad_atom_update, rad_output: (E, r); rad_a2e: (a2ee2a edges, r).
        e2e: (n, D·q, D) from main edges to main edges of one target.
        a2e: (n, D·q, D2) from a2ee2a edges to main edges.
        e2a: (n, q, D) from main edges to the target atom.
        a2a: (n, r, pairs at one atom).
        quads: None if there is no qint edge.
    """

    radial: Tensor
    rad_e2e: Tensor
    rad_qint: Tensor
    rad_a2e: Tensor
    rad_e2a: Tensor
    rad_atom_update: Tensor
    rad_output: Tensor
    e2e: tuple[Tensor, ...]
    a2e: tuple[Tensor, ...]
    e2a: tuple[Tensor, ...]
    a2a: tuple[Tensor, ...]
    quads: QuadrupletKernels | None


def measure(topology: Topology, positions: Tensor, cell: Tensor, batch: Tensor) -> Geometry:
    """Lengths and directions of all edges, differentiable in positions and cell."""

    def lengths(edges: TargetSorted) -> tuple[Tensor, Tensor]:
        shift = torch.einsum("ei,eij->ej", edges.cell_offsets.to(cell.dtype), cell[batch[edges.target]])
        arrow = positions[edges.target] - positions[edges.source] - shift
        distance = arrow.norm(dim=-1)
        return distance, arrow / distance[:, None]

    main, a2ee2a = lengths(topology.main), lengths(topology.a2ee2a)
    qint = lengths(topology.quads.qint) if topology.quads else (positions.new_zeros(0), positions.new_zeros(0, 3))
    return Geometry(*main, *a2ee2a, *qint, lengths(topology.a2a)[0])


def build_kernels(
    bases: Bases, topology: Topology, geometry: Geometry, *, collinear: Collinear = "right_angle"
) -> Kernels:
    """Evaluate the bases and contract them as far as features are not needed.

    This is done in the precision of the positions even under autocast: an angle in half precision is no angle. The
    result comes in the autocast type.
    """
    device = geometry.main_distance.device.type
    with torch.autocast(device, enabled=False):
        kernels = _evaluate_kernels(bases, topology, geometry, collinear)
    if torch.is_autocast_enabled(device):
        reduced: Kernels = _cast(kernels, torch.get_autocast_dtype(device))
        return reduced
    return kernels


def _evaluate_kernels(bases: Bases, topology: Topology, geometry: Geometry, collinear: Collinear) -> Kernels:
    main, a2ee2a = topology.main_blocks, topology.a2ee2a_blocks
    radial = bases.radial_basis(geometry.main_distance)
    radial_a2ee2a = bases.radial_basis(geometry.a2ee2a_distance)
    triplets = [
        _triplet_kernels(bases.num_spherical, *block)
        for block in zip(
            main.blocks(main.pad(geometry.main_vector)),
            a2ee2a.blocks(a2ee2a.pad(geometry.a2ee2a_vector)),
            topology.same_image,
            main.blocks(main.pad(bases.mlp_cbf_tint(radial))),
            main.blocks(main.pad(bases.mlp_cbf_aeint(radial))),
            a2ee2a.blocks(a2ee2a.pad(bases.mlp_cbf_eaint(radial_a2ee2a))),
            strict=True,
        )
    ]
    e2e, a2e, e2a = zip(*triplets, strict=True)
    pair_radial = sum_by_group(
        bases.mlp_rbf_aint(bases.radial_basis(geometry.a2a_distance)),
        topology.pair_of_a2a,
        topology.pair_source.shape[0],
    )
    pairs = topology.pair_blocks
    return Kernels(
        radial=radial,
        rad_e2e=bases.mlp_rbf_tint(radial),
        rad_qint=bases.mlp_rbf_qint(radial),
        rad_a2e=bases.mlp_rbf_aeint(radial_a2ee2a),
        rad_e2a=bases.mlp_rbf_eaint(radial),
        rad_atom_update=bases.mlp_rbf_h(radial),
        rad_output=bases.mlp_rbf_out(radial),
        e2e=e2e,
        a2e=a2e,
        e2a=e2a,
        a2a=tuple(block.transpose(1, 2) for block in pairs.blocks(pairs.pad(pair_radial))),
        quads=_quadruplet_kernels(bases, topology.quads, geometry, radial, collinear) if topology.quads else None,
    )


def _triplet_kernels(
    orders: int,
    vectors: Tensor,
    inner_vectors: Tensor,
    same_image: Tensor,
    tint: Tensor,
    aeint: Tensor,
    eaint: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Coefficients of edge → edge, atom → edge and edge → atom messages in one block of atoms."""
    e2e_angles = legendre_basis(pairwise_cosines(vectors, vectors), orders)
    itself = torch.eye(vectors.shape[1], dtype=torch.bool, device=vectors.device)[None, :, :, None]
    e2e_angles = e2e_angles.masked_fill(itself, 0.0)
    mixed_angles = legendre_basis(pairwise_cosines(vectors, inner_vectors), orders)
    mixed_angles = mixed_angles.masked_fill(same_image[..., None], 0.0)
    e2a = torch.einsum("ndks,nkis->nid", mixed_angles, eaint)
    return edge_kernel(tint, e2e_angles), edge_kernel(aeint, mixed_angles), e2a


def _cast(kernels: Any, dtype: torch.dtype) -> Any:
    """The same with all tensors of another floating-point type."""
    changed = {}
    for item in fields(kernels):
        value = getattr(kernels, item.name)
        if is_dataclass(value):
            changed[item.name] = _cast(value, dtype)
        elif isinstance(value, tuple):
            changed[item.name] = tuple(block.to(dtype) for block in value)
        elif isinstance(value, Tensor) and value.is_floating_point():
            changed[item.name] = value.to(dtype)
    return replace(kernels, **changed)


def edge_kernel(projected: Tensor, angles: Tensor) -> Tensor:
    """Contract radial and angular halves, (N, D, q, S) with (N, D, D_in, S) to (N, D·q, D_in)."""
    groups, width, out, orders = projected.shape
    inner = angles.shape[2]
    kernel = torch.bmm(projected.reshape(-1, out, orders), angles.reshape(-1, inner, orders).transpose(1, 2))
    return kernel.view(groups, width * out, inner)


def _quadruplet_kernels(
    bases: Bases,
    quads: QuadrupletTopology,
    geometry: Geometry,
    radial: Tensor,
    collinear: Collinear,
) -> QuadrupletKernels:
    orders = bases.num_spherical
    axes = geometry.qint_vector
    frames = axis_frames(axes)

    inner_vectors = quads.input_layout.pad(geometry.main_vector[quads.input_edges])[quads.source_row]
    inner_angles = legendre_basis(cosines(inner_vectors, axes[:, None]), orders)
    circular = inner_angles @ bases.mlp_cbf_qint(bases.radial_basis(geometry.qint_distance)).transpose(1, 2)
    inner = azimuths(inner_vectors, (frames[0][:, None], frames[1][:, None]), orders)
    input_terms = dihedral_input_terms(inner) * quads.input_mask[..., None].to(radial.dtype)

    layout = quads.output_layout
    closing_at, closes = _closing_edges(quads)
    outer = [
        _outer_side(bases, axes, frames, *block)
        for block in zip(
            layout.blocks(layout.pad(pick(radial, quads.output_edges))),
            layout.blocks(layout.pad(pick(geometry.main_vector, quads.output_edges))),
            layout.blocks(layout.pad(quads.qint_of_output)),
            layout.blocks(layout.pad(quads.output_mask)),
            layout.blocks(inner.collinear.reshape(-1)[closing_at]),
            layout.blocks(closes),
            strict=True,
        )
    ]
    single = None
    if collinear == "as_computed" or radial.dtype == torch.float64:
        vectors = inner_vectors, axes, geometry.main_vector[quads.output_edges][:, None]
        spherical, outer_azimuths = _on_edges(layout, outer)
        single = single_terms(quads, spherical, vectors, inner, outer_azimuths, collinear=collinear)
    return QuadrupletKernels(
        circular=circular,
        input_terms=input_terms.transpose(1, 2),
        output=tuple(side.kernel for side in outer),
        closing=torch.cat([side.closing for side in outer]),
        single=single,
    )


@dataclass(frozen=True)
class _OuterSide:
    """What belongs to the places (main edge c→a, qint slot) of one block of n atoms with D main edges each.

    Attributes:
        kernel, closing: see `QuadrupletKernels`.
        spherical: (n·D, Dq, w, S) what multiplies the dihedral basis.
        azimuths: of c, (n·D, Dq).
    """

    kernel: Tensor
    closing: Tensor
    spherical: Tensor
    azimuths: Azimuths


def _outer_side(
    bases: Bases,
    axes: Tensor,
    frames: tuple[Tensor, Tensor],
    radial: Tensor,
    vectors: Tensor,
    qint: Tensor,
    mask: Tensor,
    closing_collinear: Tensor,
    closes: Tensor,
) -> _OuterSide:
    """Contract the outer angles of one block; after `frames`, all arguments are its (n, D, …) places."""
    orders = bases.num_spherical
    groups, _, num_slots = qint.shape
    at, outward = qint.flatten(0, 1), vectors.view(-1, 1, 3)
    angles = legendre_basis(cosines(outward, axes[at]), orders) * mask.view(*at.shape, 1).to(radial.dtype)
    spherical = angles @ bases.mlp_sbf_qint.split_outer(radial.flatten(0, 1), orders)
    spherical = spherical.view(*at.shape, -1, orders)
    azimuth = azimuths(outward, (frames[0][at], frames[1][at]), orders)

    # The separated sums contain d = c, the closing edge, with dihedral 0, or π/2 where a, b, c are collinear.
    cosine = (~(closing_collinear.view(at.shape) | azimuth.collinear)).to(radial.dtype)
    itself = legendre_basis(cosine, orders) * closes.view(*at.shape, 1).to(radial.dtype)
    terms = spherical @ torch.cat([dihedral_output_terms(azimuth, orders), itself[..., None]], dim=-1)
    outer, closing = torch.split(terms, [2 * orders, 1], dim=-1)
    kernel = outer.transpose(1, 2).reshape(groups, -1, num_slots * 2 * orders)
    # Batched products with a factor or a result in any other layout are done one matrix at a time.
    return _OuterSide(kernel, closing.squeeze(-1).transpose(1, 2).contiguous(), spherical, azimuth)


def _closing_edges(quads: QuadrupletTopology) -> tuple[Tensor, Tensor]:
    """For all (output places, Dq): flat place (qint edge, input slot) of the edge that closes, and whether one does."""
    shape = quads.output_layout.num_slots, quads.slots.width
    at = spread(quads.closing_input, quads.closing_place, shape[0] * shape[1])
    return at.view(shape), marked(quads.closing_place, len(at)).view(shape)


def _on_edges(layout: BlockedLayout, sides: Sequence[_OuterSide]) -> tuple[Tensor, Azimuths]:
    """Spherical coefficients and azimuths of all blocks, for each output edge."""

    def join(parts: Iterable[Tensor]) -> Tensor:
        return layout.unpad(torch.cat(list(parts)))

    azimuth = Azimuths(
        terms=join(side.azimuths.terms for side in sides),
        collinear=join(side.azimuths.collinear for side in sides),
        sine_square=join(side.azimuths.sine_square for side in sides),
    )
    return join(side.spherical for side in sides), azimuth
