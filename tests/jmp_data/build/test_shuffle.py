from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jmp_data import open_dataset
from jmp_data.build import BuildSettings, choose_engine, plan_build, run_array_part, run_build, run_finalize
from jmp_data.build.finalize import finished_parts
from jmp_data.build.repair import repair_dataset
from jmp_data.build.shuffle import shuffle_keys, shuffled_rows
from jmp_data.errors import ShardError
from jmp_data.shards.integrity import verify_dataset
from jmp_data.shards.layout import Layout
from tests import raw_archives
from tests.jmp_data.build.fault_injection import tree
from tests.structures import assert_same_structure

SMALL = Layout(block_structures=4, block_atoms=64, blocks_per_shard=2)
MASK = (1 << 64) - 1
SEED = 7


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    raw = tmp_path_factory.mktemp("raw")
    raw_archives.write_oc20(raw)
    raw_archives.write_ani1x(raw)
    return raw


@pytest.fixture(autouse=True)
def small_parts_and_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jmp_data.sources.oc20.MAX_STRUCTURES_PER_PART", 10)
    monkeypatch.setattr("jmp_data.build.shuffle.BUCKET_ATOMS", 50)
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def plan(raw: Path, out: Path, sources=("oc20",), **options):
    options = {"shuffle": SEED, "layout": SMALL, **options}
    splits = ["train"] if sources == ("oc20",) else []
    return plan_build(sources, raw, out, splits=splits, settings=BuildSettings(**options))


def build(raw: Path, out: Path, sources=("oc20",), workers: int = 1, **options):
    engine = choose_engine(workers=workers, scheduler=None)
    return list(run_build(plan(raw, out, sources, **options), engine, lambda entry: None))


def key_by_hand(source_id: bytes, seed: int) -> int:
    """The definition in plain integers."""

    def mix(word: int) -> int:
        word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & MASK
        return word ^ (word >> 31)

    key = mix((seed + 0x9E3779B97F4A7C15) & MASK)
    for start in range(0, len(source_id), 8):
        word = int.from_bytes(source_id[start : start + 8], "little")
        key = mix(((key ^ word) + 0x9E3779B97F4A7C15) & MASK) if word else key
    return key


@given(st.lists(st.binary(min_size=1, max_size=40).filter(lambda text: 0 not in text), min_size=1), st.integers(0, 99))
def test_keys_depend_on_seed_and_id_alone(ids: list[bytes], seed: int) -> None:
    for width in (40, 57):
        keys = shuffle_keys(np.array(ids, f"S{width}"), seed)
        assert keys.tolist() == [key_by_hand(text, seed) for text in ids]


def test_structures_come_in_the_order_of_their_keys(raw: Path, tmp_path: Path) -> None:
    build(raw, tmp_path / "plain", shuffle=None)
    for done in build(raw, tmp_path / "shuffled"):
        plain = list(open_dataset(tmp_path / "plain" / "oc20" / done.dataset.name))
        plain.sort(key=lambda structure: key_by_hand(structure.source_id.encode(), SEED))
        for left, right in zip(open_dataset(done.dataset), plain, strict=True):
            assert_same_structure(left, right)
        assert verify_dataset(done.dataset) == []
        assert done.manifest.provenance["build"]["shuffle"] == SEED
        assert done.manifest.records_in == len(plain)


@pytest.mark.parametrize(("format", "graphs"), [("zarr", "none"), ("webdataset", "main")])
def test_workers_restarts_and_job_arrays_change_no_byte(raw: Path, tmp_path: Path, format: str, graphs: str) -> None:
    build(raw, tmp_path / "one", format=format, graphs=graphs)
    build(raw, tmp_path / "two", format=format, graphs=graphs, workers=2)
    array = plan(raw, tmp_path / "array", format=format, graphs=graphs)
    serial = choose_engine(workers=1, scheduler=None)
    run_array_part(array, (1, 2), serial, lambda entry: None)
    with pytest.raises(ShardError, match="not built yet"):
        list(run_finalize(array))
    run_array_part(array, (2, 2), serial, lambda entry: None)
    list(run_finalize(array))
    for record in list((tmp_path / "two").rglob("part.json"))[::2]:
        record.unlink()
    build(raw, tmp_path / "two", format=format, graphs=graphs)
    assert tree(tmp_path / "one") == tree(tmp_path / "two") == tree(tmp_path / "array")


def test_size_of_buckets_does_not_change_the_order(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = []
    for atoms in (20, 1 << 40):
        monkeypatch.setattr("jmp_data.build.shuffle.BUCKET_ATOMS", atoms)
        done = build(raw, tmp_path / str(atoms), ["ani1x"])[0]
        ids.append([structure.source_id for structure in open_dataset(done.dataset)])
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == len(ids[0])


def test_rows_of_chosen_structures_are_found_without_reading_them(raw: Path, tmp_path: Path) -> None:
    dataset = build(raw, tmp_path)[0].dataset
    ids = np.array([structure.source_id.encode() for structure in open_dataset(dataset)])
    chosen = np.array([3, 17, 0])
    parts = finished_parts(plan(raw, tmp_path)[0])
    np.testing.assert_array_equal(shuffled_rows(dataset, parts, ids[chosen], SEED), chosen)


def test_added_files_slip_in_between(tmp_path: Path) -> None:
    raw, frames = tmp_path / "raw", raw_archives.random_frames(1, 40)
    raw_archives.demo.write_oc20_split(raw, "s2ef_train_200K", frames[:20], frames_per_file=5)
    before = [structure.source_id for structure in open_dataset(build(raw, tmp_path / "grown")[0].dataset)]
    raw_archives.demo.write_oc20_split(raw, "s2ef_train_200K", frames, frames_per_file=5)
    reused = []
    serial = choose_engine(workers=1, scheduler=None)
    list(run_build(plan(raw, tmp_path / "grown"), serial, lambda entry: reused.append((entry.stage, entry.reused))))
    assert ("convert", True) in reused
    dataset = build(raw, tmp_path / "fresh")[0].dataset
    assert tree(tmp_path / "grown") == tree(tmp_path / "fresh")
    known = set(before)
    assert [s.source_id for s in open_dataset(dataset) if s.source_id in known] == before


def test_repair_gathers_the_damaged_shard_again(raw: Path, tmp_path: Path) -> None:
    dataset = build(raw, tmp_path)[0].dataset
    before = tree(dataset)
    victim = dataset / "forces/c/1/0/0"
    content = bytearray(victim.read_bytes())
    content[20] ^= 1
    victim.write_bytes(content)
    damage = verify_dataset(dataset)
    assert {finding.shard for finding in damage} == {1}
    assert repair_dataset(dataset, raw, damage) == 1
    assert tree(dataset) == before
