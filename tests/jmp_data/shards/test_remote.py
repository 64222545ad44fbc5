import pickle
from pathlib import Path

import pytest

from jmp_data import open_dataset, write_dataset
from jmp_data.errors import MissingFileError, ShardError
from jmp_data.shards import stores
from jmp_data.shards.range_cache import RangeCache
from tests.jmp_data.shards.loopback import serve
from tests.structures import assert_same_structure, random_structures

STRUCTURES = random_structures(0, 2500)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("remote")
    for format in ("zarr", "webdataset"):
        write_dataset(STRUCTURES, root / format / "train", format=format)
    return root


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JMP_DATA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(stores, "_FIRST_PAUSE", 0.01)
    return tmp_path / "cache"


def assert_all_there(dataset) -> None:
    assert len(dataset) == len(STRUCTURES)
    for left, right in zip(dataset, STRUCTURES, strict=True):
        assert_same_structure(left, right)


@pytest.mark.parametrize("format", ["zarr", "webdataset"])
def test_http_with_dropped_connections_and_errors(shards: Path, format: str) -> None:
    with serve(shards) as (url, trouble):
        dataset = open_dataset(f"{url}/{format}/train")
        trouble.drop_every, trouble.fail_every = 5, 7
        assert_all_there(dataset)
        assert dataset.natoms.tolist() == [len(structure) for structure in STRUCTURES]


def test_http_server_that_ignores_ranges(shards: Path) -> None:
    with serve(shards) as (url, trouble):
        trouble.ignore_ranges = True
        assert_all_there(open_dataset(f"{url}/zarr/train"))


def test_second_reading_comes_from_the_cache(shards: Path) -> None:
    with serve(shards) as (url, trouble):
        assert_all_there(open_dataset(f"{url}/zarr/train"))
        again = pickle.loads(pickle.dumps(open_dataset(f"{url}/zarr/train")))
        before = trouble.requests
        assert_all_there(again)
        assert trouble.requests == before


def test_a_rebuilt_data_set_is_not_served_from_the_old_cache(tmp_path: Path) -> None:
    other = list(reversed(STRUCTURES[:50]))
    with serve(tmp_path / "site") as (url, _):
        write_dataset(STRUCTURES[:50], tmp_path / "site" / "train")
        list(open_dataset(f"{url}/train"))
        (tmp_path / "site" / "train").rename(tmp_path / "old")
        write_dataset(other, tmp_path / "site" / "train")
        for left, right in zip(open_dataset(f"{url}/train"), other, strict=True):
            assert_same_structure(left, right)


def test_missing_things_are_named(shards: Path) -> None:
    with serve(shards) as (url, trouble):
        with pytest.raises(MissingFileError, match="nowhere"):
            open_dataset(f"{url}/nowhere/train")
        dataset = open_dataset(f"{url}/zarr/train")
        len(dataset)
        trouble.fail_every = 1
        with pytest.raises(ShardError, match="attempts"):
            dataset[0]


def test_cache_is_bounded_and_drops_damaged_entries(tmp_path: Path) -> None:
    cache = RangeCache(tmp_path / "bounded", max_bytes=10_000)
    for number in range(300):
        cache.put("u", "file", number, number + 100, bytes(100))
    cache.shrink()
    assert sum(path.stat().st_size for path in (tmp_path / "bounded").glob("??/*")) <= 10_000
    cache.put("u", "one", 0, 3, b"abc")
    assert cache.get("u", "one", 0, 3) == b"abc"
    path = cache._path("u", "one", 0, 3)
    path.write_bytes(path.read_bytes()[:-1])
    assert cache.get("u", "one", 0, 3) is None
    assert not path.exists()


def test_s3(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boto3 = pytest.importorskip("boto3", reason="needs the dev extra")
    server = pytest.importorskip("moto.server", reason="needs the dev extra").ThreadedMotoServer(port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        for name, value in {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": endpoint,
        }.items():
            monkeypatch.setenv(name, value)
        client = boto3.client("s3", endpoint_url=endpoint)
        client.create_bucket(Bucket="jmp")
        for path in shards.rglob("*"):
            if path.is_file():
                client.upload_file(str(path), "jmp", path.relative_to(shards).as_posix())
        for format in ("zarr", "webdataset"):
            assert_all_there(open_dataset(f"s3://jmp/{format}/train"))
    finally:
        server.stop()
