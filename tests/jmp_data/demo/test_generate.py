"""Whole archives or none: caching, interruption, foreign folders. Trivial calculations stand in for the physics."""

from __future__ import annotations

import operator
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import jmp_data.demo.generate as generate
from jmp_data.demo import write_demo_raw
from jmp_data.demo.archives import ArchivePlan, Calculation
from jmp_data.demo.calculators import make_xtb
from jmp_data.errors import MissingExtraError, RawFileError


def plan_sums(name: str, seed: int, fail_after_writing: bool = False) -> ArchivePlan:
    def write(directory: Path, results: Sequence[int]) -> dict[str, int]:
        (directory / "inner").mkdir()
        (directory / "inner" / "sums.txt").write_text(" ".join(map(str, results)))
        if fail_after_writing:
            raise OSError("disk full")
        return {"train": len(results)}

    calculations = tuple(Calculation(operator.add, (seed, number), 1) for number in range(3))
    return ArchivePlan(name, "sums", False, calculations, write)


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    options: dict[str, Any] = {"broken": ()}

    def plan(seed: int, scale: float) -> tuple[ArchivePlan, ...]:
        return tuple(plan_sums(name, seed, name in options["broken"]) for name in ("one", "two"))

    monkeypatch.setattr(generate, "plan_archives", plan)
    return options


@pytest.mark.usefixtures("planned")
def test_results_keep_the_order_of_the_plan_and_progress_counts_up(tmp_path: Path) -> None:
    events: list[tuple[str, int, int]] = []
    summary = write_demo_raw(tmp_path / "new" / "demo", seed=5, progress=lambda *event: events.append(event))
    assert (tmp_path / "new/demo/one/inner/sums.txt").read_text() == "5 6 7"
    assert [event for event in events if event[0] == "two"] == [("two", done, 3) for done in (1, 2, 3)]
    assert [(archive.name, archive.structures, archive.reused) for archive in summary.archives] == [
        ("one", {"train": 3}, False),
        ("two", {"train": 3}, False),
    ]
    assert summary.archives[0].files == {"inner/sums.txt": 5}
    assert sorted(path.name for path in (tmp_path / "new/demo").iterdir()) == ["one", "two"]


@pytest.mark.usefixtures("planned")
def test_a_complete_archive_is_reused_and_a_damaged_or_different_one_is_remade(tmp_path: Path) -> None:
    write_demo_raw(tmp_path)
    assert all(archive.reused for archive in write_demo_raw(tmp_path).archives)
    (tmp_path / "two/inner/sums.txt").unlink()
    assert [archive.reused for archive in write_demo_raw(tmp_path).archives] == [True, False]
    assert [archive.reused for archive in write_demo_raw(tmp_path, seed=9).archives] == [False, False]
    assert (tmp_path / "one/inner/sums.txt").read_text() == "9 10 11"


def test_workers_run_one_thread_and_the_environment_is_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(directory: Path, results: Sequence[str | None]) -> dict[str, int]:
        assert list(results) == ["1", "1"]
        return {"train": 2}

    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    calculations = tuple(Calculation(os.getenv, (name,), 1) for name in names)
    monkeypatch.setattr(generate, "plan_archives", lambda *_: (ArchivePlan("one", "", False, calculations, write),))
    monkeypatch.setenv(names[0], "7")
    monkeypatch.delenv(names[1], raising=False)
    write_demo_raw(tmp_path)
    assert [os.environ.get(name) for name in names] == ["7", None]


def test_an_interrupted_archive_has_no_name_and_the_finished_one_is_kept(
    tmp_path: Path, planned: dict[str, Any]
) -> None:
    planned["broken"] = ("two",)
    with pytest.raises(OSError, match="disk full"):
        write_demo_raw(tmp_path)
    assert not (tmp_path / "two").exists()
    planned["broken"] = ()
    summary = write_demo_raw(tmp_path)
    assert not summary.archives[1].reused
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


@pytest.mark.usefixtures("planned")
@pytest.mark.parametrize("description", [None, "{", "[]", "{}"])
def test_a_folder_that_it_did_not_make_is_never_touched(tmp_path: Path, description: str | None) -> None:
    precious = tmp_path / "one" / "s2ef_train_2M"
    precious.mkdir(parents=True)
    if description is not None:
        (tmp_path / "one" / "demo.json").write_text(description)
    with pytest.raises(RawFileError, match="one exists and was not made by demo-raw"):
        write_demo_raw(tmp_path)
    assert precious.is_dir()
    assert not (tmp_path / "two").exists()


def test_without_tblite_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tblite.ase", None)
    with pytest.raises(MissingExtraError, match=r"pip install jmp-data\[demo\]"):
        make_xtb()
    with pytest.raises(MissingExtraError):
        write_demo_raw(tmp_path / "demo")
    assert not (tmp_path / "demo").exists()
