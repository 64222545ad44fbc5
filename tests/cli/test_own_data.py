"""A user's own files on the command line: look, check the manifest, build, verify; and every way to get it wrong."""

from __future__ import annotations

import json
from pathlib import Path

import ase.io
import numpy as np
import pytest
import yaml

from jmp_cli.data_app import app
from jmp_data import open_dataset
from tests.cli.run_cli import Outcome, run
from tests.jmp_data.own_data.written import random_atoms, write_aselmdb
from tests.shared import SHARED, needs_shared

FRAMES = random_atoms(30)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ase.io.write(tmp_path / "mine.extxyz", FRAMES)
    return tmp_path


def expect_refusal(outcome: Outcome, *words: str) -> None:
    assert outcome.code != 0
    assert "Traceback" not in outcome.err
    (line,) = outcome.error_lines
    for word in words:
        assert word in line, line


def test_from_files_to_data_sets(folder: Path) -> None:
    manifest, shards = folder / "my.yaml", folder / "shards"
    outcome = run("jmp-data", "init-manifest", folder / "mine.extxyz", "--out", manifest)
    assert outcome.code == 0, outcome.err
    for words in ("mine.extxyz", "extxyz", "30", "energy", "eV/Å", "train", f"jmp-data build {manifest}"):
        assert words in outcome.out
    assert "GUESSED units.energy: eV" in outcome.err
    assert yaml.safe_load(manifest.read_text())["files"] == ["mine.extxyz"]
    outcome = run("jmp-data", "build", manifest, "--out", shards, "--workers", 1, "--json")
    assert outcome.code == 0, outcome.err
    built = {entry["split"]: entry for entry in json.loads(outcome.out)}
    assert {split: entry["structures"] for split, entry in built.items()} == {"train": 24, "val": 3, "test": 3}
    assert built["train"]["path"] == str(shards / "mine/train")
    assert run("jmp-data", "verify", shards).code == 0
    energies = sorted(s.energy for split in built for s in open_dataset(shards / "mine" / split))
    assert energies == sorted(atoms.calc.results["energy"] for atoms in FRAMES)
    overview = json.loads(run("jmp-data", "inspect", shards / "mine/train", "--json").out)
    assert overview["raw_files"] == ["mine.extxyz"]
    assert overview["provenance"]["source_manifest"] == "my.yaml"


def test_a_bare_manifest_is_enough_and_every_guess_is_said_once(folder: Path) -> None:
    (folder / "bare.yaml").write_text("name: bare\nfiles: mine.extxyz\n")
    outcome = run("jmp-data", "build", folder / "bare.yaml", "--out", folder / "shards", "--workers", 1)
    assert outcome.code == 0, outcome.err
    said = [line for line in outcome.err.splitlines() if "GUESSED units.energy" in line]
    assert len(said) == 1
    assert said[0].startswith("note: bare/train, val, test: GUESSED units.energy: eV")


def test_json_and_a_relative_place(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(folder)
    app(["init-manifest", "mine.extxyz", "--json"], prog_name="jmp-data", standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    assert found["written"] == "my.yaml"
    assert found["structures"] == 30
    assert found["files"] == [{"name": "mine.extxyz", "format": "extxyz", "structures": 30}]
    assert found["manifest"]["units"]["forces"] == "eV/Å"
    assert {entry["kind"] for entry in found["statements"]} >= {"guess"}
    app(["build", "my.yaml", "--out", "out", "--workers", "1", "--json"], prog_name="jmp-data", standalone_mode=False)
    assert [entry["path"] for entry in json.loads(capsys.readouterr().out)] == [
        "out/mine/train",
        "out/mine/val",
        "out/mine/test",
    ]


def test_shares_of_a_job_array(folder: Path) -> None:
    (folder / "my.yaml").write_text("name: mine\nfiles: [mine.extxyz]\n")
    arguments = ["build", folder / "my.yaml", "--out", folder / "shards", "--workers", 1]
    for share in ("1/2", "2/2"):
        assert run("jmp-data", *arguments, "--part", share).code == 0
    outcome = run("jmp-data", *arguments, "--finalize", "--json")
    assert [entry["structures"] for entry in json.loads(outcome.out)] == [24, 3, 3]


def test_bad_frames_are_set_aside_and_counted(folder: Path) -> None:
    lines = (folder / "mine.extxyz").read_text().splitlines(keepends=True)
    second = len(FRAMES[0]) + 2
    lines[second + 3] = lines[second + 3].replace(".", "x", 1)
    (folder / "mine.extxyz").write_text("".join(lines)[:-200])
    (folder / "my.yaml").write_text("name: mine\nfiles: [mine.extxyz]\nsplits: {fractions: {train: 1.0}}\n")
    outcome = run("jmp-data", "build", folder / "my.yaml", "--out", folder / "shards", "--workers", 1, "--json")
    (entry,) = json.loads(outcome.out)
    assert entry["structures"] == 28
    assert entry["quarantined"] == {"broken_frame": 1, "unreadable_frame": 1}
    assert entry["records_in"] == 30
    # A file that is cut is said to be damaged, with an exit code of its own.
    assert outcome.code == 3
    (line,) = outcome.error_lines
    assert "mine.extxyz#29" in line
    kept = [json.loads(line) for line in (folder / "shards/mine/train/quarantine.jsonl").read_text().splitlines()]
    assert [record["source_id"] for record in kept] == ["mine.extxyz#1", "mine.extxyz#29"]
    assert kept[0]["record"] == "".join(lines[second : second + len(FRAMES[1]) + 2])
    strict = ["--on-error", "fail", "--out", folder / "strict", "--workers", 1]
    expect_refusal(run("jmp-data", "build", folder / "my.yaml", *strict), "mine.extxyz#1", "cannot be parsed")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("name: mine\nfiles: [nothing.xyz]\n", ["nothing.xyz", "no file matches"]),
        ("name: mine\nfiles: [mine.extxyz]\nunit: {}\n", ["my.yaml", "unit: Extra inputs"]),
        ("name: mine\nfiles: [mine.extxyz]\nkeys: {energy: E}\n", ["my.yaml", "keys.energy", "'E'", "energy, stress"]),
        ("name: mine\nfiles: [mine.extxyz]\nunits: {energy: kcal}\n", ["my.yaml", "units", "'kcal'"]),
        ("name: ani1x\nfiles: [mine.extxyz]\n", ["my.yaml", "published"]),
        ("- a\n", ["my.yaml", "holds no entries"]),
    ],
)
def test_mistakes_in_a_manifest_are_one_line(folder: Path, content: str, words: list[str]) -> None:
    (folder / "my.yaml").write_text(content)
    expect_refusal(run("jmp-data", "build", folder / "my.yaml", "--out", folder / "shards"), *words)
    assert not (folder / "shards").exists()


def test_files_that_cannot_be_looked_at(folder: Path) -> None:
    (folder / "some.pkl").write_bytes(b"\x80\x04.")
    command = ["init-manifest", "--out", folder / "new.yaml"]
    expect_refusal(run("jmp-data", *command, folder / "some.pkl"), "some.pkl", "pickle")
    expect_refusal(run("jmp-data", *command, folder / "nothing.xyz"), "nothing.xyz", "no such file")
    (folder / "new.yaml").write_text("name: kept\n")
    expect_refusal(run("jmp-data", *command, folder / "mine.extxyz"), "new.yaml", "exists")
    assert (folder / "new.yaml").read_text() == "name: kept\n"
    expect_refusal(run("jmp-data", "init-manifest", folder / "mine.extxyz", "--out", folder / "my.txt"), "my.txt")
    expect_refusal(run("jmp-data", "build", folder / "absent.yaml"), "absent.yaml", "init-manifest")


@needs_shared
def test_the_unknown_pickle_is_refused(tmp_path: Path) -> None:
    assert SHARED is not None
    path = SHARED / "samples/pickled_lmdb/matsciml_alexandria_devset_data_000.lmdb"
    outcome = run("jmp-data", "init-manifest", path, "--out", tmp_path / "my.yaml")
    expect_refusal(outcome, "matsciml_alexandria_devset_data_000.lmdb", "record 0", "nothing was executed")
    assert not (tmp_path / "my.yaml").exists()


def test_shards_of_an_aselmdb_become_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "omat").mkdir()
    for number in range(9):
        write_aselmdb(tmp_path / f"omat/data.{number:04d}.aselmdb", FRAMES[number * 3 : number * 3 + 3])
    outcome = run("jmp-data", "init-manifest", tmp_path / "omat", "--out", tmp_path / "my.yaml", "--name", "omat")
    assert outcome.code == 0, outcome.err
    assert yaml.safe_load((tmp_path / "my.yaml").read_text())["files"] == ["omat/*.aselmdb"]
    outcome = run("jmp-data", "build", tmp_path / "my.yaml", "--out", tmp_path / "shards", "--workers", 2, "--json")
    built = json.loads(outcome.out)
    assert sum(entry["structures"] for entry in built) == 27
    stress = next(iter(open_dataset(built[0]["path"]))).targets["stress"]
    assert np.isfinite(stress).all()


@pytest.mark.parametrize("command", ["init-manifest", "download"])
def test_commands_show_an_example(command: str) -> None:
    outcome = run("jmp-data", command, "--help")
    assert outcome.code == 0
    assert f"jmp-data {command}" in outcome.out.split("Example:")[1]
