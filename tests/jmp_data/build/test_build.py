import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from jmp_data import open_dataset
from jmp_data.build import BuildSettings, choose_engine, plan_build, run_array_part, run_build, run_finalize
from jmp_data.build.lock import TargetLockedError, lock_targets
from jmp_data.build.repair import repair_dataset
from jmp_data.errors import JmpDataError, MissingFileError, RawFileError, ShardError
from jmp_data.graphs import PERIODIC, GraphSettings
from jmp_data.shards.graph_layer import LayerSettings
from jmp_data.shards.integrity import verify_dataset
from jmp_data.shards.layout import Layout
from jmp_data.shards.staging import RECORDS_VERSION
from tests import raw_archives
from tests.graph_structures import searched
from tests.jmp_data.build.fault_injection import tree

SOURCES = ["oc20", "oc22", "ani1x", "transition1x"]
SMALL = Layout(block_structures=4, block_atoms=64, blocks_per_shard=2)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return raw_archives.write_all(tmp_path_factory.mktemp("raw"))


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Power failures are not tested here; hundreds of flushes to disk would take most of the time."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def build(raw: Path, out: Path, sources=SOURCES, workers: int = 1, **options):
    settings = BuildSettings(layout=options.pop("layout", SMALL), **options)
    builds = plan_build(sources, raw, out, settings=settings)
    return list(run_build(builds, choose_engine(workers=workers, scheduler=None), lambda done: None))


def test_everything_that_goes_in_comes_out(raw: Path, tmp_path: Path) -> None:
    done = {(entry.manifest.name, entry.manifest.split): entry.manifest for entry in build(raw, tmp_path)}
    assert {name for name, _ in done} == set(SOURCES)
    for manifest in done.values():
        counted = manifest.num_structures + sum(manifest.quarantined.values()) + sum(manifest.skipped.values())
        assert counted == manifest.records_in
        assert verify_dataset(tmp_path / manifest.name / manifest.split) == []
    assert done["oc20", "train"].num_structures == 23
    assert done["oc22", "train"].num_structures == 11
    assert sum(m.num_structures for (name, _), m in done.items() if name == "ani1x") == 12 * 9
    assert done["transition1x", "train"].num_structures == 4 * 18
    for frame, structure in zip(raw_archives.random_frames(1, 23), open_dataset(tmp_path / "oc20/train"), strict=True):
        assert structure.energy == frame.energy
        np.testing.assert_array_equal(structure.forces, frame.forces.astype(np.float32))
        np.testing.assert_array_equal(structure.fixed, frame.fixed)
        np.testing.assert_array_equal(structure.tags, frame.tags)


@pytest.mark.parametrize(("format", "graphs"), [("zarr", "none"), ("webdataset", "none"), ("zarr", "all")])
def test_the_number_of_workers_changes_no_byte(raw: Path, tmp_path: Path, format: str, graphs: str) -> None:
    build(raw, tmp_path / "one", format=format, graphs=graphs)
    build(raw, tmp_path / "two", format=format, graphs=graphs, workers=2)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


@pytest.mark.parametrize("format", ["zarr", "webdataset"])
def test_graphs_are_stored_beside_the_same_structures(raw: Path, tmp_path: Path, format: str) -> None:
    plain = {entry.dataset.name: entry for entry in build(raw, tmp_path / "plain", ["oc20"], format=format)}
    for kind in ("main", "all"):
        for done in build(raw, tmp_path / kind, ["oc20"], format=format, graphs=kind):
            assert done.manifest.content_sha256 == plain[done.dataset.name].manifest.content_sha256
            assert done.manifest.graphs["kind"] == kind
            dataset = open_dataset(done.dataset)
            for number, block in enumerate(dataset.blocks()):
                expected = searched(block, PERIODIC)
                for name, edges in dataset.read_graphs(number).items():
                    np.testing.assert_array_equal(edges.edge_index, getattr(expected, name).edge_index)
                    np.testing.assert_array_equal(edges.cell_offsets, getattr(expected, name).cell_offsets)
            assert verify_dataset(done.dataset) == []


def test_a_source_may_state_its_own_graphs() -> None:
    layer = BuildSettings(graphs="all").graph_layer("rmd17:aspirin")
    assert layer is not None
    assert layer.molecule == GraphSettings(7.0, main=100, a2ee2a=66, qint=26, a2a=3333)
    assert BuildSettings(graphs="main").graph_layer("oc20") == LayerSettings("main")
    assert BuildSettings().graph_layer("oc20") is None


def test_a_job_array_gives_the_same_bytes(raw: Path, tmp_path: Path) -> None:
    build(raw, tmp_path / "whole")
    builds = plan_build(SOURCES, raw, tmp_path / "array", settings=BuildSettings(layout=SMALL))
    engine = choose_engine(workers=1, scheduler=None)
    for number in (3, 1):
        run_array_part(builds, (number, 3), engine, lambda done: None)
    with pytest.raises(ShardError, match="not built yet"):
        list(run_finalize(builds))
    run_array_part(builds, (2, 3), engine, lambda done: None)
    list(run_finalize(builds))
    assert tree(tmp_path / "whole") == tree(tmp_path / "array")


def test_a_second_build_redoes_nothing(raw: Path, tmp_path: Path) -> None:
    build(raw, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*/c/*/*")}
    reused = []
    builds = plan_build(SOURCES, raw, tmp_path, settings=BuildSettings(layout=SMALL))
    list(run_build(builds, choose_engine(workers=1, scheduler=None), lambda done: reused.append(done.reused)))
    assert reused
    assert all(reused)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*/c/*/*")} == before


def test_a_half_written_part_is_thrown_away_and_made_again(raw: Path, tmp_path: Path) -> None:
    build(raw, tmp_path / "whole", ["ani1x"])
    build(raw, tmp_path / "broken", ["ani1x"])
    dataset = tmp_path / "broken" / "ani1x" / "train"
    part = next((dataset / ".build" / "parts").glob("*/part.json"))
    part.unlink()
    (dataset / "manifest.json").unlink()
    with pytest.raises(MissingFileError, match="manifest"):
        open_dataset(dataset)
    build(raw, tmp_path / "broken", ["ani1x"])
    assert tree(tmp_path / "whole") == tree(tmp_path / "broken")


def test_build_records_have_the_form_of_their_version(tmp_path: Path) -> None:
    """Where this fails the form has changed: count `RECORDS_VERSION` up and write the new form down here."""
    raw_archives.write_oc20(tmp_path / "raw", train=5, val=5)
    build(tmp_path / "raw", tmp_path, ["oc20"], shuffle=0)
    folder = next((tmp_path / "oc20" / "train" / ".build" / "parts").glob("*/trust.npz")).parent
    with np.load(folder / "trust.npz") as archive:
        trust = {name: archive[name].dtype.descr for name in archive}
    word, byte = [("", "<i8")], [("", "|u1")]
    facts = [("composition", "<u8"), ("geometry", "<u8"), ("energy", "<f4"), ("force", "<f4")]
    record = json.loads((folder / "part.json").read_bytes())
    assert RECORDS_VERSION == 2
    assert trust == {"facts": facts, "ids": byte, "id_bytes": word, "found": byte}
    assert sorted(record) == [
        *("damaged_files", "key", "quarantined", "raw_files", "shards", "skipped", "statistics", "version")
    ]
    assert sorted(record["shards"][0]) == ["atoms", "blocks", "files", "part", "raw_files", "structures"]
    assert np.load(folder / "keys.npy").dtype == np.uint64


@pytest.mark.parametrize("version", [None, 1, RECORDS_VERSION + 1])
def test_a_folder_begun_by_other_code_is_refused_and_left_as_it_is(tmp_path: Path, version: int | None) -> None:
    raw_archives.write_oc20(tmp_path / "raw", train=5, val=5)
    build(tmp_path / "raw", tmp_path, ["oc20"])
    expected, dataset = tree(tmp_path / "oc20"), tmp_path / "oc20" / "train"
    (record,) = (dataset / ".build" / "parts").glob("*/part.json")
    entry = json.loads(record.read_bytes())
    assert entry.pop("version") == RECORDS_VERSION
    record.write_text(json.dumps(entry if version is None else {**entry, "version": version}))
    written = record.read_bytes()
    line = f"part.json: .* form {version or 1}, not {RECORDS_VERSION} as here; .* delete .*/train/.build and run"
    builds = plan_build(["oc20"], tmp_path / "raw", tmp_path, settings=BuildSettings(layout=SMALL))
    engine = choose_engine(workers=1, scheduler=None)
    victim = dataset / "forces/c/0/0/0"
    shard = victim.read_bytes()
    victim.unlink()
    for attempt in (
        lambda: list(run_build(builds, engine, lambda done: None)),
        lambda: run_array_part(builds, (1, 1), engine, lambda done: None),
        lambda: list(run_finalize(builds)),
        lambda: repair_dataset(dataset, tmp_path / "raw", verify_dataset(dataset)),
    ):
        with pytest.raises(ShardError, match=line) as caught:
            attempt()
        assert "\n" not in str(caught.value)
    victim.write_bytes(shard)
    assert record.read_bytes() == written
    assert tree(tmp_path / "oc20") == expected
    shutil.rmtree(dataset / ".build")  # as the line says
    build(tmp_path / "raw", tmp_path, ["oc20"])
    assert tree(tmp_path / "oc20") == expected


def test_a_data_set_of_an_earlier_version_gets_what_it_lacks_and_keeps_its_shards(tmp_path: Path) -> None:
    raw_archives.write_oc20(tmp_path / "raw", train=5, val=5)
    build(tmp_path / "raw", tmp_path, ["oc20"])
    expected, dataset = tree(tmp_path / "oc20"), tmp_path / "oc20" / "train"
    before = {path: path.stat().st_mtime_ns for path in dataset.rglob("c/*/*")}
    manifest = open_dataset(dataset).manifest
    files = {name: digest for name, digest in manifest.files.items() if name != "shards.npy"}
    (dataset / "manifest.json").write_bytes(replace(manifest, files=files).to_bytes())
    for name in ("summary.json", "shards.npy"):
        (dataset / name).unlink()
    assert verify_dataset(dataset) == []
    build(tmp_path / "raw", tmp_path, ["oc20"])
    assert tree(tmp_path / "oc20") == expected
    assert {path: path.stat().st_mtime_ns for path in dataset.rglob("c/*/*")} == before


def test_added_raw_files_convert_only_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jmp_data.sources.oc20.MAX_STRUCTURES_PER_PART", 10)
    raw = tmp_path / "raw"
    frames = raw_archives.random_frames(1, 60)
    raw_archives.demo.write_oc20_split(raw, "s2ef_train_200K", frames[:30], frames_per_file=5)
    (first,) = build(raw, tmp_path / "grown", ["oc20"])
    raw_archives.demo.write_oc20_split(raw, "s2ef_train_200K", frames, frames_per_file=5)
    reused = []
    builds = plan_build(["oc20"], raw, tmp_path / "grown", settings=BuildSettings(layout=SMALL))
    list(run_build(builds, choose_engine(workers=1, scheduler=None), lambda done: reused.append(done.reused)))
    build(raw, tmp_path / "fresh", ["oc20"])
    assert any(reused)
    assert not all(reused)
    assert first.manifest.num_structures == 30
    assert tree(tmp_path / "fresh") == tree(tmp_path / "grown")


def test_a_larger_training_set_leaves_everything_else_untouched(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw_archives.write_oc20(raw)
    raw_archives.write_ani1x(raw)
    sources = ["oc20", "ani1x"]
    build(raw, out, sources)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and ".build" not in path.parts}
    raw_archives.demo.write_oc20_split(raw, "s2ef_train_2M", raw_archives.random_frames(9, 40), frames_per_file=5)
    train = next(done for done in build(raw, out, sources) if done.dataset == out / "oc20" / "train")
    assert train.manifest.num_structures == 40
    assert "train_2M" in train.manifest.provenance["notes"][0]
    kept = [path for path in before if train.dataset not in path.parents]
    assert len(kept) > 20
    assert all(path.stat().st_mtime_ns == before[path] for path in kept)
    build(raw, tmp_path / "fresh", sources)
    assert tree(out) == tree(tmp_path / "fresh")


def test_a_changed_raw_file_is_noticed_even_at_the_same_size(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    raw_archives.write_ani1x(raw)
    build(raw, tmp_path / "out", ["ani1x"])
    with h5py.File(raw / "ani1x-release.h5", "r+") as file:
        group = next(iter(file.values()))
        group["wb97x_dz.energy"][0] += 1
    os.utime(raw / "ani1x-release.h5", ns=(1, 1))
    build(raw, tmp_path / "out", ["ani1x"])
    build(raw, tmp_path / "fresh", ["ani1x"])
    assert tree(tmp_path / "fresh") == tree(tmp_path / "out")


def test_limit_takes_the_first_records(raw: Path, tmp_path: Path) -> None:
    builds = plan_build(["oc20"], raw, tmp_path, splits=["train"], settings=BuildSettings(layout=SMALL), limit=7)
    (done,) = run_build(builds, choose_engine(workers=1, scheduler=None), lambda done: None)
    energies = [structure.energy for structure in open_dataset(done.dataset)]
    assert energies == [frame.energy for frame in raw_archives.random_frames(1, 7)]


def test_bad_records_are_kept_with_their_reason(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    raw_archives.write_ani1x(raw, groups=1)
    with h5py.File(raw / "ani1x-release.h5", "r+") as file:
        group = next(iter(file.values()))
        forces = group["wb97x_dz.forces"][:]
        forces[2, 0, 0] = np.nan
        group["wb97x_dz.forces"][:] = forces
        formula = group.name.strip("/")
    (done,) = build(raw, tmp_path / "out", ["ani1x"])
    assert sum(done.manifest.quarantined.values()) == 1
    assert done.manifest.num_structures == 8
    assert done.manifest.records_in == 9
    line = (done.dataset / "quarantine.jsonl").read_text()
    assert formula in line
    assert "positions" in line or "coordinates" in line
    with pytest.raises(JmpDataError, match=formula):
        build(raw, tmp_path / "strict", ["ani1x"], on_error="fail")


def test_two_builds_of_one_target_exclude_each_other(raw: Path, tmp_path: Path) -> None:
    with lock_targets([tmp_path / "ani1x" / "train"]), pytest.raises(TargetLockedError, match="another build"):
        build(raw, tmp_path, ["ani1x"])


def test_repair_rebuilds_exactly_what_is_damaged(raw: Path, tmp_path: Path) -> None:
    build(raw, tmp_path, ["oc20"])
    dataset = tmp_path / "oc20" / "train"
    before = tree(dataset)
    victim = dataset / "forces/c/1/0/0"
    content = bytearray(victim.read_bytes())
    content[10] ^= 0xFF
    victim.write_bytes(content)
    (dataset / "positions/c/0/0/0").unlink()
    damage = verify_dataset(dataset)
    assert {finding.shard for finding in damage} == {0, 1}
    assert repair_dataset(dataset, raw, damage) >= 1
    assert verify_dataset(dataset) == []
    assert tree(dataset) == before


@pytest.mark.parametrize("format", ["zarr", "webdataset"])
def test_repair_rebuilds_damaged_graphs(raw: Path, tmp_path: Path, format: str) -> None:
    build(raw, tmp_path, ["oc20"], format=format, graphs="all")
    dataset = tmp_path / "oc20" / "train"
    before = tree(dataset)
    victim = dataset / "graphs/source/c/1/0"
    content = bytearray(victim.read_bytes())
    content[40] ^= 0xFF
    victim.write_bytes(content)
    (dataset / "graphs/nedges/c/0/0").unlink()
    (dataset / "graphs/zarr.json").unlink()
    damage = verify_dataset(dataset)
    assert {finding.shard for finding in damage} == {None, 0, 1}
    assert any("array graphs/source, block 0" in finding.message for finding in damage)
    assert repair_dataset(dataset, raw, damage) >= 1
    assert verify_dataset(dataset) == []
    assert tree(dataset) == before


def test_graphs_can_be_added_and_taken_away(raw: Path, tmp_path: Path) -> None:
    build(raw, tmp_path / "fresh", ["oc20"], graphs="main")
    build(raw, tmp_path / "plain", ["oc20"])
    for graphs in ("none", "main"):
        build(raw, tmp_path / "changed", ["oc20"], graphs=graphs)
    assert tree(tmp_path / "changed") == tree(tmp_path / "fresh")
    build(raw, tmp_path / "changed", ["oc20"])
    assert tree(tmp_path / "changed") == tree(tmp_path / "plain")


def test_repair_refuses_other_raw_files(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    raw_archives.write_ani1x(raw)
    build(raw, tmp_path / "out", ["ani1x"])
    dataset = tmp_path / "out" / "ani1x" / "train"
    (dataset / "forces/c/0/0/0").unlink()
    with h5py.File(raw / "ani1x-release.h5", "r+") as file:
        next(iter(file.values()))["wb97x_dz.energy"][0] += 1
    with pytest.raises(RawFileError, match="is not the raw file"):
        repair_dataset(dataset, raw, verify_dataset(dataset))


def test_a_raw_file_that_vanishes_half_way_costs_nothing(raw: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(raw, tmp_path / "raw")
    builds = plan_build(["oc20"], copy, tmp_path / "out", settings=BuildSettings(layout=SMALL))
    victim = sorted(copy.rglob("*.extxyz.xz"))[0]
    content = victim.read_bytes()
    victim.unlink()
    with pytest.raises((JmpDataError, FileNotFoundError), match=r"0\.extxyz\.xz"):
        list(run_build(builds, choose_engine(workers=1, scheduler=None), lambda done: None))
    victim.write_bytes(content)
    build(copy, tmp_path / "out", ["oc20"])
    build(raw, tmp_path / "fresh", ["oc20"])
    assert tree(tmp_path / "fresh") == tree(tmp_path / "out")
