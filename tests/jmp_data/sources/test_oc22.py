"""OC22: three generations of pickled records, golden values, and records that must not be decoded."""

from __future__ import annotations

import os
import pickle
import re
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from jmp_data import demo
from jmp_data.errors import ManifestError, MissingFileError, RawFileError
from jmp_data.sources import get_source, oc22
from tests.jmp_data.sources.reading import read_split
from tests.raw_archives import random_frames

INNER = Path("s2ef_total_train_val_test_lmdbs/data/oc22/s2ef-total")


def fields(**changes: Any) -> dict[str, Any]:
    """A two-atom record as in the published files."""
    values: dict[str, Any] = {
        "y": -695.13171908,
        "pos": torch.tensor([[0.5, 1.0, 1.5], [-0.25, 2.0, 12.125]]),
        "cell": torch.tensor([[[5.0, 0, 0], [0.5, 6.0, 0], [0, 0, 20.0]]]),
        "atomic_numbers": torch.tensor([8.0, 78.0]),
        "natoms": 2,
        "force": torch.tensor([[0.125, 0, -1.0], [0, 0.25, 3.0]]),
        "fixed": torch.tensor([1.0, 0.0]),
        "tags": torch.tensor([0, 2]),
        "sid": 11385,
        "fid": 146,
        "id": "29_27578",
        "nads": 1,
        "oc22": 1,
        "edge_index": None,
    }
    return {name: value for name, value in {**values, **changes}.items() if value != "absent"}


def pickled(values: dict[str, Any]) -> bytes:
    data = Data.__new__(Data)
    object.__getattribute__(data, "__dict__").update(values)
    return pickle.dumps(data, protocol=4)


def write_records(raw: Path, records: list[bytes], *, split: str = "train", write_length: bool = True) -> Path:
    path = raw / INNER / split / "data.0001.lmdb"
    path.parent.mkdir(parents=True, exist_ok=True)
    demo.write_lmdb(path, records, write_length=write_length)
    return path


def test_golden_values(tmp_path: Path) -> None:
    write_records(tmp_path, [pickled(fields())])
    structure = read_split("oc22", tmp_path, "train").block.structure(0)
    assert structure.energy == -695.13171908  # a float64 total energy, unchanged
    assert structure.atomic_numbers.tolist() == [8, 78]  # stored as floats
    assert structure.positions.tolist() == [[0.5, 1.0, 1.5], [-0.25, 2.0, 12.125]]
    assert structure.forces.tolist() == [[0.125, 0, -1.0], [0, 0.25, 3.0]]
    assert structure.fixed.tolist() == [True, False]
    assert structure.tags.tolist() == [0, 2]
    assert structure.cell.tolist() == [[5, 0, 0], [0.5, 6, 0], [0, 0, 20]]
    assert structure.pbc.tolist() == [True, True, True]  # absent in the file
    assert structure.source_id == "train/data.0001.lmdb#0:11385/146"


@pytest.mark.parametrize("generation", ["pyg1", "pyg2", "pyg2_renamed"])
def test_every_generation_gives_the_same(tmp_path: Path, generation: Literal["pyg1", "pyg2", "pyg2_renamed"]) -> None:
    frames = random_frames(3, 30)
    demo.write_oc22_split(tmp_path, "val_id", frames, frames_per_file=12, generations=(generation,))
    outcome = read_split("oc22", tmp_path, "val")
    assert len(outcome.block) == 30
    for row, frame in enumerate(frames):
        structure = outcome.block.structure(row)
        assert structure.energy == frame.energy
        np.testing.assert_array_equal(structure.atomic_numbers, frame.atomic_numbers)
        np.testing.assert_array_equal(structure.positions, frame.positions.astype(np.float32))
        np.testing.assert_array_equal(structure.forces, frame.forces.astype(np.float32))
        np.testing.assert_array_equal(structure.cell, frame.cell.astype(np.float32))
        np.testing.assert_array_equal(structure.tags, frame.tags)
        np.testing.assert_array_equal(structure.fixed, frame.fixed)
        assert structure.source_id == f"val_id/data.{row // 12:04d}.lmdb#{row % 12}:{frame.system}/{frame.frame}"


def test_other_spellings_of_the_same_record(tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [
        {"sid": torch.tensor(7), "fid": torch.tensor([3])},
        {"y": torch.tensor([-2.5], dtype=torch.float64)},
        {"y": "absent", "energy": -2.5},
        {"force": "absent", "forces": torch.ones(2, 3, dtype=torch.float64)},
        {"atomic_numbers": torch.tensor([8, 78])},
        {"cell": torch.eye(3) * 9},
        {"pbc": torch.tensor([[True, True, False]])},
        {"fixed": torch.tensor([True, False]), "natoms": torch.tensor([2])},
    ]
    write_records(tmp_path, [pickled(fields(**change)) for change in changes], write_length=False)
    outcome = read_split("oc22", tmp_path, "train")
    assert len(outcome.block) == len(changes)
    assert outcome.ids[0].endswith("#0:7/3")
    assert outcome.block.energy.tolist()[1:3] == [-2.5, -2.5]
    assert outcome.block.structure(3).forces.tolist() == [[1, 1, 1]] * 2
    assert outcome.block.structure(6).pbc.tolist() == [True, True, False]
    assert outcome.block.fixed.reshape(-1, 2).tolist() == [[True, False]] * len(changes)


class Attack:
    """What a hostile record would hold."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("this-was-executed",)


def test_an_unknown_class_is_quarantined_and_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    records = [pickled(fields()), pickle.dumps(Attack()), pickled(fields(extra=Attack())), pickled(fields(sid=1))]
    write_records(tmp_path, records)
    outcome = read_split("oc22", tmp_path, "train")
    assert len(outcome.block) == 2
    assert [(item.reason, item.source_id) for item in outcome.quarantined] == [
        ("unsafe_pickle", "train/data.0001.lmdb#1"),
        ("unsafe_pickle", "train/data.0001.lmdb#2"),
    ]
    assert "data.0001.lmdb: record 1" in outcome.quarantined[0].message
    assert bytes.fromhex(outcome.quarantined[0].record) == records[1]
    assert not (tmp_path / "this-was-executed").exists()


@pytest.mark.parametrize(
    ("change", "reason", "message"),
    [
        ({"y": "absent"}, "malformed_record", "no y or energy"),
        ({"y": None}, "malformed_record", "no y or energy"),
        ({"force": "absent"}, "malformed_record", "no force or forces"),
        ({"pos": "absent"}, "malformed_record", "no pos"),
        ({"tags": "absent"}, "malformed_record", "no tags"),
        (
            {"force": torch.zeros(3, 3)},
            "malformed_record",
            r"force is float32\(3, 3\), expected.* \(2, 3\)",
        ),
        ({"cell": torch.zeros(2, 3, 3)}, "malformed_record", r"cell is float32\(2, 3, 3\)"),
        ({"y": "high"}, "malformed_record", "expected one number"),
        ({"atomic_numbers": torch.tensor([8.5, 78.0])}, "atomic_number", "integers from 1 to 118"),
        ({"atomic_numbers": torch.tensor([8.0, 264.0])}, "atomic_number", "integers from 1 to 118"),
        ({"atomic_numbers": torch.tensor([8.0, float("nan")])}, "atomic_number", "integers from 1 to 118"),
        ({"tags": torch.tensor([-1, 2])}, "atomic_number", "tags"),
    ],
)
def test_a_malformed_record_is_quarantined_alone(
    tmp_path: Path, change: dict[str, Any], reason: str, message: str
) -> None:
    write_records(tmp_path, [pickled(fields(sid=0)), pickled(fields(**change)), pickled(fields(sid=2))])
    outcome = read_split("oc22", tmp_path, "train")
    assert [name.split(":")[1] for name in outcome.ids] == ["0/146", "2/146"]
    (item,) = outcome.quarantined
    assert item.reason == reason
    assert re.search(message, item.message)
    assert "#1" in item.source_id
    assert item.record


def test_nan_forces_pass_through_to_validation(tmp_path: Path) -> None:
    write_records(tmp_path, [pickled(fields(force=torch.full((2, 3), float("nan"))))])
    assert np.isnan(read_split("oc22", tmp_path, "train").block.forces).all()


def test_a_missing_key_is_counted(tmp_path: Path) -> None:
    import lmdb

    path = write_records(tmp_path, [pickled(fields(sid=sid)) for sid in range(5)])
    with lmdb.open(str(path), subdir=False, lock=False) as database, database.begin(write=True) as transaction:
        transaction.delete(b"3")
    outcome = read_split("oc22", tmp_path, "train")
    assert len(outcome.block) == 4
    assert [(item.reason, item.damaged_file) for item in outcome.quarantined] == [("missing_record", True)]
    assert outcome.quarantined[0].message.startswith("train/data.0001.lmdb: record 3 is missing")


def test_a_damaged_pickle_is_quarantined(tmp_path: Path) -> None:
    write_records(tmp_path, [pickled(fields()), pickled(fields())[:-200], b"", pickled(fields(sid=3))])
    outcome = read_split("oc22", tmp_path, "train")
    assert len(outcome.block) == 2
    assert Counter(item.reason for item in outcome.quarantined) == {"damaged_record": 2}


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    path = write_records(tmp_path, [pickled(fields(sid=sid)) for sid in range(200)])
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(RawFileError, match=r"data\.0001\.lmdb"):
        get_source("oc22").plan(tmp_path, "train")


def test_parts_are_ranges_of_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oc22, "MAX_STRUCTURES_PER_PART", 4)
    monkeypatch.setattr(oc22, "RECORDS_PER_BLOCK", 3)
    demo.write_oc22_split(tmp_path, "train", random_frames(0, 14), frames_per_file=9)
    plan = get_source("oc22").plan(tmp_path, "train")
    assert [part.selection for part in plan.parts] == [(0, 4), (4, 8), (8, 9), (0, 4), (4, 5)]
    outcome = read_split("oc22", tmp_path, "train")
    assert [int(name.rsplit("/", 1)[1]) for name in outcome.ids] == list(range(14))


def test_unlabelled_and_unknown_splits_are_refused(tmp_path: Path) -> None:
    for split in ("train", "test_id", "test_ood"):
        write_records(tmp_path, [pickled(fields())], split=split)
    source = get_source("oc22")
    assert source.splits(tmp_path) == ("train",)
    with pytest.raises(ManifestError, match="without labels"):
        source.plan(tmp_path, "test_id")
    with pytest.raises(MissingFileError, match="s2ef-total/val_ood"):
        source.plan(tmp_path, "val_ood")


def test_other_lmdbs_are_not_taken(tmp_path: Path) -> None:
    for folder in ("is2re-total/train", "s2ef/train"):
        path = tmp_path / "data" / "oc22" / folder / "data.0001.lmdb"
        path.parent.mkdir(parents=True)
        demo.write_lmdb(path, [pickled(fields())])
    with pytest.raises(MissingFileError, match="jmp-data download oc22"):
        get_source("oc22").splits(tmp_path)


@pytest.mark.parametrize("below", ["", "data/oc22/s2ef-total", "data/oc22/s2ef-total/train"])
def test_any_folder_above_the_files_will_do(tmp_path: Path, below: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_records(tmp_path, [pickled(fields())])
    monkeypatch.chdir(tmp_path / "s2ef_total_train_val_test_lmdbs" / below)
    assert read_split("oc22", Path(), "train").ids == ["train/data.0001.lmdb#0:11385/146"]
