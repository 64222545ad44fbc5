"""Agreement with the stored numbers of the original, whatever the files are called."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from jmp_data.errors import MissingFileError, RawFileError
from jmp_model.parity import run_parity, run_parity_report
from tests.shared import SHARED, needs_shared


@pytest.fixture(autouse=True)
def one_thread() -> object:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@needs_shared
@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-11), ("float32", 1e-5)])
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
