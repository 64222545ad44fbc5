from __future__ import annotations

import bz2
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from jmp_data.errors import RawFileError
from jmp_data.sources import get_source, matbench
from jmp_data.sources.matbench import TASKS, MatBench
from jmp_data.sources.matbench_folds import NUM_FOLDS, plain_folds
from tests.jmp_data.sources.collecting import Collected, collect
from tests.jmp_data.sources.miniatures_crystals import make_crystal, write_matbench
from tests.shared import SHARED, needs_shared


def rows_of(got: Collected) -> list[int]:
    return [int(source_id.rpartition("-")[2]) - 1 for source_id in got.ids]


def out_of_test_folds(raw: Path, task: str) -> dict[int, tuple[Collected, int]]:
    """Row of the table → where it came out, over the five test folds."""
    found = {}
    for fold in range(NUM_FOLDS):
        got = collect(MatBench(part=task), raw, f"fold{fold}_test")
        found |= {row: (got, position) for position, row in enumerate(rows_of(got))}
    return found


def test_structures_are_what_pymatgen_reads(tmp_path: Path) -> None:
    crystals = [make_crystal(seed, decorated=seed % 2 == 0) for seed in range(23)]
    write_matbench(tmp_path, "dielectric", "n", [(crystal, 1 + 0.1 * row) for row, crystal in enumerate(crystals)])
    found = out_of_test_folds(tmp_path, "dielectric")
    assert sorted(found) == list(range(23))
    for row, (got, position) in found.items():
        structure = got.block.structure(position)
        np.testing.assert_array_equal(structure.atomic_numbers, crystals[row].atomic_numbers)
        np.testing.assert_allclose(structure.positions, crystals[row].cart_coords, atol=1e-6)
        np.testing.assert_allclose(structure.cell, crystals[row].lattice.matrix, rtol=1e-7)
        assert structure.pbc is not None
        assert structure.pbc.all()
        assert structure.targets["n"] == 1 + 0.1 * row
        assert structure.source_id == f"matbench_dielectric.json.gz#mb-dielectric-{row + 1:02d}"
        assert structure.energy is None


def test_folds_are_split_as_published_and_leak_nothing(tmp_path: Path) -> None:
    write_matbench(tmp_path, "jdft2d", "exfoliation_en", [(make_crystal(seed), seed) for seed in range(57)])
    source = MatBench(part="jdft2d")
    names = [f"fold{fold}_{split}" for fold in range(5) for split in ("train", "val", "test")]
    assert source.splits(tmp_path) == tuple(names)
    folds = plain_folds(57)
    for fold in range(NUM_FOLDS):
        train, val, test = (
            rows_of(collect(source, tmp_path, f"fold{fold}_{name}")) for name in ("train", "val", "test")
        )
        assert test == np.flatnonzero(folds == fold).tolist()
        rest = np.flatnonzero(folds != fold)
        order = np.arange(len(rest))
        np.random.RandomState(42).shuffle(order)
        assert train == sorted(rest[order[: int(0.9 * len(rest))]])
        assert val == sorted(rest[order[int(0.9 * len(rest)) :]])


def test_fold_leakage_is_impossible_across_parts(tmp_path: Path) -> None:
    """Targets tell rows apart: no value of a test fold may turn up in what that fold trains or validates on."""
    write_matbench(tmp_path, "phonons", "last phdos peak", [(make_crystal(seed), 100.5 + seed) for seed in range(40)])
    for fold in range(NUM_FOLDS):
        seen = [collect(MatBench(part="phonons"), tmp_path, f"fold{fold}_{name}") for name in ("train", "val", "test")]
        train, val, test = (set(got.block.last_phdos_peak.tolist()) for got in seen)
        assert not test & (train | val)
        assert not train & val
        assert len(train | val | test) == 40


def test_classes_are_stratified_and_stay_truth_values(tmp_path: Path) -> None:
    labels = [seed % 3 == 0 for seed in range(50)]
    rows = [(make_crystal(seed), label) for seed, label in enumerate(labels)]
    write_matbench(tmp_path, "mp_is_metal", "is_metal", rows)
    found = out_of_test_folds(tmp_path, "mp_is_metal")
    assert [found[row][0].block.is_metal[found[row][1]] for row in range(50)] == labels
    assert found[0][0].block.is_metal.dtype == bool
    shares = [
        collect(MatBench(part="mp_is_metal"), tmp_path, f"fold{fold}_test").block.is_metal.sum() for fold in range(5)
    ]
    assert set(shares) <= {3, 4}


def test_elements_do_not_come_from_labels(tmp_path: Path) -> None:
    entry = make_crystal(1).as_dict()
    for site, label in zip(entry["sites"], ("Fe1", "X", "O2-"), strict=True):
        site["label"] = label
    write_matbench(tmp_path, "mp_gap", "gap pbe", [(entry, 0.5)] * 5)
    got = collect(MatBench(part="mp_gap"), tmp_path, "fold0_test")
    assert got.block.atomic_numbers.tolist() == [11, 17, 8]
    assert MatBench(part="mp_gap").schema["gap_pbe"].unit == "eV"


def test_unwrapped_atoms_and_a_rotated_cell_stay_as_they_are(tmp_path: Path) -> None:
    """Fractions outside 0 to 1 are not folded back, and a cell in any orientation, even a left-handed one, is kept."""
    angle = np.radians(37.0)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    cell = np.diag([4.0, 5.0, -6.0]) @ turn.T
    crystal = Structure(Lattice(cell), ["Na", "Cl"], [[1.25, -0.5, 0.0], [0.5, 2.5, -1.75]])
    write_matbench(tmp_path, "mp_gap", "gap pbe", [(crystal, 1.0)] * 5)
    structure = collect(MatBench(part="mp_gap"), tmp_path, "fold0_test").block.structure(0)
    np.testing.assert_allclose(structure.cell, cell, rtol=1e-6)
    np.testing.assert_allclose(structure.positions, [[1.25, -0.5, 0.0], [0.5, 2.5, -1.75]] @ cell, atol=1e-5)


def test_what_no_record_can_hold_is_quarantined(tmp_path: Path) -> None:
    good = make_crystal(0).as_dict()
    disordered, vacant, dummy, other = (json.loads(json.dumps(good)) for _ in range(4))
    disordered["sites"][0]["species"] = [{"element": "Na", "occu": 0.5}, {"element": "K", "occu": 0.5}]
    vacant["sites"][0]["species"][0]["occu"] = 0.75
    dummy["sites"][0]["species"][0]["element"] = "X0+"
    del other["lattice"]
    rows = [
        (good, 1.0),
        (disordered, 1.0),
        (vacant, 1.0),
        (dummy, 1.0),
        (other, 1.0),
        (good, None),
        (good, float("nan")),
    ]
    write_matbench(tmp_path, "perovskites", "e_form", rows)
    quarantined = []
    kept = 0
    for fold in range(NUM_FOLDS):
        got = collect(MatBench(part="perovskites"), tmp_path, f"fold{fold}_test")
        quarantined += got.quarantined
        kept += len(got.block)
    assert kept == 1
    by_row = {int(record.source_id[-1]) - 1: record for record in quarantined}
    reasons = {
        1: "disordered_site",
        2: "disordered_site",
        3: "no_element",
        4: "no_structure",
        5: "no_target",
        6: "no_target",
    }
    assert {row: record.reason for row, record in by_row.items()} == reasons
    assert "Na 0.5, K 0.5" in by_row[1].message
    assert json.loads(by_row[1].record)[0]["sites"][0]["species"][1]["element"] == "K"


def test_units_and_levels_are_the_published_ones() -> None:
    assert {name: task.target.unit for name, task in TASKS.items()} == {
        "jdft2d": "meV/atom",
        "phonons": "cm^-1",
        "dielectric": "",
        "log_gvrh": "log10(GPa)",
        "log_kvrh": "log10(GPa)",
        "perovskites": "eV/cell",
        "mp_gap": "eV",
        "mp_is_metal": "",
        "mp_e_form": "eV/atom",
    }
    # The same column name, but one is per cell and the other per atom.
    assert TASKS["perovskites"].target.kind == "extensive"
    assert TASKS["mp_e_form"].target.kind == "intensive"
    assert get_source("matbench:mp_e_form").required == ("e_form",)


def test_other_tables_are_refused(tmp_path: Path) -> None:
    path = write_matbench(tmp_path, "mp_gap", "e_form", [(make_crystal(0), 1.0)] * 5)
    with pytest.raises(RawFileError, match=r"expected structure and 'gap pbe'"):
        collect(MatBench(part="mp_gap"), tmp_path, "fold0_test")
    path.write_bytes(gzip.compress(b'{"index": [0, 1], "columns": ["structure", "gap pbe"], "data": [[{}, 1]]}'))
    with pytest.raises(RawFileError, match="has 1 rows, but its index has 2"):
        collect(MatBench(part="mp_gap"), tmp_path, "fold0_test")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(RawFileError, match="not a whole gzip file"):
        MatBench(part="mp_gap").splits(tmp_path)


def test_a_table_without_index_is_counted(tmp_path: Path) -> None:
    rows = [[make_crystal(seed).as_dict(), 1.0] for seed in range(7)]
    path = tmp_path / "matbench_mp_e_form.json"
    path.write_text(json.dumps({"columns": ["structure", "e_form"], "data": rows}))
    assert (
        sum(len(rows_of(collect(MatBench(part="mp_e_form"), tmp_path, f"fold{fold}_test"))) for fold in range(5)) == 7
    )


@needs_shared
def test_the_real_wrapper_with_real_targets(tmp_path: Path) -> None:
    """The one public file in this wrapper holds one structure with decorated labels; targets are jdft2d's real ones."""
    assert SHARED is not None
    table = json.loads((SHARED / "samples/matbench/matminer_dataframe.json").read_text())
    artifact = json.loads(bz2.decompress((SHARED / "samples/matbench/matbench_jdft2d.artifact.json.bz2").read_bytes()))
    targets = list(artifact["exfoliation_en"].values())
    entry = table["data"][0][0]
    write_matbench(tmp_path, "jdft2d", "exfoliation_en", [(entry, target) for target in targets])
    expected = Structure.from_dict(entry)
    source = MatBench(part="jdft2d")
    assert len(source.splits(tmp_path)) == 15
    got = collect(source, tmp_path, "fold0_test")
    assert [source_id.partition("#")[2] for source_id in got.ids[:2]] == ["mb-jdft2d-012", "mb-jdft2d-014"]
    assert got.block.exfoliation_en.tolist() == [targets[row] for row in rows_of(got)]
    structure = got.block.structure(0)
    assert structure.atomic_numbers.tolist() == [6, 6]
    np.testing.assert_allclose(structure.positions, expected.cart_coords, atol=1e-6)
    # The mean over the rest is what the published dummy model predicts for this fold, 117.03965287603667.
    rest = [collect(source, tmp_path, f"fold0_{name}").block.exfoliation_en for name in ("train", "val")]
    assert np.concatenate(rest).mean() == pytest.approx(117.03965287603667, rel=1e-10)


def test_golden_structure(tmp_path: Path) -> None:
    """By hand: lattice rows (2.189, 0, 1.264), (0.73, 2.064, 1.264), (0, 0, 2.528); fractions (0.25, 0.5, 0.75).

    x = 0.25*2.189 + 0.5*0.73 = 0.91225; y = 0.5*2.064 = 1.032; z = 0.25*1.264 + 0.5*1.264 + 0.75*2.528 = 2.844 (Å);
    exfoliation energies stay in meV/atom, here 126.85.
    """
    site = {"species": [{"element": "C", "oxidation_state": 0.0, "occu": 1}], "abc": [0.25, 0.5, 0.75], "label": "C0+"}
    entry = {"lattice": {"matrix": [[2.189, 0.0, 1.264], [0.73, 2.064, 1.264], [0.0, 0.0, 2.528]]}, "sites": [site]}
    write_matbench(tmp_path, "jdft2d", "exfoliation_en", [(entry, 126.85)] * 5)
    structure = collect(MatBench(part="jdft2d"), tmp_path, "fold0_test").block.structure(0)
    np.testing.assert_allclose(structure.positions, [[0.91225, 1.032, 2.844]], atol=1e-6)
    np.testing.assert_allclose(structure.cell[1], [0.73, 2.064, 1.264], atol=1e-7)
    assert structure.targets["exfoliation_en"] == 126.85


def test_parts_are_cut_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_matbench(tmp_path, "mp_gap", "gap pbe", [(make_crystal(seed), float(seed)) for seed in range(30)])
    whole = collect(MatBench(part="mp_gap"), tmp_path, "fold0_train")
    monkeypatch.setattr(matbench, "_ROWS_PER_PART", 4)
    parts = collect(MatBench(part="mp_gap"), tmp_path, "fold0_train")
    assert parts.ids == whole.ids
    np.testing.assert_array_equal(parts.block.positions, whole.block.positions)
