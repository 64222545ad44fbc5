"""Heads against sums written out by hand, and whole models around them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase.build import molecule
from torch_geometric.data import Batch, Data

from jmp_data.errors import InvalidStructureError
from jmp_data.graphs import attach_graphs
from jmp_model.gemnet_oc.backbone import BackboneOutput
from jmp_model.gemnet_oc.graphs import ModelInputs
from jmp_model.heads.finetuning import (
    EnergyHead,
    GraphClassificationHead,
    GraphScalarHead,
    NodeVectorHead,
    SpatialExtentHead,
)
from jmp_model.model import FineTuningModel
from tests.jmp_model.gemnet_oc.structures import make_inputs, some_molecule, tiny_model


@pytest.fixture(scope="module")
def inputs() -> ModelInputs:
    return make_inputs([some_molecule(1), some_molecule(2, "H2O"), some_molecule(3, "CH3OH")])


@pytest.fixture(scope="module")
def features(inputs: ModelInputs) -> BackboneOutput:
    model = tiny_model()
    with torch.no_grad():
        out: BackboneOutput = model.backbone(model.embedding(inputs.atomic_numbers), inputs)
    return out


@pytest.mark.parametrize(("reduction", "reduce"), [("sum", np.sum), ("mean", np.mean), ("max", np.max)])
def test_scalar_heads_reduce_over_each_structure(
    features: BackboneOutput, inputs: ModelInputs, reduction: str, reduce: object
) -> None:
    head = GraphScalarHead(tiny_model().config, reduction=reduction).double()  # type: ignore[arg-type]
    per_atom = head.out_mlp(features.atom_features).detach().numpy()[:, 0]
    expected = [reduce(per_atom[inputs.batch.numpy() == b]) for b in range(3)]  # type: ignore[operator]
    np.testing.assert_allclose(head(features, inputs).detach().numpy(), expected, rtol=1e-12)


def test_biases_are_where_the_published_heads_have_them() -> None:
    config = tiny_model().config
    scalar = [name for name, _ in GraphScalarHead(config).named_parameters()]
    assert [n for n in scalar if n.endswith("bias")] == [f"out_mlp.{i}.bias" for i in (0, 2, 4, 6)]
    assert not any(name.endswith("bias") for name, _ in EnergyHead(config).named_parameters())
    assert not any(name.endswith("bias") for name, _ in SpatialExtentHead(config).named_parameters())
    assert len(list(SpatialExtentHead(config).parameters())) == 6
    binary = dict(GraphClassificationHead(config).named_parameters())
    several = dict(GraphClassificationHead(config, num_classes=4).named_parameters())
    assert "out_mlp.8.bias" not in binary
    assert "out_mlp.8.bias" in several


def test_classification_shapes(features: BackboneOutput, inputs: ModelInputs) -> None:
    config = tiny_model().config
    assert GraphClassificationHead(config).double()(features, inputs).shape == (3,)
    assert GraphClassificationHead(config, num_classes=4).double()(features, inputs).shape == (3, 4)
    with pytest.raises(ValueError, match="2 classes"):
        GraphClassificationHead(config, num_classes=1)


def test_vector_head_sums_over_incoming_edges(features: BackboneOutput, inputs: ModelInputs) -> None:
    head = NodeVectorHead(tiny_model().config).double()
    assert features.edge_features is not None
    scalars = head.out_mlp(features.edge_features).detach()
    expected = np.zeros((len(inputs.positions), 3))
    np.add.at(expected, features.topology.main.target.numpy(), (scalars * features.vectors).numpy())
    np.testing.assert_allclose(head(features, inputs).detach().numpy(), expected, atol=1e-12)


def test_vector_head_needs_the_force_branch() -> None:
    with pytest.raises(ValueError, match="direct_forces"):
        NodeVectorHead(tiny_model(direct_forces=False).config)


def test_spatial_extent_is_about_the_centre_of_mass(features: BackboneOutput, inputs: ModelInputs) -> None:
    head = SpatialExtentHead(tiny_model().config).double()
    weights = head.scalar_mlp(features.atom_features).detach().numpy()[:, 0]
    expected = []
    for b in range(3):
        atoms = inputs.batch.numpy() == b
        structure = molecule("H2O")
        structure = type(structure)(inputs.atomic_numbers.numpy()[atoms], inputs.positions.numpy()[atoms])
        offsets = structure.positions - structure.get_center_of_mass()
        expected.append((weights[atoms] * (offsets**2).sum(1)).sum())
    np.testing.assert_allclose(head(features, inputs).detach().numpy(), expected, rtol=1e-6)


def test_gradient_model_gives_the_same_numbers_in_training_and_evaluation(inputs: ModelInputs) -> None:
    config = tiny_model(direct_forces=False, edge_dropout=0.0).config
    model = FineTuningModel(config, {"energy": EnergyHead(config)}, forces_from_gradient=True).double()
    model.load_state_dict(tiny_model(direct_forces=False).state_dict(), strict=False)
    trained = model.train()(inputs)
    with torch.no_grad():
        evaluated = model.eval()(inputs)
    assert trained["forces"].requires_grad
    assert not evaluated["forces"].requires_grad
    assert torch.allclose(trained["forces"], evaluated["forces"], rtol=1e-12)
    assert not inputs.positions.requires_grad


def test_two_sources_of_forces_are_refused() -> None:
    config = tiny_model().config
    heads = {"energy": EnergyHead(config), "forces": NodeVectorHead(config)}
    with pytest.raises(ValueError, match="not both"):
        FineTuningModel(config, heads, forces_from_gradient=True)
    with pytest.raises(ValueError, match="energy"):
        FineTuningModel(config, {"gap": GraphScalarHead(config)}, forces_from_gradient=True)


def test_geometric_batches_are_read(inputs: ModelInputs) -> None:
    data = [
        Data(
            pos=inputs.positions[inputs.batch == b],
            atomic_numbers=inputs.atomic_numbers[inputs.batch == b],
            cell=torch.zeros(1, 3, 3, dtype=torch.float64),
            pbc=torch.zeros(1, 3, dtype=torch.bool),
            natoms=int(inputs.natoms[b]),
            tags=torch.full((int(inputs.natoms[b]),), 2),
        )
        for b in range(3)
    ]
    batch = Batch.from_data_list(data)
    model = tiny_model()
    with pytest.raises(InvalidStructureError, match="attach_graphs"):
        model(batch)
    batch = attach_graphs(batch)
    assert torch.allclose(model(batch).energy, model(inputs).energy, rtol=1e-12)
    with pytest.raises(InvalidStructureError, match="ModelInputs"):
        model([1, 2, 3])


def test_evaluating_own_heads_only_gives_the_same_values_and_gradients(inputs: ModelInputs) -> None:
    model = tiny_model()
    tasks = torch.tensor([2, 0, 2])
    whole, own = model(inputs), model(inputs, task_index=tasks)
    mask = torch.nn.functional.one_hot(tasks, 4).double()
    atom_mask = mask[inputs.batch][:, None]
    torch.testing.assert_close(own.energy, whole.energy * mask)
    torch.testing.assert_close(own.forces, whole.forces * atom_mask)
    found = []
    for energy, forces in (own, (whole.energy * mask, whole.forces * atom_mask)):
        model.zero_grad()
        (energy.sum() + forces.square().sum()).backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() == dict(model.named_parameters()).keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-9, atol=1e-12)
    assert (found[0]["output.out_forces.1.0.weight"] == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_stays_close_and_returns_full_precision(inputs: ModelInputs, dtype: torch.dtype) -> None:
    model = tiny_model(dtype=torch.float32)
    inputs = inputs.with_dtype(torch.float32)
    exact = model(inputs)
    with torch.autocast("cpu", dtype):
        reduced = model(inputs)
    for mine, theirs in zip(reduced, exact, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - theirs).abs().max() < 0.05 * theirs.abs().max()
