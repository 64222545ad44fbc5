"""`load_model`: structures in, energies in eV and forces in eV/Å out."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from torch_geometric.data import Batch, Data

from jmp_data import Structure
from jmp_data.errors import CheckpointError, InvalidStructureError, MissingFileError
from jmp_model import load_model
from jmp_model.inference import JMPModel, UntrainedElementWarning
from jmp_model.model import PretrainingModel
from jmp_model.train.checkpoint import read_checkpoint
from tests.jmp_model.gemnet_oc.structures import make_inputs, some_crystal, some_molecule, some_slab
from tests.jmp_model.tiny_checkpoints import REFERENCES, STD, write_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="module")
def model(folder: Path) -> JMPModel:
    return load_model(folder, task="molecules", dtype=torch.float64)


def test_energies_are_undone_from_what_the_heads_give(folder: Path, model: JMPModel) -> None:
    checkpoint = read_checkpoint(folder)
    core = PretrainingModel(checkpoint.backbone, tasks=checkpoint.tasks).double().eval()
    core.load_state_dict(checkpoint.weights())
    structures = [some_molecule(1), some_molecule(2, "CH3OH")]
    raw = core(make_inputs(structures))
    out = model(structures)
    references = [sum(REFERENCES["molecules"][z] for z in atoms.numbers) for atoms in structures]
    assert out["energy"].dtype == torch.float64
    assert out["energy"].numpy() == pytest.approx(raw.energy[:, 0].detach().numpy() * STD + references, rel=1e-13)
    assert out["forces"].numpy() == pytest.approx(raw.forces[:, :, 0].detach().numpy() * 0.5, rel=1e-9, abs=1e-12)


def as_data(atoms: Atoms) -> Data:
    return Data(
        pos=torch.as_tensor(atoms.positions),
        atomic_numbers=torch.as_tensor(atoms.numbers),
        cell=torch.as_tensor(np.asarray(atoms.cell))[None],
        pbc=torch.as_tensor(atoms.pbc)[None],
        natoms=len(atoms),
        tags=torch.as_tensor(atoms.get_tags() if atoms.has("tags") else np.full(len(atoms), 2)),
    )


@pytest.mark.filterwarnings("ignore::jmp_model.inference.UntrainedElementWarning")
def test_all_kinds_of_input_give_the_same(model: JMPModel) -> None:
    atoms = [some_molecule(1), some_crystal(2), some_slab(3)]
    expected = model(atoms)
    structures = [
        Structure(
            atomic_numbers=a.numbers,
            positions=a.positions,
            cell=np.asarray(a.cell) if a.pbc.any() else None,
            pbc=a.pbc,
            tags=a.get_tags() if a.has("tags") else None,
        )
        for a in atoms
    ]
    for other in (structures, Batch.from_data_list([as_data(a) for a in atoms])):
        out = model(other)
        # Structures keep positions in single precision.
        assert torch.allclose(out["energy"], expected["energy"], rtol=1e-6)
        assert torch.allclose(out["forces"], expected["forces"], rtol=1e-3, atol=1e-5)
    alone = [model(a) for a in atoms]
    assert torch.allclose(torch.cat([one["energy"] for one in alone]), expected["energy"], rtol=1e-12)
    assert torch.allclose(model(as_data(atoms[0]))["energy"], alone[0]["energy"], rtol=1e-12)


def test_predict_streams_in_batches(model: JMPModel) -> None:
    structures = [some_molecule(i, name) for i, name in enumerate(("H2O", "CH4", "CH3OH", "C2H6", "CO"))]
    whole = model(structures)
    found = list(model.predict(iter(structures), batch_size=2))
    assert [entry["energy"] for entry in found] == pytest.approx(whole["energy"].tolist(), rel=1e-12)
    assert np.concatenate([entry["forces"] for entry in found]) == pytest.approx(whole["forces"].numpy(), abs=1e-10)
    assert isinstance(found[0]["energy"], float)
    with pytest.raises(ValueError, match="batch_size is 0"):
        next(model.predict(structures, batch_size=0))
    assert found[1]["forces"].shape == (5, 3)


def test_inference_mode_of_the_caller_does_not_matter(folder: Path) -> None:
    gradient = load_model(folder, task="molecules", forces="gradient")
    with torch.inference_mode():
        inside = gradient(some_molecule(1))["forces"]
    assert torch.allclose(inside, gradient(some_molecule(1))["forces"])
    assert not inside.requires_grad


def test_stress_only_of_gradients(model: JMPModel, folder: Path) -> None:
    with pytest.raises(CheckpointError, match="directly"):
        model(some_molecule(1), stress=True)
    gradient = load_model(folder, task="metals", forces="gradient")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UntrainedElementWarning)
        stress = gradient([some_crystal(1), some_molecule(1)], stress=True)["stress"]
    assert stress[0].isfinite().all()
    assert torch.allclose(stress[0], stress[0].T)
    assert stress[1].isnan().all()


def test_elements_never_trained_are_named(model: JMPModel) -> None:
    with pytest.warns(UntrainedElementWarning, match="Cl, Og: never occurred"):
        out = model(Atoms("ClOg", [[0, 0, 0], [0, 0, 2.0]]))
    assert out["energy"].isfinite().all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(molecule("H2O"))


def test_elements_without_a_symbol_have_their_number(model: JMPModel) -> None:
    """Embeddings go up to 120, symbols to 118."""
    data = Data(pos=torch.tensor([[0.0, 0, 0], [0, 0, 1.5]]), atomic_numbers=torch.tensor([8, 120]), natoms=2)
    with pytest.warns(UntrainedElementWarning, match="Z=120: never occurred"):
        assert model(data)["energy"].isfinite().all()
    data.atomic_numbers[1] = 121
    with pytest.warns(UntrainedElementWarning), pytest.raises(InvalidStructureError, match="121"):
        model(data)


def test_where_a_structure_lies_does_not_matter_in_single_precision(folder: Path) -> None:
    single = load_model(folder, task="molecules", forces="gradient")
    here = some_molecule(1)
    far = here.copy()
    far.positions += [1e5, -3e4, 2e5]
    assert torch.allclose(single(far)["forces"], single(here)["forces"], rtol=1e-4, atol=1e-6)


def test_energies_without_references_are_said_to_be_relative(tmp_path: Path) -> None:
    bare = load_model(write_tiny(tmp_path / "bare", references=False), task="molecules")
    assert bare.find_task().energy_is_relative
    assert "energies are relative" in bare.find_task().remarks[0]


def test_a_task_must_be_chosen_where_there_are_several(folder: Path) -> None:
    undecided = load_model(folder)
    with pytest.raises(CheckpointError, match="choose one"):
        undecided(molecule("H2O"))
    with pytest.raises(CheckpointError, match="no heads for 'oxides'"):
        load_model(folder, task="oxides")
    assert undecided(molecule("H2O"), task="metals")["energy"].shape == (1,)


def test_nothing_and_nonsense_are_refused(model: JMPModel, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="nowhere"):
        load_model(tmp_path / "nowhere")
    for nonsense in ([], "H2O", 3):
        with pytest.raises(InvalidStructureError):
            model(nonsense)
    with pytest.raises(InvalidStructureError):
        model(Atoms("H", [[np.nan, 0, 0]]))
    with pytest.raises(InvalidStructureError, match="no atomic_numbers"):
        model(Data(pos=torch.zeros(2, 3), z=torch.ones(2)))
    mixed = Batch.from_data_list([as_data(molecule("CO")), as_data(molecule("CO"))])
    mixed.batch = torch.tensor([0, 1, 0, 1])
    with pytest.raises(InvalidStructureError, match="structure by structure"):
        model(mixed)


def test_half_precision_is_for_autocast(model: JMPModel, folder: Path) -> None:
    """Positions in half precision would be off by hundredths of an ångström."""
    with pytest.raises(ValueError, match="autocast"):
        load_model(folder, dtype=torch.bfloat16)
    single = load_model(folder, task="molecules")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = single(some_molecule(1))["forces"]
    assert torch.allclose(half, single(some_molecule(1))["forces"], atol=0.03 * float(half.abs().max()))


def test_missing_scale_factors_are_an_error(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = write_tiny(tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    name = next(name for name in weights if name.endswith("scale_factor"))
    weights[name] = torch.zeros(())
    save_file(weights, broken / "model.safetensors")
    state = json.loads((broken / "state.json").read_text())
    state["sha256"] = {}
    (broken / "state.json").write_text(json.dumps(state))
    with pytest.raises(CheckpointError):
        load_model(broken, task="molecules")
