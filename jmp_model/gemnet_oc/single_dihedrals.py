"""Single quadruplets whose dihedral the original computes otherwise than the difference of two azimuths.

Its formula is cos θ = x/√(x² + y²) with x = n₁·n₂ and y = max(|n₁×n₂|, 1e-9), the normals having the lengths of the
sines of both angles. Where the four atoms lie in one plane (images of one atom along the axis always do) y is clamped,
and cos θ falls short of ±1 by ½(1e-9/x)²: nothing as a rule, but 1e-9 where both sines are 0.005. Where an atom lies
on the axis, x and y are rounding.

Double precision shows this, single precision does not. So the few quadruplets concerned are looked up in double
precision, among those with an atom near the axis, and what the original has beyond the separated sums is added.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jmp_model.gemnet_oc.angular import CLAMP, Azimuths, dihedral_angles, legendre_basis
from jmp_model.gemnet_oc.config import Collinear
from jmp_model.gemnet_oc.ragged import GroupCounts, PaddedLayout
from jmp_model.gemnet_oc.topology import QuadrupletTopology

NEAR_SINE = 0.1
"""With both sines above this, the clamp changes cos θ by less than 1e-14."""


@dataclass(frozen=True)
class SingleTerms:
    """Corrections of single quadruplets.

    Attributes:
        output_row: (n,) row of c→a in `output_edges`.
        input_place: (n,) flat place (qint edge, input slot) of d→b.
        coefficient: (n, w).
    """

    output_row: Tensor
    input_place: Tensor
    coefficient: Tensor


def single_terms(
    quads: QuadrupletTopology,
    spherical: Tensor,
    vectors: tuple[Tensor, Tensor, Tensor],
    inner: Azimuths,
    outer: Azimuths,
    *,
    collinear: Collinear,
) -> SingleTerms:
    """Find the quadruplets and evaluate the original's formula on them, minus what the separated sums contain.

    Args:
        quads: index structure.
        spherical: (Eo, Dq, w, S) what multiplies the dihedral basis of each place.
        vectors: V_db (Q, D_in, 3), V_ba (Q, 3) and V_ca (Eo, 1, 3).
        inner, outer: azimuths of d and c about the axes.
        collinear: whether to follow the formula also where an atom lies on the axis.
    """
    row, place, slot = _near_axis(quads, inner, outer)
    db, ba, ca = vectors
    qint = quads.qint_of_output[row, place]
    on_axis = outer.collinear[row, place] | inner.collinear[qint, slot]
    normals = [torch.linalg.cross(v.detach(), ba.detach()[qint]) for v in (ca[row, 0], db[qint, slot])]
    chosen = torch.linalg.cross(*normals).norm(dim=-1) < CLAMP
    chosen = chosen | on_axis if collinear == "as_computed" else chosen & ~on_axis
    row, place, slot, qint = row[chosen], place[chosen], slot[chosen], qint[chosen]

    exact = torch.cos(dihedral_angles(*(torch.linalg.cross(v, ba[qint]) for v in (ca[row, 0], db[qint, slot]))))
    # Terms 1 and 2 are cos φ and sin φ, both zero on the axis: a right angle, as in the separated sums.
    separated = (outer.terms[row, place, 1:3] * inner.terms[qint, slot, 1:3]).sum(-1)
    orders = spherical.shape[-1]
    change = legendre_basis(exact, orders) - legendre_basis(separated, orders)
    coefficient = (spherical[row, place] * change[:, None]).sum(-1)
    return SingleTerms(row, qint * inner.collinear.shape[1] + slot, coefficient)


def _near_axis(quads: QuadrupletTopology, inner: Azimuths, outer: Azimuths) -> tuple[Tensor, Tensor, Tensor]:
    """Quadruplets with c or d near the axis: row of c→a, slot of b→a at a, slot of d→b at b, each (n,)."""
    near_outer = (outer.sine_square < NEAR_SINE**2) & quads.output_mask
    near_inner = (inner.sine_square < NEAR_SINE**2) & quads.input_mask

    row, place = torch.nonzero(near_outer, as_tuple=True)
    first, slot = torch.nonzero(quads.input_mask[quads.qint_of_output[row, place]], as_tuple=True)
    found = [(row[first], place[first], slot)]

    qint, slot = torch.nonzero(near_inner, as_tuple=True)
    atom = torch.div(quads.slots.slot[qint], quads.slots.width, rounding_mode="floor")
    place = quads.slots.slot[qint] % quads.slots.width
    counts = GroupCounts.of(quads.output_row, quads.slots.num_groups)
    table = PaddedLayout.of(quads.output_row, counts).table()[atom]
    second, column = torch.nonzero(table >= 0, as_tuple=True)
    row, place, slot = table[second, column], place[second], slot[second]
    other = quads.output_mask[row, place] & ~near_outer[row, place]
    found.append((row[other], place[other], slot[other]))

    row, place, slot = (torch.cat(parts) for parts in zip(*found, strict=True))
    width = quads.input_layout.width
    closing = quads.closing_edge * width + quads.closing_input % width
    kept = ~torch.isin((row * quads.slots.width + place) * width + slot, closing)
    return row[kept], place[kept], slot[kept]
