"""Own data through planning, splitting and building: nothing lost, nothing guessed twice, nothing stale."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import yaml
from ase.calculators.singlepoint import SinglePointCalculator

from jmp_data import open_dataset
from jmp_data.build import BuildSettings, SplitDone, choose_engine, plan_build, run_build
from jmp_data.build.repair import repair_dataset
from jmp_data.errors import ManifestError, MissingFileError, RawFileError
from jmp_data.own_data import OwnData
from jmp_data.own_data import source as source_module
from jmp_data.shards.integrity import verify_dataset
from jmp_data.sources import Source, get_source
from tests.jmp_data.own_data.manifests import notes_of, read_all, write_manifest
from tests.jmp_data.own_data.written import random_atoms
from tests.jmp_data.sources.collecting import collect

FRAMES = random_atoms(60, stress=False)


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ase.io.write(tmp_path / "first.extxyz", FRAMES[:40])
    ase.io.write(tmp_path / "second.traj", FRAMES[40:])
    write_manifest(tmp_path / "my.yaml", files=["*.extxyz", "*.traj"], splits={"by": "structure", "seed": 3})
    return tmp_path


def build(manifest: Path, out: Path, raw: Path | None = None, workers: int = 1, **options: Any) -> list[SplitDone]:
    settings = BuildSettings(**options)
    builds = plan_build([str(manifest)], raw or manifest.parent / "raw", out, settings=settings)
    return list(run_build(builds, choose_engine(workers=workers, scheduler=None), lambda done: None))


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".build" not in path.parts
    }


def test_it_keeps_the_protocol_of_sources(folder: Path) -> None:
    source = get_source(str(folder / "my.yaml"))
    assert isinstance(source, Source)
    assert source.name == "mine"
    assert source.required == ("energy", "forces")
    assert source.splits(folder) == ("train", "val", "test")


def test_what_goes_in_comes_out(folder: Path, tmp_path: Path) -> None:
    done = build(folder / "my.yaml", tmp_path / "out")
    assert [entry.dataset for entry in done] == [tmp_path / "out/mine" / split for split in ("train", "val", "test")]
    assert [entry.manifest.num_structures for entry in done] == [48, 6, 6]
    energies = sorted(structure.energy for entry in done for structure in open_dataset(entry.dataset))
    assert energies == sorted(atoms.calc.results["energy"] for atoms in FRAMES)
    for entry in done:
        assert verify_dataset(entry.dataset) == []
        provenance = entry.manifest.provenance
        assert provenance["source"] == entry.manifest.name == "mine"
        assert provenance["source_manifest"] == "my.yaml"
        content = (folder / "my.yaml").read_bytes()
        assert provenance["source_manifest_sha256"] == hashlib.sha256(content).hexdigest()
        assert any("GUESSED units.energy" in note for note in provenance["notes"])
        assert str(tmp_path) not in json.dumps(provenance)


def test_workers_change_no_byte_and_a_second_build_redoes_nothing(folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(source_module, "RECORDS_PER_PART", 7)
    build(folder / "my.yaml", tmp_path / "one")
    first = digests(tmp_path / "one")
    seen = []
    builds = plan_build([str(folder / "my.yaml")], folder, tmp_path / "one", settings=BuildSettings())
    list(run_build(builds, choose_engine(workers=1, scheduler=None), lambda done: seen.append(done.reused)))
    assert len(seen) > 8
    assert all(seen)
    assert digests(tmp_path / "one") == first


def test_the_same_bytes_from_processes_of_their_own(folder: Path, tmp_path: Path) -> None:
    build(folder / "my.yaml", tmp_path / "one")
    build(folder / "my.yaml", tmp_path / "two", workers=2)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


def test_the_place_of_the_files_leaves_no_trace(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("my.yaml", "first.extxyz", "second.traj"):
        (elsewhere / name).write_bytes((folder / name).read_bytes())
    build(folder / "my.yaml", tmp_path / "one")
    build(elsewhere / "my.yaml", tmp_path / "two")
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


def test_another_manifest_is_another_build(folder: Path, tmp_path: Path) -> None:
    build(folder / "my.yaml", tmp_path / "out")
    content = yaml.safe_load((folder / "my.yaml").read_text())
    (folder / "my.yaml").write_text("# only a comment\n" + yaml.safe_dump(content))
    plain = plan_build([str(folder / "my.yaml")], folder, tmp_path / "out", settings=BuildSettings())
    content["units"] = {"energy": "kcal/mol", "forces": "kcal/mol/Å"}
    (folder / "my.yaml").write_text(yaml.safe_dump(content))
    done = build(folder / "my.yaml", tmp_path / "out")
    first = open_dataset(done[0].dataset)[0]
    published = FRAMES[int(first.source_id.split("#")[1])].calc.results["energy"]
    assert first.energy == pytest.approx(published * 0.0433641039)
    changed = plan_build([str(folder / "my.yaml")], folder, tmp_path / "out", settings=BuildSettings())
    assert not {job.key for split in plain for job in split.jobs} & {job.key for split in changed for job in split.jobs}


def test_a_manifest_that_changes_between_plan_and_reading(folder: Path) -> None:
    source = OwnData(folder / "my.yaml")
    (part, *_) = source.plan(folder, "train").parts
    write_manifest(folder / "my.yaml", files=["*.extxyz"])
    with pytest.raises(ManifestError, match=r"my.yaml: changed since the build was planned"):
        list(OwnData(folder / "my.yaml").read(folder, part))


def test_files_may_lie_in_the_raw_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "apart").mkdir()
    manifest = write_manifest(tmp_path / "apart/my.yaml", files=["first.extxyz"])
    (done,) = build(manifest, tmp_path / "out", raw=folder)
    assert done.manifest.num_structures == 40
    with pytest.raises(MissingFileError, match=r"no file matches 'first.extxyz'"):
        build(manifest, tmp_path / "out", raw=tmp_path / "nowhere")


def test_damaged_shards_are_rebuilt_from_the_manifest(folder: Path, tmp_path: Path) -> None:
    train, *_ = build(folder / "my.yaml", tmp_path / "out", format="webdataset")
    before = digests(train.dataset)
    shard = next(train.dataset.rglob("*.tar"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 0xFF
    shard.write_bytes(content)
    damage = verify_dataset(train.dataset)
    assert damage
    assert repair_dataset(train.dataset, folder, damage) == 1
    assert digests(train.dataset) == before


def test_two_sets_of_one_name_are_refused(folder: Path, tmp_path: Path) -> None:
    write_manifest(folder / "other.yaml", files=["second.traj"])
    with pytest.raises(ManifestError, match=r"two sources would both be written to .*out/mine/train"):
        plan_build(
            [str(folder / "my.yaml"), str(folder / "other.yaml")], folder, tmp_path / "out", settings=BuildSettings()
        )


@pytest.mark.parametrize("rule", ["composition", "file", "key"])
def test_groups_stay_together(tmp_path: Path, rule: str) -> None:
    frames = random_atoms(60, stress=False)
    for number, atoms in enumerate(frames):
        atoms.info["molecule"] = f"m{number % 9}"
    for number in range(6):
        ase.io.write(tmp_path / f"{number}.extxyz", frames[number * 10 : number * 10 + 10])
    splits = {"by": rule, **({"key": "molecule"} if rule == "key" else {})}
    source = OwnData(write_manifest(tmp_path / "my.yaml", files=["*.extxyz"], splits=splits))
    groups: dict[str, set[str]] = {}
    for split in source.splits(tmp_path):
        for structure_id in collect(source, tmp_path, split).ids:
            name, row = structure_id.split("#")
            atoms = frames[int(name[0]) * 10 + int(row)]
            group = {
                "composition": str(sorted(atoms.numbers)),
                "file": name,
                "key": atoms.info["molecule"],
            }[rule]
            groups.setdefault(group, set()).add(split)
    assert all(len(splits) == 1 for splits in groups.values())
    assert {"train", "val", "test"} >= set().union(*groups.values()) >= {"train", "val"}


def test_splits_as_the_file_names_say(tmp_path: Path) -> None:
    for name, frames in {"train": FRAMES[:30], "valid": FRAMES[30:40], "test": FRAMES[40:]}.items():
        ase.io.write(tmp_path / f"set_{name}.extxyz", frames)
    source = OwnData(write_manifest(tmp_path / "my.yaml", files=["*.extxyz"], splits={}))
    assert {split: len(collect(source, tmp_path, split).block) for split in source.splits(tmp_path)} == {
        "train": 30,
        "val": 10,
        "test": 20,
    }
    assert "GUESSED splits: by file names: train = set_train.extxyz" in notes_of(source)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train": ["a.*"]}, "b.extxyz is in no split"),
        ({"train": ["*"], "val": ["b.*"]}, "b.extxyz is in train and in val"),
    ],
)
def test_given_splits_that_do_not_add_up(tmp_path: Path, files: dict[str, list[str]], message: str) -> None:
    (tmp_path / "data").mkdir()
    for name in "ab":
        ase.io.write(tmp_path / f"data/{name}.extxyz", FRAMES[:3])
    patterns = {split: [f"data/{pattern}" for pattern in some] for split, some in files.items()}
    path = write_manifest(tmp_path / "my.yaml", files=["data"], splits={"by": "given", "files": patterns})
    with pytest.raises(ManifestError, match=message):
        OwnData(path).splits(tmp_path)


def test_a_missing_group_key_is_an_error(folder: Path) -> None:
    path = write_manifest(folder / "my.yaml", files=["*.traj"], splits={"by": "key", "key": "molecule"})
    with pytest.raises(ManifestError, match=r"20 structures of second.traj have no 'molecule'"):
        OwnData(path).splits(folder)


def with_labels(frames, forces: list[bool], stress: list[bool] | None = None):
    """Copies of frames, some without forces, some with a stress."""
    copies = []
    for number, atoms in enumerate(frames):
        copy = atoms.copy()
        results = dict(atoms.calc.results)
        if not forces[number]:
            del results["forces"]
        if stress and stress[number]:
            results["stress"] = np.arange(6) * 1e-3
        copy.calc = SinglePointCalculator(copy, **results)
        copies.append(copy)
    return copies


def test_labels_that_only_some_have_become_nan(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "a.traj", with_labels(FRAMES, [number % 3 == 0 for number in range(60)]))
    source, collected = read_all(tmp_path, "a.traj")
    assert source.required == ("energy",)
    assert [structure.forces is not None for structure in map(collected.block.structure, range(6))] == [
        True,
        False,
        False,
    ] * 2
    assert "GUESSED required: not all of 60 sampled structures have forces (20)" in notes_of(source)


def test_a_declared_requirement_sets_others_aside(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "a.traj", with_labels(FRAMES, [number != 17 for number in range(60)]))
    _, collected = read_all(tmp_path, "a.traj", required=["energy", "forces"])
    (item,) = collected.quarantined
    assert (item.source_id, item.reason) == ("a.traj#17", "missing_forces")
    assert json.loads(item.record)["energy"] == FRAMES[17].calc.results["energy"]


def test_what_the_sample_did_not_show_is_set_aside_not_stripped(tmp_path: Path, monkeypatch) -> None:
    """The sample ends before the first stress; a structure with one is kept for the user, not robbed of it."""
    monkeypatch.setattr("jmp_data.own_data.inspection.SAMPLE", 4)
    flags = [number in (31, 33) for number in range(60)]
    ase.io.write(tmp_path / "a.traj", with_labels(FRAMES, [number != 20 for number in range(60)], flags))
    source, collected = read_all(tmp_path, "a.traj")
    assert "stress" not in source.schema
    assert {item.source_id: item.reason for item in collected.quarantined} == {
        "a.traj#20": "missing_forces",
        "a.traj#31": "unexpected_label",
        "a.traj#33": "unexpected_label",
    }
    assert len(collected.block) == 57


def test_declared_keys_that_are_not_there(folder: Path) -> None:
    path = write_manifest(folder / "my.yaml", files=["*.traj"], keys={"energy": "REF_energy"})
    with pytest.raises(ManifestError, match=r"my.yaml: keys.energy: no sampled structure has 'REF_energy'; the keys"):
        OwnData(path).splits(folder)


def test_labels_under_other_names(tmp_path: Path) -> None:
    frames = random_atoms(5)
    for atoms in frames:
        atoms.info["REF_energy"] = atoms.calc.results["energy"]
        atoms.info["REF_virial"] = (-atoms.get_stress(voigt=False) * atoms.get_volume()).ravel()
        atoms.arrays["REF_forces"] = atoms.calc.results["forces"]
        atoms.info["pressure"] = 3.0
        atoms.calc = None
    ase.io.write(tmp_path / "a.extxyz", frames)
    _, collected = read_all(tmp_path, "a.extxyz")
    expected = random_atoms(5)
    np.testing.assert_allclose(collected.block.energy, [atoms.calc.results["energy"] for atoms in expected], rtol=1e-12)
    np.testing.assert_allclose(
        collected.block.stress, [atoms.get_stress(voigt=False) for atoms in expected], rtol=1e-5, atol=1e-9
    )


def test_stress_in_kilobar_with_the_sign_of_vasp(tmp_path: Path) -> None:
    from ase.units import GPa

    frames = random_atoms(3)
    expected = [atoms.get_stress(voigt=False) for atoms in frames]
    for atoms in frames:
        xx, yy, zz, yz, xz, xy = -atoms.calc.results["stress"] / GPa * 10
        atoms.info["vasp_stress"] = np.array([xx, yy, zz, xy, yz, xz])
        del atoms.calc.results["stress"]
    ase.io.write(tmp_path / "a.extxyz", frames)
    _, collected = read_all(
        tmp_path,
        "a.extxyz",
        keys={"stress": "vasp_stress"},
        units={"stress": "kbar"},
        stress_sign="compression",
        voigt="vasp",
    )
    np.testing.assert_allclose(collected.block.stress, expected, rtol=1e-5, atol=1e-9)


def test_energies_per_atom(tmp_path: Path) -> None:
    frames = random_atoms(4, stress=False)
    for atoms in frames:
        atoms.calc.results["energy"] /= len(atoms)
    ase.io.write(tmp_path / "a.extxyz", frames)
    _, collected = read_all(tmp_path, "a.extxyz", units={"energy": "eV/atom"})
    expected = [atoms.calc.results["energy"] for atoms in random_atoms(4, stress=False)]
    np.testing.assert_allclose(collected.block.energy, expected, rtol=1e-12)


def test_a_declared_unit_that_physics_contradicts(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_text("3\nenergy=-76.4\nO 0 0 0\nH 0 0 0.96\nH 0 0.93 -0.24\n")
    source, _ = read_all(tmp_path, "a.xyz", units={"energy": "eV"})
    assert "WARNING, units.energy: declared eV, but -76.4000 for H2O (3 atoms) fits" in notes_of(source)


def test_tags_that_are_layer_numbers(tmp_path: Path) -> None:
    import ase.build

    ase.io.write(tmp_path / "a.traj", ase.build.fcc111("Cu", (1, 1, 5), vacuum=5.0, periodic=True))
    source, collected = read_all(tmp_path, "a.traj")
    assert collected.block.tags.tolist() == [2] * 5
    assert "GUESSED tags: all 2: the tags run from 1 to 5" in notes_of(source)
    _, collected = read_all(tmp_path, "a.traj", tags="given")
    assert collected.block.tags.tolist() == [5, 4, 3, 2, 1]


def test_no_record_at_all_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_text("three\nof nothing\n")
    with pytest.raises(RawFileError, match=r"a.xyz: record 0: expected the number of atoms, found 'three' \(none of"):
        OwnData(write_manifest(tmp_path / "my.yaml", files=["a.xyz"])).splits(tmp_path)


def test_targets_of_any_shape(tmp_path: Path) -> None:
    frames = random_atoms(4, stress=False)
    for number, atoms in enumerate(frames):
        atoms.info["gap"] = 0.5 * number
        atoms.info["quadrupole"] = np.eye(3) * number
        atoms.arrays["charges_ddec"] = np.full(len(atoms), 0.25 * number)
        atoms.info["name"] = "x"
    ase.io.write(tmp_path / "a.extxyz", frames)
    targets = {"gap": {"unit": "hartree"}, "quadrupole": {}, "q": {"key": "charges_ddec", "unit": "e"}}
    source, collected = read_all(tmp_path, "a.extxyz", targets=targets)
    fields = {field.name: (field.level, field.shape, field.unit) for field in source.schema.targets[2:]}
    assert fields == {
        "gap": ("structure", (), "eV"),
        "quadrupole": ("structure", (3, 3), ""),
        "q": ("atom", (), "e"),
    }
    np.testing.assert_allclose(collected.block.gap, 0.5 * np.arange(4) * 27.211386024367243)
    with pytest.raises(ManifestError, match=r"targets.name: 'name' holds text such as 'x'"):
        read_all(tmp_path, "a.extxyz", targets={"name": {}})
