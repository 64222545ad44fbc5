"""`jmp-data build` and `verify` as a user runs them."""

import json
import re
import shutil
from pathlib import Path

import pytest

from jmp_cli import console
from jmp_data import open_dataset
from jmp_data.build.lock import lock_targets
from tests import raw_archives
from tests.cli.run_cli import run
from tests.jmp_data.build.fault_injection import tree


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    raw = tmp_path_factory.mktemp("raw")
    raw_archives.write_oc20(raw)
    return raw


@pytest.fixture(scope="module")
def shards(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards")
    assert run("jmp-data", "build", "oc20", "--raw", raw, "--out", out, "--workers", 1).code == 0
    return out


def test_a_job_array_and_a_finalise_give_the_same_bytes(raw: Path, shards: Path, tmp_path: Path) -> None:
    for number in (1, 2):
        arguments = ("--raw", raw, "--out", tmp_path, "--workers", 1, "--part", f"{number}/2")
        outcome = run("jmp-data", "build", "oc20", *arguments)
        assert outcome.code == 0, outcome.err
        assert "--finalize" in outcome.err
    assert run("jmp-data", "build", "oc20", "--raw", raw, "--out", tmp_path, "--finalize").code == 0
    assert tree(tmp_path) == tree(shards)


def test_shuffle_stores_the_same_structures_in_another_order(raw: Path, shards: Path, tmp_path: Path) -> None:
    outcome = run("jmp-data", "build", "oc20", "--raw", raw, "--out", tmp_path, "--workers", 1, "--shuffle", "--json")
    assert outcome.code == 0, outcome.err
    before, after = ([s.source_id for s in open_dataset(out / "oc20/train")] for out in (shards, tmp_path))
    assert before != after
    assert sorted(before) == sorted(after)


def test_a_second_build_of_one_target_is_refused(raw: Path, shards: Path) -> None:
    with lock_targets([shards / "oc20" / "train"]):
        outcome = run("jmp-data", "build", "oc20", "--raw", raw, "--out", shards, "--workers", 1)
    assert outcome.code != 0
    assert "another build is at work" in outcome.error_lines[0]


def test_verify_repairs_what_is_damaged_and_goes_on_past_a_damaged_manifest(
    raw: Path, shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "shards"
    shutil.copytree(shards, out)
    (out / "oc20/train/positions/c/0/0/0").write_bytes(b"short")
    (out / "oc20/train/blocks.npy").unlink()
    manifest = out / "oc20/val_id/manifest.json"
    original = manifest.read_bytes()
    manifest.write_bytes(original.replace(b'"oc20"', b'"oc21"', 1))
    damaged = run("jmp-data", "verify", out, "--json")
    assert damaged.code != 0
    findings = {finding["file"] for finding in json.loads(damaged.out)["damage"]}
    assert {"manifest.json", "blocks.npy"} <= findings
    repaired = run("jmp-data", "verify", out, "--repair", "--raw", raw)
    assert [line for line in repaired.error_lines if "train" in line] == []
    assert run("jmp-data", "build", "oc20", "--raw", raw, "--out", out, "--workers", 1).code == 0
    assert run("jmp-data", "verify", out).code == 0
    assert tree(out) == tree(shards)


def test_shards_of_a_newer_format_say_how_to_upgrade(shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "oc20" / "train"
    shutil.copytree(shards / "oc20" / "train", folder)
    manifest = folder / "manifest.json"
    manifest.write_text(re.sub(r'"format_version": \d+', '"format_version": 99', manifest.read_text()))
    outcome = run("jmp-data", "inspect", folder)
    assert outcome.code != 0
    assert "format version 99" in outcome.error_lines[0]
    assert "upgrade jmp-data" in outcome.error_lines[0]


def test_progress_in_a_log_file_is_a_line_now_and_then(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(console.time, "monotonic", lambda: float(next(clock)))
    with console.progress("build", 6, "parts") as advance:
        for number in range(6):
            advance(1, f"{number} structures")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "build: 3/6 parts after 12 s, about 12 s left 2 structures"
    assert lines[-1].startswith("build: 6/6 parts")
    assert len(lines) < 6
