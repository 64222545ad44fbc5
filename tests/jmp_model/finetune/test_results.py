from __future__ import annotations

import json
from pathlib import Path

import pytest

from jmp_data.errors import ManifestError
from jmp_model.finetune.results import as_csv, as_markdown, collect_results, not_run
from jmp_model.finetune.series import finetune_series
from tests.jmp_model.finetune.small_tasks import scalar_task, small_config


def write_summary(
    folder: Path, task: str, value: float, *, seed: int = 0, fold: int | None = None, start: str | None = "x"
):
    folder.mkdir(parents=True)
    entry = {
        "task": task, "seed": seed, "fold": fold, "start": start, "primary": "p", "metrics": {"p": "mae"},
        "units": {"p": "meV"}, "test": {"p": value},
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(entry))


def test_table_has_means_spreads_and_published_figures(tmp_path: Path) -> None:
    for seed, value in enumerate((1.0, 2.0, 3.0)):
        write_summary(tmp_path / f"a{seed}", "rmd17:ethanol", value, seed=seed)
    write_summary(tmp_path / "b", "rmd17:ethanol", 12.0, start=None)
    write_summary(tmp_path / "c", "qm9:mu", 0.5)
    rows = collect_results([tmp_path])
    assert [(row.task, row.from_scratch) for row in rows] == [
        ("qm9:mu", False),
        ("rmd17:ethanol", False),
        ("rmd17:ethanol", True),
    ]
    assert (rows[1].mean, rows[1].spread) == (2.0, 1.0)
    assert (rows[1].compared("JMP-S"), rows[1].compared("JMP-L")) == (2.8, 2.0)
    assert "rmd17:ethanol,meV,checkpoint,3,2,1,2.8,2,13,13.3" in as_csv(rows)
    assert len(not_run(rows)) == 38
    assert "Not run: qm9:alpha" in as_markdown(rows)


def test_five_folds_are_compared_with_the_mean_of_five(tmp_path: Path) -> None:
    write_summary(tmp_path / "0", "matbench:phonons", 10.0, fold=0)
    assert collect_results([tmp_path])[0].compared("JMP-L") == 21.28
    for fold in range(1, 5):
        write_summary(tmp_path / str(fold), "matbench:phonons", 20.0, fold=fold)
    row = collect_results([tmp_path])[0]
    assert row.compared("JMP-L") == 20.57
    assert row.mean == 18.0


def test_no_runs(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no finished fine-tuning run"):
        collect_results([tmp_path])


def test_series_of_seeds_is_not_run_twice(root: Path, tmp_path: Path) -> None:
    config = small_config(scalar_task(), root, tmp_path / "series", steps=2)
    assert len(finetune_series(config, seeds=(0, 1))) == 2
    assert finetune_series(config, seeds=(0, 1)) == []
    row = collect_results([tmp_path / "series"])[0]
    assert {seed for seed, _, _ in row.scores} == {0, 1}
    assert row.published is None


def test_series_refuses_folds_that_are_not_there(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="has no folds"):
        finetune_series(small_config(scalar_task(), root, tmp_path / "series"), folds=(1,))
    with pytest.raises(ManifestError, match="at least one seed"):
        finetune_series(small_config(scalar_task(), root, tmp_path / "series"), seeds=())
