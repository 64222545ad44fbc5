"""OC22 LMDBs as several generations of PyG pickled them, record by record."""

from __future__ import annotations

import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
import torch

import jmp_data
from tests.flow import archives_oc22 as oc22
from tests.flow.building import build
from tests.flow.truth import assert_same

Payload = dict[str, Any]
PICKLED = {"old PyG": oc22.pickled_by_old_pyg, "installed PyG": oc22.pickled_by_installed_pyg}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("generation", PICKLED)
def test_every_generation_and_protocol(generation: str, protocol: int, tmp_path: Path) -> None:
    entries = oc22.make_entries(5, seed=protocol)
    payloads = [oc22.published_payload(entry) for entry in entries]
    folder = oc22.split_folder(tmp_path / "raw", "train")
    oc22.write_lmdb(folder / "data.0000.lmdb", payloads[:3], PICKLED[generation], protocol=protocol)
    oc22.write_lmdb(folder / "data.0001.lmdb", payloads[3:], PICKLED[generation], protocol=protocol)
    build("oc22", tmp_path / "raw", tmp_path / "out")
    assert_same(tmp_path / "out" / "oc22", [oc22.truth_of(entry, "train") for entry in entries])


def _renamed(payload: Payload) -> Payload:
    payload["energy"], payload["forces"] = payload.pop("y"), payload.pop("force")
    return payload


def _one_storage(payload: Payload) -> Payload:
    both = torch.cat([torch.zeros(3, 6), torch.cat([payload["pos"], payload["force"]], dim=1)])[3:]
    return {**payload, "pos": both[:, :3], "force": both[:, 3:]}


VARIANTS: dict[str, Callable[[Payload], Payload]] = {
    "names since 2024": _renamed,
    "views of one storage": _one_storage,
    "column-major": lambda p: {**p, "pos": p["pos"].t().contiguous().t(), "force": p["force"].t().contiguous().t()},
    "double precision": lambda p: {**p, **{name: p[name].double() for name in ("pos", "cell", "force")}},
    "energy as a vector": lambda p: {**p, "y": torch.tensor([p["y"]], dtype=torch.float64)},
    "energy as a scalar": lambda p: {**p, "y": torch.tensor(p["y"], dtype=torch.float64)},
    "NumPy numbers": lambda p: {**p, "y": np.float64(p["y"]), "sid": np.int64(p["sid"]), "fid": np.int32(p["fid"])},
    "NumPy arrays": lambda p: {**p, "pos": p["pos"].numpy(), "force": p["force"].numpy(), "y": np.array([p["y"]])},
    "0-d ids": lambda p: {**p, "sid": torch.tensor(p["sid"]), "natoms": torch.tensor(p["natoms"])},
    "one-element ids": lambda p: {**p, "sid": torch.tensor([p["sid"]]), "natoms": torch.tensor([p["natoms"]])},
    "text id": lambda p: {**p, "sid": str(p["sid"])},
    "integer atomic numbers": lambda p: {**p, "atomic_numbers": p["atomic_numbers"].to(torch.uint8)},
    "other types of flags": lambda p: {**p, "fixed": p["fixed"].bool(), "tags": p["tags"].float()},
    "cell without a batch axis, pbc": lambda p: {**p, "cell": p["cell"][0], "pbc": torch.tensor([[True] * 3])},
    "with edges": lambda p: {**p, "edge_index": torch.zeros(2, 50, dtype=torch.long), "distances": torch.rand(50)},
    "needed names alone": lambda p: {
        name: p[name] for name in ("y", "pos", "cell", "atomic_numbers", "tags", "force", "fixed", "sid", "fid")
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("generation", PICKLED)
def test_other_shapes_and_types_of_the_same_records(variant: str, generation: str, tmp_path: Path) -> None:
    entries = oc22.make_entries(3, seed=11)
    payloads = [VARIANTS[variant](oc22.published_payload(entry)) for entry in entries]
    path = oc22.split_folder(tmp_path / "raw", "val_id") / "data.0000.lmdb"
    oc22.write_lmdb(path, payloads, PICKLED[generation])
    build("oc22", tmp_path / "raw", tmp_path / "out")
    assert_same(tmp_path / "out" / "oc22", [oc22.truth_of(entry, "val_id") for entry in entries])


def test_many_files_and_all_five_splits(tmp_path: Path) -> None:
    train = oc22.make_entries(26, seed=6)
    folder = oc22.split_folder(tmp_path / "raw", "train")
    for number, name in enumerate(["data.0000", "data.0010", "data.2", "shard"]):
        entries = train[13 * number : 13 * number + 13] if number < 2 else []
        oc22.write_lmdb(folder / f"{name}.lmdb", list(map(oc22.published_payload, entries)), with_length=number != 1)
        (folder / f"{name}.txt").write_text("clean\n" * len(entries))
    np.savez(folder / "metadata.npz", natoms=[len(entry.numbers) for entry in train])
    truths = [oc22.truth_of(entry, "train") for entry in train]
    for seed, split in enumerate(("val_id", "val_ood", "test_id", "test_ood")):
        entries = oc22.make_entries(3, seed=20 + seed)
        payloads = [oc22.published_payload(entry) for entry in entries]
        if split.startswith("test"):
            payloads = [{name: p[name] for name in p if name not in ("y", "force")} for p in payloads]
        else:
            truths += [oc22.truth_of(entry, split) for entry in entries]
        oc22.write_lmdb(oc22.split_folder(tmp_path / "raw", split) / "data.0000.lmdb", payloads)
    assert set(build("oc22", tmp_path / "raw", tmp_path / "out")) == {"train", "val_id", "val_ood"}
    assert_same(tmp_path / "out" / "oc22", truths)
    built = jmp_data.open_dataset(str(tmp_path / "out" / "oc22" / "train"))
    # LMDB sorts keys as text, so that record 10 follows record 1; the order of the numbers is kept.
    assert [structure.energy for structure in built] == [entry.energy for entry in train]


class _Unknown:
    pass


def test_a_record_of_an_unknown_class_is_set_aside_alone(tmp_path: Path) -> None:
    entries = oc22.make_entries(4, seed=2)
    path = oc22.split_folder(tmp_path / "raw", "train") / "data.0000.lmdb"
    oc22.write_lmdb(path, list(map(oc22.published_payload, entries)))
    with lmdb.open(str(path), subdir=False, map_size=1 << 26) as environment, environment.begin(write=True) as writing:
        writing.put(b"2", pickle.dumps(_Unknown()))
    done = build("oc22", tmp_path / "raw", tmp_path / "out")
    assert dict(done["train"].manifest.quarantined) == {"unsafe_pickle": 1}
    quarantine = (tmp_path / "out" / "oc22" / "train" / "quarantine.jsonl").read_text()
    assert "train/data.0000.lmdb: record 2" in quarantine
    assert "_Unknown" in quarantine
    assert_same(tmp_path / "out" / "oc22", [oc22.truth_of(entry, "train") for entry in (*entries[:2], entries[3])])


def test_the_published_archive_as_it_comes(tmp_path: Path) -> None:
    entries = oc22.make_entries(3, seed=2)
    path = oc22.split_folder(tmp_path / "elsewhere", "train") / "data.0000.lmdb"
    oc22.write_lmdb(path, list(map(oc22.published_payload, entries)))
    (tmp_path / "raw").mkdir()
    with tarfile.open(tmp_path / "raw" / "s2ef_total_train_val_test_lmdbs.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "elsewhere" / "s2ef_total_train_val_test_lmdbs", "s2ef_total_train_val_test_lmdbs")
    build("oc22", tmp_path / "raw", tmp_path / "out")
    assert_same(tmp_path / "out" / "oc22", [oc22.truth_of(entry, "train") for entry in entries])
