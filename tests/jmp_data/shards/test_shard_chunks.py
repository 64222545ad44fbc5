from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jmp_data import open_dataset, write_dataset
from jmp_data.shards import shard_chunks
from tests.jmp_data.shards.loopback import serve
from tests.structures import assert_same_structure, random_structures

STRUCTURES = random_structures(3, 6000)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("site")
    write_dataset(STRUCTURES, root / "set" / "train")
    return root


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JMP_DATA_CACHE_BYTES", "0")


def requests_of_all_blocks(site: Path) -> int:
    with serve(site) as (url, trouble):
        dataset = open_dataset(f"{url}/set/train")
        assert len(dataset.block_ptr) == dataset.num_blocks + 1  # read once, and no part of what is counted
        before = trouble.requests
        with ThreadPoolExecutor(8) as threads:
            blocks = list(threads.map(dataset.read_block, range(dataset.num_blocks)))
        asked = trouble.requests - before
    rows = (block.structure(row) for block in blocks for row in range(len(block)))
    for left, right in zip(rows, STRUCTURES, strict=True):
        assert_same_structure(left, right)
    return asked


def test_small_files_are_asked_for_once(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = open_dataset(site / "set" / "train").manifest.shards
    sizes = [entry.bytes for shard in shards for entry in shard.files.values()]
    blocks = open_dataset(site / "set" / "train").num_blocks
    assert blocks > 2
    monkeypatch.setattr(shard_chunks, "_WHOLE_BYTES", sorted(sizes)[-3])
    assert requests_of_all_blocks(site) == len(sizes) + 2 * blocks
    monkeypatch.setattr(shard_chunks, "_WHOLE_BYTES", 0)
    assert requests_of_all_blocks(site) == len(sizes) * (1 + blocks)


def test_whole_files_and_indexes_are_forgotten_when_there_are_too_many(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_chunks, "_CACHED_WHOLE_BYTES", 1)
    requests_of_all_blocks(site)
    monkeypatch.setattr(shard_chunks, "_CACHED_INDEXES", 2)
    requests_of_all_blocks(site)
