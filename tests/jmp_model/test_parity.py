"""Agreement with the stored numbers of the original, whatever the files are called."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from jmp_data.errors import CheckpointError, MissingFileError, RawFileError
from jmp_model.parity import run_parity, run_parity_report
from tests.cli.run_cli import run_here as run
from tests.jmp_model.gemnet_oc.structures import some_crystal, some_molecule, some_slab, tiny_model
from tests.jmp_model.parity_folders import write_folder
from tests.shared import SHARED, needs_shared


@pytest.fixture(autouse=True)
def one_thread() -> object:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@needs_shared
@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-12), ("float32", 1e-5)])
def test_all_stored_numbers_are_reproduced(precision: str, tolerance: float) -> None:
    assert SHARED is not None
    report = run_parity_report(SHARED / "parity", precision)  # type: ignore[arg-type]
    worst = {(case, name): e for case, errors in report.cases.items() for name, e in errors.items() if e > tolerance}
    assert not worst
    assert {"slab", "ethanol", "molecules", "skewed", "dense", "mixed", "fcc_ties"} <= report.cases.keys()
    assert {"finetune_rmd17", "finetune_spice", "functions", "fitted_scales"} <= report.cases.keys()
    assert report.cases["slab"]["built_main_edges"] == 0.0
    assert len(report.cases["ethanol"]) >= 70
    assert report.skipped.keys() == {"fcc_ties"}


@needs_shared
def test_cases_are_found_by_what_they_hold(tmp_path: Path) -> None:
    assert SHARED is not None
    source = SHARED / "parity"
    for name in ("config.json", "pretrain_model.safetensors"):
        shutil.copy(source / name, tmp_path / name)
    shutil.copy(source / "skewed.npz", tmp_path / "some_crystal.npz")
    shutil.copy(source / "functions.npz", tmp_path / "grids.npz")
    extra = {"more": {"array": 0.5}}
    cases = run_parity(tmp_path, extra=[lambda directory, dtype: extra])
    assert cases.keys() == {"some_crystal", "grids", "more"}
    assert max(cases["some_crystal"].values()) < 1e-9


@needs_shared
def test_a_changed_weight_is_seen(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    assert SHARED is not None
    source = SHARED / "parity"
    shutil.copy(source / "config.json", tmp_path / "config.json")
    shutil.copy(source / "ethanol.npz", tmp_path / "ethanol.npz")
    weights = load_file(source / "pretrain_model.safetensors")
    weights["backbone.int_blocks.0.quad_interaction.scale_cbf.scale_factor"] *= 1.001
    save_file(weights, tmp_path / "pretrain_model.safetensors")
    errors = run_parity(tmp_path)["ethanol"]
    assert errors["int0_quad_interaction"] > 1e-6
    assert errors["energy"] > 1e-9
    assert errors["int0_trip_interaction"] < 1e-12


def test_a_directory_without_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"config\.json"):
        run_parity(tmp_path)


def test_a_configuration_without_an_entry_names_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"tasks": []}))
    with pytest.raises(RawFileError, match="backbone"):
        run_parity(tmp_path)


def one_atom_crystal() -> Atoms:
    """All neighbours are images of one atom, so every quadruplet with a self-image axis lies in a plane."""
    return Atoms("Pt", cell=[[2.6, 0.1, 0.0], [0.3, 2.9, 0.2], [-0.4, 0.5, 3.1]], pbc=True)


def buried_slab() -> Atoms:
    slab = some_slab(3)
    slab.set_tags(0)
    return slab


STRUCTURES = {
    "molecule": [some_molecule(1)],
    "batch of 3": [some_crystal(2), some_slab(3), some_molecule(4, "CH3OH")],
    "one atom cell": [one_atom_crystal()],
    "linear": [molecule("CO2"), molecule("H2")],
    "lone": [Atoms("He"), some_molecule(5, "H2O")],
    "buried": [buried_slab()],
}
OTHER_MODELS: dict[str, dict[str, object]] = {
    "equal widths": {"emb_size_atom": 20, "emb_size_edge": 20, "num_blocks": 1},
    "wide atoms": {"emb_size_atom": 32, "emb_size_edge": 24, "num_blocks": 3, "num_concat": 2, "num_atom": 2},
}


@pytest.mark.parametrize("changes", OTHER_MODELS.values(), ids=OTHER_MODELS.keys())
def test_other_models_structures_and_names(changes: dict[str, object], tmp_path: Path) -> None:
    write_folder(tmp_path, tiny_model(7, edge_dropout=0.1, **changes), STRUCTURES)
    report = run_parity_report(tmp_path)
    assert report.cases.keys() == STRUCTURES.keys()
    assert all({"energy", "forces", "energy_trainmode", "forces_trainmode"} <= e.keys() for e in report.cases.values())
    worst = {(case, name): e for case, errors in report.cases.items() for name, e in errors.items() if e > 1e-11}
    assert not worst
    assert report.cases["molecule"]["built_qint_edges"] == 0.0
    single = run_parity_report(tmp_path, "float32")
    assert single.max_error < 2e-5


def test_arrays_that_a_structure_can_do_without(tmp_path: Path) -> None:
    write_folder(tmp_path, tiny_model(8), {"whole": [some_molecule(1)], "cell": [some_crystal(1)]})
    for name, left_out in (
        ("whole", ("cell", "batch", "natoms", "tags", "periodic")),
        ("cell", ("natoms", "periodic")),
    ):
        with np.load(tmp_path / f"{name}.npz") as stored:
            arrays = {key: stored[key] for key in stored.files if key not in left_out}
        if name == "whole":
            arrays = {key: value for key, value in arrays.items() if not key.endswith(("_cell_offset", "_distance"))}
        np.savez(tmp_path / f"{name}.npz", **arrays)  # type: ignore[arg-type]
    report = run_parity_report(tmp_path)
    assert report.max_error < 1e-12
    assert report.cases["cell"]["built_main_edges"] == report.cases["whole"]["built_main_edges"] == 0.0


def test_near_axis_planar_quadruplets_follow_the_clamp(tmp_path: Path) -> None:
    """Images 0.2° off an axis: the original's 1e-9 clamp changes cos θ by 5e-4 there."""
    nearly_straight = Atoms("CuO", [[0, 0, 0], [0.006, 0.003, 1.5]], cell=np.diag([5.25, 5.5, 3.0]), pbc=True)
    write_folder(tmp_path, tiny_model(9), {"chain": [nearly_straight]})
    assert run_parity_report(tmp_path).max_error < 1e-11


def damage(folder: Path, what: str) -> str:
    """Damage one file; returns its name."""
    if what == "array missing":
        with np.load(folder / "m.npz") as stored:
            np.savez(folder / "m.npz", **{k: stored[k] for k in stored.files if k != "qint_edge_index"})  # type: ignore[arg-type]
        return "m.npz"
    if what == "atoms missing":
        with np.load(folder / "m.npz") as stored:
            np.savez(folder / "m.npz", **{k: v[:-1] if k == "pos" else v for k, v in stored.items()})  # type: ignore[arg-type]
        return "m.npz"
    if what == "no weights":
        (folder / "pretrain_model.safetensors").unlink()
        return "pretrain_model.safetensors"
    name = {"arrays cut": "m.npz", "weights cut": "pretrain_model.safetensors", "configuration cut": "config.json"}[
        what
    ]
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    return name


@pytest.mark.parametrize(
    "what", ["array missing", "atoms missing", "no weights", "arrays cut", "weights cut", "configuration cut"]
)
def test_damage_is_named(what: str, tmp_path: Path) -> None:
    write_folder(tmp_path, tiny_model(8), {"m": [some_molecule(1, "H2O")]})
    name = damage(tmp_path, what)
    with pytest.raises(RawFileError, match=name.replace(".", r"\.")):
        run_parity(tmp_path)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, tiny_model(8), {"m": [some_molecule(1, "H2O")]})
    config = json.loads((tmp_path / "config.json").read_text())
    config["backbone"]["num_blocks"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"pretrain_model.*of another model"):
        run_parity(tmp_path)


def test_the_command_prints_json_and_fails_beyond_its_tolerance(tmp_path: Path) -> None:
    write_folder(tmp_path, tiny_model(8), {"m": [some_molecule(1, "H2O")]})
    good = run("jmp", "parity", tmp_path, "--json")
    assert good.code == 0
    content = json.loads(good.out)
    assert content.keys() == {"max_error", "cases"}
    assert content["max_error"] == max(content["cases"]["m"].values()) < 1e-12
    tight = run("jmp", "parity", tmp_path, "--tolerance", "1e-20")
    assert tight.code != 0
    assert len(tight.error_lines) == 1
    damage(tmp_path, "arrays cut")
    damaged = run("jmp", "parity", tmp_path)
    assert damaged.code != 0
    assert len(damaged.error_lines) == 1
    assert "m.npz" in damaged.error_lines[0]
    assert "Traceback" not in damaged.err
