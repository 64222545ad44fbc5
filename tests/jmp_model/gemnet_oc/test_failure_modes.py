"""Structures on which implementations of this model are known to fail (fairchem#426, #524, #1101)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import fcc111, molecule

from jmp_data.errors import InvalidStructureError
from jmp_data.graphs import GraphSettings
from jmp_model.gemnet_oc.graphs import EdgeSet, Graphs, ModelInputs
from jmp_model.gemnet_oc.topology import build_topology
from tests.jmp_model.gemnet_oc.structures import make_inputs, some_molecule, some_slab, tiny_model

SMALL = {
    "atom": Atoms("H"),
    "H2": molecule("H2"),
    "H2O": molecule("H2O"),
    "CO2": molecule("CO2"),
    "isolated pair": Atoms("He2", positions=[[0, 0, 0], [0, 0, 50.0]]),
    "atom in a large cell": Atoms("O", cell=[30, 30, 30], pbc=True),
    "atom in a small cell": Atoms("Cu", cell=[[0, 1.8, 1.8], [1.8, 0, 1.8], [1.8, 1.8, 0]], pbc=True),
}


@pytest.mark.parametrize("name", SMALL)
def test_small_structures_give_finite_outputs_and_gradients(name: str) -> None:
    model = tiny_model().train()
    energy, forces = model(make_inputs([SMALL[name]]))
    (energy.square().sum() + forces.square().sum()).backward()
    assert energy.isfinite().all()
    assert forces.isfinite().all()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", ["atom", "isolated pair", "atom in a large cell"])
def test_atoms_without_neighbours_feel_no_force(name: str) -> None:
    _, forces = tiny_model()(make_inputs([SMALL[name]]))
    assert (forces == 0).all()


def test_a_slab_with_all_tags_zero_has_no_quadruplets() -> None:
    slab = some_slab(1)
    slab.set_tags(np.zeros(len(slab)))
    inputs = make_inputs([slab])
    assert inputs.graphs.qint.num_edges == 0
    energy, forces = tiny_model()(inputs)
    assert energy.isfinite().all()
    assert forces.isfinite().all()


def test_quadruplet_edges_may_end_where_no_main_edge_does() -> None:
    slab = fcc111("Cu", (5, 5, 2), vacuum=12.0)
    slab.set_tags(0)
    adsorbate = Atoms("Ar", [[2.0, 2.0, slab.positions[:, 2].max() + 7.0]], tags=[2], cell=slab.cell, pbc=True)
    inputs = make_inputs([adsorbate + slab])
    targets = inputs.graphs.qint.edge_index[1].unique()
    assert not torch.isin(inputs.graphs.main.edge_index[0], targets).any()
    energy, forces = tiny_model()(inputs)
    assert energy.isfinite().all()
    assert forces.isfinite().all()


@pytest.mark.parametrize("empty", ["main", "a2a", "a2ee2a", "qint"])
def test_one_structure_of_a_batch_may_have_no_edges_in_one_graph(empty: str) -> None:
    inputs = make_inputs([some_molecule(1), some_molecule(2, "CH3OH")])
    sets = {}
    for name in ("main", "a2a", "a2ee2a", "qint"):
        edges: EdgeSet = getattr(inputs.graphs, name)
        keep = edges.edge_index[1] >= 9 if name == empty else torch.ones(edges.num_edges, dtype=torch.bool)
        sets[name] = EdgeSet(edges.edge_index[:, keep], edges.cell_offsets[keep])
    model = tiny_model()
    thinned = ModelInputs(**{**inputs.__dict__, "graphs": Graphs(**sets)})
    energy, forces = model(thinned)
    whole, whole_forces = model(inputs)
    assert energy.isfinite().all()
    assert (energy[0] - whole[0]).abs().max() > 1e-9
    assert torch.allclose(energy[1], whole[1], rtol=1e-12)
    assert torch.allclose(forces[9:], whole_forces[9:], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("number", [0, 121])
def test_elements_without_an_embedding_are_named(number: int) -> None:
    inputs = make_inputs([some_molecule(1)])
    inputs.atomic_numbers[3] = number
    with pytest.raises(InvalidStructureError, match=str(number)):
        tiny_model()(inputs)


def test_heavy_elements_have_embeddings() -> None:
    inputs = make_inputs([some_molecule(1)])
    inputs.atomic_numbers[3] = 120
    energy, _ = tiny_model()(inputs)
    assert energy.isfinite().all()


def test_edge_order_does_not_matter() -> None:
    inputs = make_inputs([some_molecule(1), some_slab(2)])
    shuffled = {}
    for name in ("main", "a2a", "a2ee2a", "qint"):
        edges: EdgeSet = getattr(inputs.graphs, name)
        order = torch.randperm(edges.num_edges, generator=torch.Generator().manual_seed(0))
        shuffled[name] = EdgeSet(edges.edge_index[:, order].int(), edges.cell_offsets[order].int())
    model = tiny_model()
    before = model(inputs)
    after = model(ModelInputs(**{**inputs.__dict__, "graphs": Graphs(**shuffled)}))
    assert torch.allclose(after.energy, before.energy, rtol=1e-12)
    assert torch.allclose(after.forces, before.forces, rtol=1e-10, atol=1e-13)


def test_edges_to_missing_atoms_are_refused() -> None:
    inputs = make_inputs([some_molecule(1)])
    graphs = Graphs(
        main=EdgeSet(inputs.graphs.main.edge_index + 1, inputs.graphs.main.cell_offsets),
        a2a=inputs.graphs.a2a,
        a2ee2a=inputs.graphs.a2ee2a,
        qint=inputs.graphs.qint,
    )
    with pytest.raises(InvalidStructureError, match="main edges name atom 9"):
        build_topology(graphs, 9)


def test_transposed_edges_are_refused() -> None:
    with pytest.raises(InvalidStructureError, match="edge_index"):
        EdgeSet(torch.zeros(5, 2), torch.zeros(5, 3))


def test_absurd_cell_offsets_are_refused() -> None:
    inputs = make_inputs([some_slab(1)])
    far = EdgeSet(inputs.graphs.a2a.edge_index, inputs.graphs.a2a.cell_offsets * 1000)
    graphs = Graphs(main=inputs.graphs.main, a2a=far, a2ee2a=inputs.graphs.a2ee2a, qint=inputs.graphs.qint)
    with pytest.raises(InvalidStructureError, match="wrap the positions"):
        build_topology(graphs, 12)


def test_many_neighbours_and_few() -> None:
    """A wide graph next to a lone atom: padding must not leak between them."""
    model = tiny_model()
    settings = GraphSettings.from_main_count(100, 12.0)
    slab = some_slab(3)
    alone = model(make_inputs([slab], settings=settings)).energy
    together = model(make_inputs([Atoms("H"), slab, molecule("H2")], settings=settings)).energy
    assert torch.allclose(together[1:2], alone, rtol=1e-12)
