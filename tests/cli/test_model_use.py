"""`jmp predict`, `jmp checkpoint` and `jmp fit-scales`, run as a user does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.db import connect
from ase.io import read, write

from tests.cli.run_cli import run_here as run
from tests.jmp_model.tiny_checkpoints import write_tiny
from tests.jmp_model.train.small_runs import write_mixture


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("checkpoint") / "tiny")


def test_predict_reads_what_ase_reads_and_loses_nothing(folder: Path, tmp_path: Path) -> None:
    molecules = [molecule(name) for name in ("H2O", "CH4", "CO")]
    write(tmp_path / "molecules.xyz", molecules)
    write(tmp_path / "crystal.cif", bulk("Cu", cubic=True))
    done = run(
        "jmp", "predict", tmp_path / "molecules.xyz", tmp_path / "crystal.cif", "--from", folder, "--task", "molecules",
        "--forces", "gradient", "--batch-size", 2, "--out", tmp_path / "out.extxyz", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    summary = json.loads(done.out)
    assert summary["structures"] == 4
    assert summary["atoms"] == 14
    assert summary["forces"] == "gradient"
    assert "Cu: never occurred" in done.err
    found = read(tmp_path / "out.extxyz", index=":")
    assert [str(atoms.symbols) for atoms in found] == ["OH2", "CH4", "OC", "Cu4"]
    assert all(np.isfinite(atoms.get_potential_energy()) for atoms in found)
    assert found[3].get_stress().shape == (6,)
    again = run(
        "jmp", "predict", tmp_path / "molecules.xyz", "--from", folder, "--task", "molecules", "--out",
        tmp_path / "out.extxyz",
    )  # fmt: skip
    assert again.code != 0
    assert "exists already" in again.error_lines[0]


def test_bad_input_is_one_line_and_leaves_no_file(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.extxyz").write_text("3\n\nH 0 0 0\nH 0 0")
    broken = run(
        "jmp", "predict", tmp_path / "broken.extxyz", "--from", folder, "--task", "metals", "--out", tmp_path / "o.xyz"
    )
    assert broken.code != 0
    assert len(broken.error_lines) == 1
    assert "broken.extxyz" in broken.error_lines[0]
    assert "Traceback" not in broken.err
    assert {path.name for path in tmp_path.iterdir()} == {"broken.extxyz"}


@pytest.mark.parametrize("name", ["out.db", "out.json", "out.traj", "out.extxyz"])
def test_predictions_are_kept_whole_in_every_format(folder: Path, tmp_path: Path, name: str) -> None:
    atoms = molecule("H2O")
    atoms.info["label"] = "mine"
    write(tmp_path / "in.traj", atoms)
    done = run("jmp", "predict", tmp_path / "in.traj", "--from", folder, "--task", "metals", "--out", tmp_path / name)
    assert done.code == 0, done.err
    found = read(tmp_path / name)
    assert isinstance(found, Atoms)
    assert np.isfinite(found.get_potential_energy())
    assert found.get_forces().shape == (3, 3)
    info = connect(tmp_path / name).get(1).data if name.endswith(("db", "json")) else found.info
    assert (info["label"], info["jmp_task"]) == ("mine", "metals")


@pytest.mark.parametrize("name", ["out.cif", "POSCAR", "out", "out.db.gz", "out.nothing"])
def test_formats_that_would_lose_predictions_are_refused_first(folder: Path, tmp_path: Path, name: str) -> None:
    write(tmp_path / "in.xyz", molecule("H2O"))
    done = run("jmp", "predict", tmp_path / "in.xyz", "--from", folder, "--task", "metals", "--out", tmp_path / name)
    assert done.code == 1
    assert "try .extxyz, .traj or .db" in done.error_lines[0]
    assert {path.name for path in tmp_path.iterdir()} == {"in.xyz"}


def test_files_without_structures_and_devices_that_are_not_there_are_named(folder: Path, tmp_path: Path) -> None:
    with connect(tmp_path / "none.db") as database:
        database.delete([database.write(molecule("H2O"))])
    write(tmp_path / "in.xyz", molecule("H2O"))
    common = ("--from", folder, "--task", "metals", "--out", tmp_path / "out.traj")
    for arguments, message in (
        ((tmp_path / "none.db",), "none.db: holds no structure"),
        ((tmp_path / "in.xyz", "--device", "abacus"), "--device abacus"),
    ):
        done = run("jmp", "predict", *arguments, *common)
        assert done.code == 1
        assert len(done.error_lines) == 1
        assert message in done.error_lines[0]


def test_released_files_come_in_and_go_out(tmp_path: Path) -> None:
    """A whole round: our checkpoint → the released layout, EMA in its odd place → our checkpoint → prediction."""
    source = write_tiny(tmp_path / "mine")
    out = run("jmp", "checkpoint", "export", source, "--out", tmp_path / "mine.pt", "--json")
    assert out.code == 0, out.err
    assert run("jmp", "checkpoint", "import", tmp_path / "mine.pt", "--out", tmp_path / "again").code != 0
    done = run(
        "jmp", "checkpoint", "import", tmp_path / "mine.pt", "--out", tmp_path / "again", "--weights", "live", "--json"
    )
    assert done.code == 0, done.err
    keys = json.loads(done.out)
    assert keys["keys"]["gaussian buffers"] == 16
    assert len(keys["mapped"]) == sum(count for kind, count in keys["keys"].items() if kind != "counters")
    shown = run("jmp", "checkpoint", "inspect", tmp_path / "again", "--json")
    facts = json.loads(shown.out)
    assert [task["task"] for task in facts["tasks"]] == ["molecules", "metals"]
    assert facts["tasks"][0]["reference"]["O"] == -2042.0
    assert facts["provenance"]["imported_from"] == "mine.pt"
    write(tmp_path / "water.xyz", molecule("H2O"))
    energies = []
    for name in ("mine", "again"):
        target = tmp_path / f"{name}.extxyz"
        run("jmp", "predict", tmp_path / "water.xyz", "--from", tmp_path / name, "--task", "molecules", "--out", target)
        atoms = read(target)
        assert isinstance(atoms, Atoms)
        energies.append(atoms.get_potential_energy())
    assert energies[0] == energies[1]


def test_damaged_and_foreign_files_end_in_one_line(tmp_path: Path) -> None:
    source = write_tiny(tmp_path / "mine")
    run("jmp", "checkpoint", "export", source, "--out", tmp_path / "mine.pt")
    content = (tmp_path / "mine.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[: len(content) // 2])
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other.pt")
    for name in ("cut.pt", "other.pt", "nowhere.pt"):
        done = run("jmp", "checkpoint", "import", tmp_path / name, "--out", tmp_path / "out")
        assert done.code != 0
        assert len(done.error_lines) == 1
        assert name in done.error_lines[0]
        assert not (tmp_path / "out").exists()


def test_fit_scales_writes_what_pretraining_fits(tmp_path: Path) -> None:
    mix = write_mixture(tmp_path, train=12)
    done = run(
        "jmp", "fit-scales", "--mix", mix, "--model", "tiny", "--out", tmp_path / "scales.json", "--json",
        "--set", "data.batch_size=4", "--set", "scale_batches=2",
        "--set", "data.graphs={metals: {cutoff: 4.0, max_neighbors: 12}, molecules: {cutoff: 5.0}}",
    )  # fmt: skip
    assert done.code == 0, done.err
    factors = json.loads(done.out)
    assert len(factors) == 2 * 11 + 3 * 2
    assert all(0 < value < 1e3 for value in factors.values())
    assert json.loads((tmp_path / "scales.json").read_text())["factors"] == factors
    again = run("jmp", "fit-scales", "--mix", mix, "--model", "tiny", "--out", tmp_path / "scales.json")
    assert again.code == 1
    assert "exists already" in again.error_lines[0]
