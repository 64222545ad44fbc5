"""Symmetries that energies and forces must have, and the derivatives that gradient forces must be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from scipy.spatial.transform import Rotation

from jmp_data.graphs import GraphSettings
from jmp_model.gemnet_oc.graphs import ModelInputs
from jmp_model.heads.finetuning import EnergyHead
from jmp_model.model import FineTuningModel, Predictions, PretrainingModel
from tests.jmp_model.gemnet_oc.structures import (
    make_inputs,
    rattled,
    some_crystal,
    some_molecule,
    some_slab,
    tiny_model,
)

TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5}
STRUCTURES = {"molecule": some_molecule, "crystal": some_crystal, "slab": some_slab}


def predict(model: PretrainingModel, *structures: Atoms, settings: GraphSettings | None = None) -> Predictions:
    dtype = next(model.parameters()).dtype
    with torch.no_grad():
        out: Predictions = model(make_inputs(structures, dtype=dtype, settings=settings))
    return out


def assert_close(ours: torch.Tensor, expected: torch.Tensor, scale: torch.Tensor | None = None) -> None:
    size = (expected if scale is None else scale).abs().max()
    assert (ours - expected).abs().max() <= TOLERANCE[ours.dtype] * size


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", STRUCTURES)
def test_rotating_turns_forces_and_leaves_energies(kind: str, dtype: torch.dtype) -> None:
    model = tiny_model(dtype=dtype)
    atoms = STRUCTURES[kind](3)
    rotation = Rotation.random(rng=np.random.default_rng(5)).as_matrix()
    turned = Atoms(atoms.numbers, atoms.positions @ rotation.T, cell=np.asarray(atoms.cell) @ rotation.T, pbc=atoms.pbc)
    turned.set_tags(atoms.get_tags() if atoms.has("tags") else np.full(len(atoms), 2))
    before, after = predict(model, atoms), predict(model, turned)
    assert_close(after.energy, before.energy)
    assert before.forces is not None
    assert after.forces is not None
    matrix = torch.as_tensor(rotation, dtype=dtype)
    assert_close(after.forces, torch.einsum("ij,njt->nit", matrix, before.forces))


@pytest.mark.parametrize("kind", STRUCTURES)
def test_reflecting_does_not_change_energies(kind: str) -> None:
    """Only cosines of angles enter, so mirror images are the same to this model."""
    model = tiny_model()
    atoms = STRUCTURES[kind](4)
    mirrored = atoms.copy()
    mirrored.set_cell(np.asarray(atoms.cell) * [-1, 1, 1])
    mirrored.positions[:, 0] *= -1
    assert_close(predict(model, mirrored).energy, predict(model, atoms).energy)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", STRUCTURES)
def test_translating_changes_nothing(kind: str, dtype: torch.dtype) -> None:
    model = tiny_model(dtype=dtype)
    atoms = STRUCTURES[kind](6)
    moved = atoms.copy()
    moved.positions += [3.125, -7.5, 0.25]
    before, after = predict(model, atoms), predict(model, moved)
    assert_close(after.energy, before.energy)
    assert before.forces is not None
    assert after.forces is not None
    assert_close(after.forces, before.forces)


@pytest.mark.parametrize("kind", ["crystal", "slab"])
def test_moving_atoms_by_lattice_vectors_changes_nothing(kind: str) -> None:
    model = tiny_model()
    atoms = STRUCTURES[kind](7)
    moved = atoms.copy()
    moved.positions += np.random.default_rng(1).integers(-3, 4, (len(atoms), 3)) @ np.asarray(atoms.cell)
    before, after = predict(model, atoms), predict(model, moved)
    assert_close(after.energy, before.energy)
    assert before.forces is not None
    assert after.forces is not None
    assert_close(after.forces, before.forces)


def permuted(atoms: Atoms, seed: int) -> tuple[Atoms, np.ndarray]:
    order = np.random.default_rng(seed).permutation(len(atoms))
    return atoms[order], order


@pytest.mark.parametrize("name", ["CH3CH2OH", "C6H6"])
def test_permuting_atoms_permutes_forces_where_nothing_is_truncated(name: str) -> None:
    model = tiny_model()
    atoms = some_molecule(8, name)
    shuffled, order = permuted(atoms, 2)
    settings = GraphSettings(cutoff=8.0, main=30, a2ee2a=30, qint=30, a2a=1000)
    before, after = predict(model, atoms, settings=settings), predict(model, shuffled, settings=settings)
    assert_close(after.energy, before.energy)
    assert before.forces is not None
    assert after.forces is not None
    assert_close(after.forces, before.forces[order])


@pytest.mark.parametrize("kind", ["crystal", "slab"])
def test_symmetric_rule_makes_truncated_graphs_independent_of_atom_order(kind: str) -> None:
    atoms = STRUCTURES[kind](9)
    shuffled, order = permuted(atoms, 3)
    symmetric = tiny_model(symmetrization="symmetric")
    before, after = predict(symmetric, atoms), predict(symmetric, shuffled)
    assert_close(after.energy, before.energy)
    assert before.forces is not None
    assert after.forces is not None
    assert_close(after.forces, before.forces[order])


def test_reference_rule_depends_on_atom_order_where_truncation_acts() -> None:
    """The original's rule, kept for its weights: this is the price, see docs/physics.md for its size."""
    model = tiny_model()
    atoms = some_slab(9)
    shuffled, _ = permuted(atoms, 3)
    before, after = predict(model, atoms).energy, predict(model, shuffled).energy
    assert (after - before).abs().max() > 1e-9 * before.abs().max()


def test_a_batch_of_many_is_many_batches_of_one() -> None:
    model = tiny_model()
    structures = [some_molecule(1), some_crystal(2), some_slab(3), Atoms("H"), molecule("H2"), some_molecule(4, "C6H6")]
    together = predict(model, *structures)
    apart = [predict(model, atoms) for atoms in structures]
    assert_close(together.energy, torch.cat([p.energy for p in apart]))
    assert together.forces is not None
    assert_close(together.forces, torch.cat([p.forces for p in apart if p.forces is not None]))


def energy_model(**changes: object) -> FineTuningModel:
    pretrained = tiny_model(direct_forces=False, edge_dropout=0.0, **changes)
    torch.manual_seed(1)
    model = FineTuningModel(
        pretrained.config, {"energy": EnergyHead(pretrained.config)}, forces_from_gradient=True
    ).double()
    model.load_state_dict(pretrained.state_dict(), strict=False)
    return model.eval()


@pytest.mark.parametrize("symmetrization", ["reference", "symmetric"])
@pytest.mark.parametrize("kind", STRUCTURES)
def test_gradient_forces_are_finite_differences(kind: str, symmetrization: str) -> None:
    model = energy_model(symmetrization=symmetrization)
    inputs = make_inputs([STRUCTURES[kind](10)])
    forces = model(inputs)["forces"]
    step = 5e-4
    for atom, axis in [(0, 0), (1, 2)]:
        numeric = 0.0
        for steps, weight in ((1, 8 / 12), (-1, -8 / 12), (2, -1 / 12), (-2, 1 / 12)):
            positions = inputs.positions.clone()
            positions[atom, axis] += steps * step
            moved = ModelInputs(**{**inputs.__dict__, "positions": positions})
            numeric -= weight * float(model(moved)["energy"].sum()) / step
        assert abs(numeric - float(forces[atom, axis])) < 1e-8 * float(forces.abs().max())


def test_second_derivatives_are_right() -> None:
    """Force losses differentiate forces, so every custom backward must itself be differentiable."""
    model = energy_model().train()
    inputs = make_inputs([some_molecule(11, "H2O"), some_molecule(12, "CH3OH")])
    parameter = model.backbone.int_blocks[0].quad_interaction.mlp_sbf.bilinear.linear.weight
    direction = torch.randn(parameter.shape, dtype=parameter.dtype, generator=torch.Generator().manual_seed(0))

    def loss() -> torch.Tensor:
        value: torch.Tensor = (model(inputs)["forces"] ** 2).sum()
        return value

    loss().backward()
    assert parameter.grad is not None
    analytic = float((parameter.grad * direction).sum())
    step = 1e-5
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            parameter += sign * step * direction
        values.append(float(loss().detach()))
        with torch.no_grad():
            parameter -= sign * step * direction
    assert analytic == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-6)


def test_net_gradient_force_vanishes() -> None:
    model = energy_model()
    forces = model(make_inputs([some_slab(13)]))["forces"]
    assert forces.sum(0).abs().max() < 1e-12 * max(1.0, float(forces.abs().max()))


IDEAL = {
    "fcc": bulk("Cu", "fcc", a=3.625),
    "bcc": bulk("Fe", "bcc", a=2.875, cubic=True),
    "rocksalt": bulk("NaCl", "rocksalt", a=5.625, cubic=True),
    "diamond": bulk("Si", "diamond", a=5.4375),
    "CO2": molecule("CO2"),
    "C2H2": molecule("C2H2"),
}


@pytest.mark.parametrize("name", IDEAL)
def test_ideal_structures_are_the_same_in_single_and_double_precision(name: str) -> None:
    """Collinear atoms have a defined dihedral, so exact lattices are no noisier than others."""
    double, single = tiny_model(3), tiny_model(3, dtype=torch.float32)
    exact = predict(double, IDEAL[name])
    rounded = predict(single, IDEAL[name])
    assert exact.forces is not None
    assert rounded.forces is not None
    size = exact.energy.abs().max()
    assert (rounded.energy.double() - exact.energy).abs().max() < 2e-5 * size
    # Forces of ideal lattices nearly cancel: judge them by what is summed, of the order of the energy per edge.
    assert (rounded.forces.double() - exact.forces).abs().max() < 2e-5 * max(exact.forces.abs().max(), size / 10)


def test_gradients_at_collinear_atoms_are_finite() -> None:
    model = energy_model().train()
    out = model(make_inputs([IDEAL["C2H2"], IDEAL["CO2"], IDEAL["fcc"]]))
    (out["forces"].square().sum() + out["energy"].sum()).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert all(bool(g.isfinite().all()) for g in gradients)


def test_rattled_copies_differ() -> None:
    model = tiny_model()
    first, second = predict(model, some_crystal(1)), predict(model, rattled(some_crystal(1), 2))
    assert (first.energy - second.energy).abs().max() > 1e-6
