"""The trust pass as a build runs it: what is set aside, what is flagged, and that no count is open."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import yaml
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator

from jmp_data import Mixture, open_dataset
from jmp_data.build import BuildSettings, choose_engine, plan_build, run_array_part, run_build, run_finalize
from jmp_data.errors import RawFileError
from jmp_data.schema import Block, Schema, Structure
from jmp_data.schema.fields import ENERGY, FORCES
from jmp_data.shards.integrity import verify_dataset
from jmp_data.shards.manifest import DatasetManifest
from jmp_data.trust import TrustThresholds, flagged_rows, read_flags
from jmp_data.trust.part_trust import PartTrust, judge_split

COUNT = 90


def suspicious_frames() -> list[Atoms]:
    """Waters; 3 and 62 have two atoms on top of each other, 10 two too close, 20 a huge force, 30 a net force, 40 the
    energy of something else, and 80 repeats 5."""
    random = np.random.default_rng(0)
    frames = []
    for number in range(COUNT):
        atoms = molecule("H2O")
        atoms.positions += random.normal(scale=0.05, size=(3, 3))
        forces = random.normal(size=(3, 3))
        forces -= forces.mean(axis=0)
        energy = -14.0 + random.normal(scale=0.05)
        if number in (3, 62):
            atoms.positions[2] = atoms.positions[1]
        if number == 10:
            atoms.positions[2] = atoms.positions[1] + [0, 0.1, 0]
        if number == 20:
            forces = np.array([[500.0, 0, 0], [-500, 0, 0], [0, 0, 0]])
        if number == 30:
            forces += 1.0
        if number == 40:
            energy = -400.0
        if number == 80:
            atoms.positions = frames[5].positions
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
        frames.append(atoms)
    return frames


EXPECTED = {
    (9, "mine.extxyz#10", "atoms_too_close"),  # one place down: #3 is not stored
    (19, "mine.extxyz#20", "large_force"),
    (19, "mine.extxyz#20", "force_outlier"),
    (29, "mine.extxyz#30", "net_force"),
    (39, "mine.extxyz#40", "energy_outlier"),
    (78, "mine.extxyz#80", "duplicate_frame"),
}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    ase.io.write(folder / "mine.extxyz", suspicious_frames())
    write_manifest(folder)
    return folder


def write_manifest(folder: Path, name: str = "mine", **trust: Any) -> Path:
    content: dict[str, Any] = {"name": name, "files": ["mine.extxyz"], "splits": {"fractions": {"train": 1.0}}}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content | ({"trust": trust} if trust else {})))
    return path


def build(manifest: Path, out: Path, **options: Any) -> DatasetManifest:
    settings = BuildSettings(**options)
    builds = plan_build([str(manifest)], manifest.parent, out, settings=settings)
    (done,) = run_build(builds, choose_engine(workers=1, scheduler=None), lambda part: None)
    assert verify_dataset(done.dataset) == []
    return done.manifest


def test_what_is_broken_is_set_aside_and_what_is_odd_is_flagged(raw: Path, tmp_path: Path) -> None:
    manifest = build(raw / "mine.yaml", tmp_path)
    folder = tmp_path / "mine/train"
    assert manifest.quarantined == {"atoms_on_top": 2}
    assert manifest.records_in == manifest.num_structures + 2 == COUNT
    lines = [json.loads(line) for line in (folder / "quarantine.jsonl").read_text().splitlines()]
    assert [line["source_id"] for line in lines] == ["mine.extxyz#3", "mine.extxyz#62"]
    assert "0.000 Å apart" in lines[0]["message"]
    assert len(json.loads(lines[0]["record"])["positions"]) == 3  # kept whole
    flags = read_flags(folder)
    assert {(flag.index, flag.source_id, flag.reason) for flag in flags} == EXPECTED
    assert manifest.flagged == {flag.reason: 1 for flag in flags}
    dataset = open_dataset(folder)
    assert all(dataset[flag.index].source_id == flag.source_id for flag in flags)
    (repeat,) = [flag for flag in flags if flag.reason == "duplicate_frame"]
    assert repeat.message == "repeats mine.extxyz#5"
    assert manifest.provenance["trust"]["min_distance"] == 0.4


def test_flags_leave_structures_out_of_training_where_a_user_wants_that(raw: Path, tmp_path: Path) -> None:
    build(raw / "mine.yaml", tmp_path)
    folder = tmp_path / "mine/train"
    rows = flagged_rows(read_flags(folder), ["energy_outlier", "duplicate_frame"])
    assert rows.tolist() == [39, 78]
    mixture = Mixture.from_datasets({"mine": str(folder)}, exclusions={"mine": rows})
    assert mixture.epoch_size == COUNT - 4
    assert flagged_rows(read_flags(folder)).tolist() == [9, 19, 29, 39, 78]
    assert read_flags(tmp_path / "mine") == []


def test_flags_follow_structures_through_a_shuffle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jmp_data.build.shuffle.BUCKET_ATOMS", 60)
    frames = suspicious_frames()
    for number in range(3):
        ase.io.write(tmp_path / f"{number}.extxyz", frames[number * 30 : number * 30 + 30])
    manifest = tmp_path / "mine.yaml"
    manifest.write_text("name: mine\nfiles: ['*.extxyz']\nsplits: {fractions: {train: 1.0}}\n")
    flags = {}
    for shuffle in (None, 3):
        build(manifest, tmp_path / str(shuffle), shuffle=shuffle)
        flags[shuffle] = read_flags(tmp_path / str(shuffle) / "mine/train")
    dataset = open_dataset(tmp_path / "3/mine/train")
    assert all(dataset[flag.index].source_id == flag.source_id for flag in flags[3])
    assert {(f.source_id, f.reason) for f in flags[3]} == {(f.source_id, f.reason) for f in flags[None]}
    assert [flag.index for flag in flags[3]] != [flag.index for flag in flags[None]]
    (repeat,) = [flag for flag in flags[3] if flag.reason == "duplicate_frame"]
    assert repeat.message == "repeats 0.extxyz#5"


def test_thresholds_of_the_manifest_decide(raw: Path, tmp_path: Path) -> None:
    strict = write_manifest(
        raw, "strict", quarantine=["atoms_on_top", "atoms_too_close", "large_force"], energy_outlier=None
    )
    manifest = build(strict, tmp_path)
    assert manifest.quarantined == {"atoms_on_top": 2, "atoms_too_close": 1, "large_force": 1}
    assert manifest.flagged == {"duplicate_frame": 1, "net_force": 1}
    off = write_manifest(
        raw, "off", on_top_distance=None, min_distance=None, max_force=None, max_net_force=None, duplicates=False,
        force_outlier=None, energy_outlier=None,
    )  # fmt: skip
    manifest = build(off, tmp_path)
    assert (manifest.num_structures, manifest.quarantined, manifest.flagged) == (COUNT, {}, {})
    assert not (tmp_path / "off/train/flags.jsonl").exists()


def test_other_thresholds_make_other_parts(raw: Path, tmp_path: Path) -> None:
    """A changed threshold must not find the parts of an earlier build finished."""
    manifest = write_manifest(raw, "changing")
    assert build(manifest, tmp_path).quarantined == {"atoms_on_top": 2}
    write_manifest(raw, "changing", quarantine=[])
    again = build(manifest, tmp_path)
    assert again.quarantined == {}
    assert again.flagged["atoms_on_top"] == 2


def test_fail_stops_at_a_broken_record_and_not_at_a_flag(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(RawFileError, match=r"mine\.extxyz#3: two atoms"):
        build(raw / "mine.yaml", tmp_path / "strict", on_error="fail")
    lenient = write_manifest(raw, "lenient", quarantine=[])
    assert build(lenient, tmp_path, on_error="fail").num_structures == COUNT


def test_flags_follow_their_structures_where_the_split_has_another_order(tmp_path: Path) -> None:
    """As in a shuffled build: whoever knows the final order gives the places."""
    frames = list(map(Structure.from_ase, suspicious_frames()))
    named = [replace(frame, source_id=f"w#{number}") for number, frame in enumerate(frames)]
    pass_ = PartTrust(TrustThresholds())
    kept, _ = pass_.examine(Block.from_structures(named, Schema((ENERGY, FORCES))))
    (tmp_path / "trust.npz").write_bytes(pass_.to_bytes())
    order = np.random.default_rng(0).permutation(len(kept))  # stored row → row as read
    place = {bytes(kept.source_ids[row]): stored for stored, row in enumerate(order)}
    flags = judge_split([tmp_path / "trust.npz"], TrustThresholds(), lambda ids: np.array([place[i] for i in ids]))
    assert {(flag.source_id, flag.reason) for flag in flags} == {
        (name.replace("mine.extxyz", "w"), reason) for _, name, reason in EXPECTED
    }
    assert all(kept.source_ids[order[flag.index]].decode() == flag.source_id for flag in flags)
    assert [flag.index for flag in flags] == sorted(flag.index for flag in flags)


def test_nothing_depends_on_workers_or_shares(tmp_path: Path) -> None:
    """Two files are two parts: the repeat and what is usual are found across them."""
    frames = suspicious_frames()
    for number in range(3):
        ase.io.write(tmp_path / f"{number}.extxyz", frames[number * 30 : number * 30 + 30])
    manifest = tmp_path / "mine.yaml"
    manifest.write_text("name: mine\nfiles: ['*.extxyz']\nsplits: {fractions: {train: 1.0}}\n")
    contents = []
    for out, workers in ((tmp_path / "one", 1), (tmp_path / "two", 2)):
        builds = plan_build([str(manifest)], tmp_path, out, settings=BuildSettings())
        list(run_build(builds, choose_engine(workers=workers, scheduler=None), lambda part: None))
        contents.append((out / "mine/train/flags.jsonl").read_bytes())
    builds = plan_build([str(manifest)], tmp_path, tmp_path / "shares", settings=BuildSettings())
    for share in (2, 1):
        run_array_part(builds, (share, 2), choose_engine(workers=1, scheduler=None), lambda part: None)
    list(run_finalize(builds))
    contents.append((tmp_path / "shares/mine/train/flags.jsonl").read_bytes())
    assert contents[0] == contents[1] == contents[2]
    found = {(flag.index, flag.reason) for flag in read_flags(tmp_path / "one/mine/train")}
    assert found == {(index, reason) for index, _, reason in EXPECTED}
