"""The YAML of own data: mistakes are named with their entry, and what is proposed reads back as proposed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import yaml

from jmp_data import open_dataset
from jmp_data.errors import ManifestError, MissingFileError
from jmp_data.own_data import OwnData, build_files, load_own_manifest, propose_manifest
from jmp_data.own_data.manifest import parse_own_manifest
from jmp_data.own_data.manifest_text import manifest_text
from tests.jmp_data.own_data.manifests import notes_of
from tests.jmp_data.own_data.written import random_atoms, write_mace
from tests.jmp_data.sources.collecting import collect

GOOD = {"name": "mine", "files": ["a.xyz"]}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"nmae": 1}, "nmae: Extra inputs are not permitted"),
        ({"name": "oc20"}, "name: 'oc20' is a published data set"),
        ({"name": "a/b"}, "name: 'a/b': use letters"),
        ({"files": []}, "files: names no files"),
        ({"units": {"energy": "kilojoule"}}, "units: 'kilojoule' is no known unit of energy"),
        ({"units": {"forces": "eV"}}, "units: 'eV' is no known unit of forces"),
        ({"splits": {"by": "key"}}, "splits: by: key and key: NAME belong together"),
        ({"splits": {"fractions": {"train": 0.8}}}, "splits: fractions must be positive and add up to 1"),
        ({"splits": {"by": "given"}}, "splits: by: given and files: belong together"),
        ({"splits": {"fractions": {"Train": 1.0}}}, "splits: split 'Train'"),
        ({"targets": {"energy": {}}}, "target 'energy'"),
        ({"targets": {"a-b": {}}}, "target 'a-b'"),
        ({"required": ["gap"]}, "required names"),
        ({"references": {"Qq": 1.0}}, "no such element: Qq"),
        ({"format": "pickle"}, "format: Input should be"),
        ({"force_sign": "both"}, "force_sign: Input should be"),
    ],
)
def test_mistakes_are_named(entries: dict[str, Any], message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        parse_own_manifest({**GOOD, **entries})


def test_a_file_that_is_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: [")
    (tmp_path / "b.yaml").write_text("just text")
    with pytest.raises(ManifestError, match=r"a.yaml: no valid YAML"):
        load_own_manifest(tmp_path / "a.yaml")
    with pytest.raises(ManifestError, match=r"b.yaml: holds no entries"):
        load_own_manifest(tmp_path / "b.yaml")
    with pytest.raises(MissingFileError, match=r"c.yaml: cannot be read .*init-manifest"):
        load_own_manifest(tmp_path / "c.yaml")


def test_the_order_of_entries_changes_nothing() -> None:
    one = {"splits": {"by": "structure", "fractions": {"test": 0.1, "train": 0.8, "val": 0.1}}}
    two = {"splits": {"fractions": {"train": 0.8, "val": 0.1, "test": 0.1}, "by": "structure"}}
    assert parse_own_manifest({**GOOD, **one}).digest == parse_own_manifest({**two, **GOOD}).digest


def propose(folder: Path, *files: Path, **declared: Any) -> Path:
    proposal = propose_manifest(list(files), folder, **declared)
    path = folder / "my.yaml"
    path.write_text(manifest_text(proposal, "my.yaml"), encoding="utf-8")
    assert load_own_manifest(path).manifest == proposal.manifest
    return path


def write_variety(folder: Path) -> dict[str, Path]:
    """One file of every kind."""
    frames = random_atoms(12)
    for number, atoms in enumerate(frames):
        atoms.info["gap"] = 0.1 * number
    for name in ("a.extxyz", "a.traj", "a.db"):
        ase.io.write(folder / name, frames)
    write_mace(folder / "a.h5", frames)
    (folder / "cifs").mkdir()
    for number, atoms in enumerate(frames):
        ase.io.write(folder / f"cifs/{number}.cif", atoms)
    rows = "".join(f"{number},{0.5 * number}\n" for number in range(12))
    (folder / "cifs/targets.csv").write_text("id,gap\n" + rows)
    return {name: folder / name for name in ("a.extxyz", "a.traj", "a.db", "a.h5", "cifs")}


@pytest.mark.parametrize("name", ["a.extxyz", "a.traj", "a.db", "a.h5", "cifs"])
def test_a_proposal_builds_the_same_as_the_guesses_did(tmp_path: Path, name: str) -> None:
    files = write_variety(tmp_path)
    written = OwnData(propose(tmp_path, files[name], name="mine"))
    minimal = {"name": "mine", "files": [name], "targets": {"gap": {}} if name == "cifs" else {}}
    if name == "cifs":
        minimal["table"] = {"file": "cifs/targets.csv"}
    (tmp_path / "bare.yaml").write_text(yaml.safe_dump(minimal))
    bare = OwnData(tmp_path / "bare.yaml")
    assert written.schema == bare.schema
    assert written.splits(tmp_path) == bare.splits(tmp_path)
    for split in bare.splits(tmp_path):
        one, two = collect(written, tmp_path, split).block, collect(bare, tmp_path, split).block
        assert all(np.array_equal(one.columns[key], two.columns[key], equal_nan=True) for key in two.columns)
    # Nothing is left to guess, so nothing is said of guesses.
    assert "GUESSED" not in notes_of(written)


def test_a_proposal_carries_its_evidence(tmp_path: Path) -> None:
    (tmp_path / "water.xyz").write_text("3\nEnergy=-47946\nO 0 0 0\nH 0 0 0.96\nH 0 0.93 -0.24\n" * 3)
    text = propose(tmp_path, tmp_path / "water.xyz").read_text()
    assert "# GUESSED units.energy: kcal/mol: -47,946.0000 for H2O (3 atoms) fits" in text
    assert "  energy: kcal/mol\n" in text
    assert "# GUESSED keys.energy: 'Energy'" in text
    assert "name: water " in text


def test_many_files_become_a_pattern(tmp_path: Path) -> None:
    write_variety(tmp_path)
    manifest = load_own_manifest(propose(tmp_path, tmp_path / "cifs")).manifest
    assert manifest.files == ("cifs/*.cif",)
    assert manifest.table is not None
    assert (manifest.table.file, manifest.table.id) == ("cifs/targets.csv", "id")
    assert list(manifest.targets) == ["gap"]


def test_further_numbers_are_offered(tmp_path: Path) -> None:
    files = write_variety(tmp_path)
    text = propose(tmp_path, files["a.extxyz"]).read_text()
    assert "targets: {}  # or, of what there is:\n#   gap: {}" in text


def test_further_numbers_are_taken_where_they_are_wanted(tmp_path: Path) -> None:
    files = write_variety(tmp_path)
    (train, *_) = build_files(files["a.extxyz"], tmp_path / "out", wanted=["energy", "gap"])
    assert {"energy", "forces", "gap"} <= {field.name for field in open_dataset(train).schema.targets}
    proposal = propose_manifest([files["a.extxyz"]], tmp_path, wanted=["energy"])
    assert list(proposal.manifest.targets) == []
    assert list(proposal.further) == ["gap"]


def test_names_of_published_sets_are_avoided(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "qm9.extxyz", random_atoms(3))
    assert load_own_manifest(propose(tmp_path, tmp_path / "qm9.extxyz")).manifest.name == "my_qm9"


def test_one_call_from_files_to_data_sets(tmp_path: Path) -> None:
    frames = random_atoms(30)
    ase.io.write(tmp_path / "mine.extxyz", frames)
    said: list[str] = []
    folders = build_files(tmp_path / "mine.extxyz", tmp_path / "out", report=said.append)
    assert folders == [tmp_path / "out/mine" / split for split in ("train", "val", "test")]
    assert [len(open_dataset(folder)) for folder in folders] == [24, 3, 3]
    assert any("GUESSED units.energy" in line for line in said)
    assert (tmp_path / "out/mine.yaml").is_file()
    energies = sorted(structure.energy for folder in folders for structure in open_dataset(folder))
    assert energies == sorted(atoms.calc.results["energy"] for atoms in frames)
    # Again, and with something declared.
    assert build_files(tmp_path / "mine.extxyz", tmp_path / "out") == folders
    declared = {"splits": {"fractions": {"train": 1.0}}, "units": {"energy": "meV"}}
    (folder,) = build_files([str(tmp_path / "mine.extxyz")], tmp_path / "other", name="x", **declared)
    assert folder == tmp_path / "other/x/train"
    assert open_dataset(folder)[0].energy == pytest.approx(frames[0].calc.results["energy"] / 1000)
