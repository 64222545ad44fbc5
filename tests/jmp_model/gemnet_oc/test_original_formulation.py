"""The model against the original formulation, which lists every triplet and quadruplet: other sizes, other graphs."""

from __future__ import annotations

import pytest
import torch
from ase import Atoms

from benchmarks.reference_gemnet import ReferenceGemNet
from jmp_data.graphs import GraphSettings
from tests.jmp_model.gemnet_oc.structures import make_inputs, some_crystal, some_molecule, some_slab, tiny_model

CONFIGURATIONS: dict[str, dict[str, object]] = {
    "tiny": {},
    "equal widths": {"emb_size_atom": 24, "emb_size_edge": 24},
    "other orders": {"num_spherical": 4, "num_radial": 20, "envelope_exponent": 6},
    "deep": {"num_blocks": 3, "num_before_skip": 2, "num_after_skip": 0, "num_concat": 2, "num_atom": 2},
    "wide quadruplets": {"emb_size_quad_in": 13, "emb_size_quad_out": 11, "emb_size_sbf": 5, "emb_size_cbf": 3},
}


@pytest.mark.parametrize("changes", CONFIGURATIONS.values(), ids=CONFIGURATIONS.keys())
def test_outputs_and_gradients_agree(changes: dict[str, object]) -> None:
    model = tiny_model(5, **changes)
    inputs = make_inputs([some_molecule(1), some_slab(2), some_crystal(3), Atoms("H2", [[0, 0, 0], [0, 0, 0.7]])])
    ours, listed = model(inputs), ReferenceGemNet(model).eval()(inputs)
    gradients = []
    for energy, forces in (ours, listed):
        model.zero_grad()
        (energy.sum() + forces.square().sum()).backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for mine, theirs in zip(ours, listed, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10 * float(theirs.detach().abs().max()))
    assert len(gradients[0]) == len(gradients[1]) == len(list(model.parameters()))
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-10 * float(theirs.abs().max()) + 1e-14)


@pytest.mark.parametrize("main", [5, 100])
def test_other_neighbour_counts_agree(main: int) -> None:
    model = tiny_model(6)
    inputs = make_inputs([some_slab(4), some_molecule(5)], settings=GraphSettings.from_main_count(main, 9.0))
    with torch.no_grad():
        ours, listed = model(inputs), ReferenceGemNet(model).eval()(inputs)
    for mine, theirs in zip(ours, listed, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11 * float(theirs.abs().max()))
