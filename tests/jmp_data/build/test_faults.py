"""Kill builds at random moments, fill the disk; the finished bytes equal those of an undisturbed build."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from jmp_data.shards.integrity import find_datasets, verify_dataset
from tests.jmp_data.build.fault_injection import ENGINES, prepared, run_to_end, run_under_fire, tree

Archives = tuple[Path, Path, dict[str, str]]


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archives]:
    with prepared(tmp_path_factory.mktemp("faults")) as made:
        yield made


def check(archives: Archives, tmp_path: Path, engine: str, kills: int, seed: int) -> None:
    raw, script, expected = archives
    log = run_under_fire(script, engine, raw, tmp_path / "out", expected, kills=kills, seed=seed)
    print(json.dumps(log.to_json()))
    assert log.kills.total() >= kills
    for dataset in find_datasets(tmp_path / "out"):
        assert verify_dataset(dataset) == []


@pytest.mark.parametrize("engine", ENGINES)
def test_killed_builds_end_with_the_same_bytes(archives: Archives, tmp_path: Path, engine: str) -> None:
    check(archives, tmp_path, engine, kills=2, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("seed", range(1, 6))
def test_killed_a_hundred_times(archives: Archives, tmp_path: Path, engine: str, seed: int) -> None:
    check(archives, tmp_path, engine, kills=20, seed=seed)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tiny file system needs root")
@pytest.mark.parametrize("engine", ["serial", "processes"])
def test_a_full_disk_is_one_clear_error_and_loses_nothing(archives: Archives, tmp_path: Path, engine: str) -> None:
    raw, script, expected = archives
    small, errors = tmp_path / "small", tmp_path / "stderr"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(small)], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        assert run_to_end(script, engine, raw, small, errors) != 0
        assert "No space left" in errors.read_text()
        subprocess.run(["mount", "-o", "remount,size=200m", str(small)], check=True)
        assert run_to_end(script, engine, raw, small, errors) == 0
        assert tree(small) == expected
    finally:
        subprocess.run(["umount", str(small)], check=False)
