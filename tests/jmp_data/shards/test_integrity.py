"""One byte of every file of a built data set, in both formats and with graphs: found, named, never served."""

import contextlib
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from jmp_data import open_dataset
from jmp_data.build import BuildSettings, choose_engine, plan_build, run_build
from jmp_data.build.repair import repair_dataset
from jmp_data.errors import ManifestError, MissingFileError, ShardError
from jmp_data.shards.integrity import Damage, verify_dataset
from jmp_data.shards.layout import Layout
from tests import raw_archives
from tests.jmp_data.build.fault_injection import tree
from tests.structures import assert_same_structure

LAYOUT = Layout(block_structures=4, block_atoms=64, block_id_bytes=1 << 10, blocks_per_shard=3)
CASES = [("zarr", "none"), ("webdataset", "none"), ("zarr", "all"), ("webdataset", "all")]


@pytest.fixture(autouse=True)
def small_parts_without_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    monkeypatch.setattr("jmp_data.sources.oc20.MAX_STRUCTURES_PER_PART", 5)


def build(folder: Path, format: str, graphs: str, structures: int = 13) -> tuple[Path, Path]:
    raw = folder / "raw"
    raw_archives.write_oc20(raw, train=structures)
    settings = BuildSettings(format=format, graphs=graphs, layout=LAYOUT)
    builds = plan_build(["oc20"], raw, folder / "out", splits=["train"], settings=settings)
    (done,) = run_build(builds, choose_engine(workers=1, scheduler=None), lambda entry: None)
    return raw, done.dataset


def stored_files(dataset: Path) -> list[Path]:
    return sorted(path for path in dataset.rglob("*") if path.is_file() and ".build" not in path.parts)


def flips(path: Path, count: int, rng: random.Random) -> Iterator[int]:
    """Damage one byte at a time; yields where it is, and mends it."""
    original = path.read_bytes()
    for _ in range(count):
        position = rng.randrange(len(original))
        damaged = bytearray(original)
        damaged[position] ^= rng.randrange(1, 256)
        path.write_bytes(damaged)
        yield position
    path.write_bytes(original)


def names_its_place(dataset: Path, path: Path, finding: Damage) -> bool:
    """Shard, array and block where the file belongs to a shard; the file where it does not."""
    file = path.relative_to(dataset).as_posix()
    if finding.shard is None:
        return f"file {file}" in finding.message
    array = file.split("/c/")[0] if "/c/" in file else "array "
    known = ("tar header at byte", "checksums.json", "end of the archive")
    named = array in finding.message or any(text in finding.message for text in known)
    return f"shard {finding.shard}" in finding.message and "block" in finding.message and named


def read_all(dataset: Path) -> Iterator[object]:
    opened = open_dataset(dataset)
    for number in range(opened.num_blocks):
        yield from (opened.read_block(number).structure(row) for row in range(int(opened.block_structures[number])))
        if opened.graph_layer is not None:
            opened.read_graphs(number)


def until_damage(dataset: Path) -> Iterator[object]:
    with contextlib.suppress(ShardError):
        yield from read_all(dataset)


def check_every_file(dataset: Path, flips_each: int, seed: int) -> int:
    """Returns how many bytes were flipped."""
    rng, good, count = random.Random(seed), list(read_all(dataset)), 0
    for path in stored_files(dataset):
        for position in flips(path, flips_each, rng):
            count += 1
            where = f"{path} at byte {position}"
            if path.name == "manifest.json":
                with pytest.raises(ManifestError, match=r"manifest\.json"):
                    verify_dataset(dataset)
                continue
            findings = verify_dataset(dataset)
            assert findings, where
            assert all(names_its_place(dataset, path, finding) for finding in findings), (where, findings)
            for left, right in zip(until_damage(dataset), good, strict=False):
                assert_same_structure(left, right)
    assert verify_dataset(dataset) == []
    return count


@pytest.mark.parametrize(("format", "graphs"), CASES[1:3])
def test_a_flipped_byte_in_each_file_is_found_and_named(tmp_path: Path, format: str, graphs: str) -> None:
    _, dataset = build(tmp_path, format, graphs)
    assert check_every_file(dataset, 1, seed=0) >= len(stored_files(dataset))


@pytest.mark.slow
@pytest.mark.parametrize(("format", "graphs"), CASES)
def test_many_flipped_bytes_in_each_file(tmp_path: Path, format: str, graphs: str) -> None:
    _, dataset = build(tmp_path, format, graphs, structures=33)
    count = check_every_file(dataset, 40, seed=1)
    print(f"{format}, graphs {graphs}: {count} bytes flipped in {len(stored_files(dataset))} files, all found")


@pytest.mark.parametrize(("format", "graphs"), CASES[1:3])
def test_repair_rebuilds_exactly_the_damaged_shards(tmp_path: Path, format: str, graphs: str) -> None:
    raw, dataset = build(tmp_path, format, graphs)
    before, inodes = tree(dataset), {path: path.stat().st_mtime_ns for path in stored_files(dataset)}
    last = open_dataset(dataset).manifest.shards[-1]
    victims = [dataset / name for name in last.files]
    victims[0].unlink()
    for path in victims[1:]:
        path.write_bytes(path.read_bytes()[:-1])
    damage = verify_dataset(dataset)
    assert {finding.shard for finding in damage} == {len(open_dataset(dataset).manifest.shards) - 1}
    assert {finding.file for finding in damage} == set(last.files)
    repair_dataset(dataset, raw, damage)
    assert tree(dataset) == before
    assert verify_dataset(dataset) == []
    same_part = {n for s in open_dataset(dataset).manifest.shards if s.part == last.part for n in s.files}
    untouched = [path for path in inodes if path.relative_to(dataset).as_posix() not in same_part]
    assert all(path.stat().st_mtime_ns == inodes[path] for path in untouched)


@pytest.mark.parametrize("format", ["zarr", "webdataset"])
def test_swapped_files_are_found(tmp_path: Path, format: str) -> None:
    raw, dataset = build(tmp_path, format, "none")
    names = [("positions/c/0/0/0", "positions/c/1/0/0"), ("shard-000000.tar", "shard-000001.tar")][format != "zarr"]
    left, right = (dataset / name for name in names)
    before = tree(dataset)
    shutil.move(left, dataset / "aside")
    shutil.move(right, left)
    shutil.move(dataset / "aside", right)
    damage = verify_dataset(dataset)
    assert {finding.shard for finding in damage} == {0, 1}
    assert all("block" in finding.message for finding in damage)
    repair_dataset(dataset, raw, damage)
    assert tree(dataset) == before


def test_every_missing_or_cut_file_is_found(tmp_path: Path) -> None:
    _, dataset = build(tmp_path, "zarr", "main")
    for path in stored_files(dataset):
        original = path.read_bytes()
        for content in (original[:-1], original + b"\0", b"", None):
            path.write_bytes(content) if content is not None else path.unlink()
            try:
                findings = verify_dataset(dataset)
            except (ManifestError, MissingFileError):
                assert path.name == "manifest.json"
            else:
                assert findings, path
        path.write_bytes(original)
    assert verify_dataset(dataset) == []
