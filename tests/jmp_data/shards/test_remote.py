import base64
import hashlib
import itertools
import multiprocessing
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from jmp_data import StreamLoader, open_dataset, write_dataset
from jmp_data.errors import ManifestError, MissingFileError, ShardError
from jmp_data.shards import clouds, stores, transports
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
        with pytest.raises(ShardError, match="attempts"):  # not "no data set here"
            open_dataset(f"{url}/zarr/train")


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


FILLER = """
import hashlib, sys
from pathlib import Path
from jmp_data.shards.range_cache import RangeCache
cache = RangeCache(Path(sys.argv[1]), max_bytes=3_000_000)
print(flush=True)
for number in range(int(sys.argv[2]), 10**9, 3):
    cache.put("u", "file", number % 60, 0, hashlib.sha256(b"%d" % (number % 60)).digest() * 4096)
"""


def test_cache_survives_processes_that_are_killed_while_they_write(tmp_path: Path) -> None:
    """Three at a time fill one cache and die; what is left is whole, right and within the bound."""
    folder = tmp_path / "crashed"
    for round_ in range(3):
        command = [sys.executable, "-c", FILLER, str(folder)]
        fillers = [subprocess.Popen([*command, str(n)], stdout=subprocess.PIPE) for n in range(3)]
        for filler in fillers:
            filler.stdout.readline()
        time.sleep(0.15 + 0.05 * round_)
        for filler in fillers:
            filler.kill()
            filler.communicate()
    cache = RangeCache(folder, max_bytes=3_000_000)
    written = sum(path.stat().st_size for path in folder.glob("??/*"))
    assert 1_000_000 < written <= 3_000_000 + 6 * 132_000  # each may be one range and one unreported range ahead
    found = {number: cache.get("u", "file", number, 0) for number in range(60)}
    whole = {number: payload for number, payload in found.items() if payload is not None}
    assert len(whole) >= 5
    assert all(payload == hashlib.sha256(b"%d" % n).digest() * 4096 for n, payload in whole.items())
    cache.put("u", "file", 99, 0, b"alive")
    assert cache.get("u", "file", 99, 0) == b"alive"
    cache.shrink()
    assert sum(path.stat().st_size for path in folder.glob("??/*")) <= 3_000_000


def test_a_stream_over_a_bad_network_is_the_stream_from_disk(shards: Path) -> None:
    """With graphs in a worker, dropped connections, and refusals."""
    settings = {"batch_size": 64, "graphs": "auto", "graph_names": ["main"]}
    expected = StreamLoader(shards / "zarr" / "train", **settings)
    with serve(shards) as (url, trouble):
        trouble.drop_every, trouble.fail_every, trouble.latency = 5, 7, 0.01
        far = StreamLoader(f"{url}/zarr/train", num_workers=1, **settings)
        for batch, other in zip(itertools.islice(far, 6), expected, strict=False):
            assert all(torch.equal(batch[key], other[key]) for key in other.to_dict())
        far.close()


def test_an_unknown_protocol_is_told() -> None:
    with pytest.raises(ManifestError, match="nosuch://a/b: not a URL"):
        open_dataset("nosuch://a/b")


@contextmanager
def moto_server(shards: Path) -> Iterator[str]:
    """moto's S3 with the shards in a bucket; yields its endpoint."""
    boto3 = pytest.importorskip("boto3", reason="needs the dev extra")
    server = pytest.importorskip("moto.server", reason="needs the dev extra").ThreadedMotoServer(port=0)
    server.start()
    try:
        endpoint = "http://{}:{}".format(*server.get_host_and_port())
        client = boto3.client("s3", endpoint_url=endpoint)
        client.create_bucket(Bucket="jmp")
        for path in shards.rglob("*"):
            if path.is_file():
                client.upload_file(str(path), "jmp", path.relative_to(shards).as_posix())
        yield endpoint
    finally:
        server.stop()


@pytest.fixture
def no_cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment that knows of no cloud."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "GOOGLE_", "STORAGE_EMULATOR")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return monkeypatch


def test_s3(shards: Path, no_cloud: pytest.MonkeyPatch) -> None:
    no_cloud.setenv("AWS_ACCESS_KEY_ID", "test")
    no_cloud.setenv("AWS_SECRET_ACCESS_KEY", "test")
    no_cloud.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with moto_server(shards) as endpoint:
        no_cloud.setenv("AWS_ENDPOINT_URL", endpoint)
        for format in ("zarr", "webdataset"):
            assert_all_there(open_dataset(f"s3://jmp/{format}/train"))
        with pytest.raises(MissingFileError, match="s3://jmp/nowhere"):
            open_dataset("s3://jmp/nowhere")


@pytest.mark.parametrize(
    ("scheme", "server", "format"),
    [("s3", "AWS_ENDPOINT_URL", "zarr"), ("gs", "STORAGE_EMULATOR_HOST", "webdataset")],
)
def test_clouds_with_trouble_and_without_credentials(
    shards: Path, no_cloud: pytest.MonkeyPatch, scheme: str, server: str, format: str
) -> None:
    with serve(shards.parent) as (url, trouble):
        no_cloud.setenv(server, url)
        dataset = open_dataset(f"{scheme}://{shards.name}/{format}/train")
        trouble.drop_every, trouble.fail_every = 5, 7
        assert_all_there(dataset)
        assert set(trouble.logins) == {None}


def test_s3_credentials_and_endpoint_of_a_profile(shards: Path, tmp_path: Path, no_cloud: pytest.MonkeyPatch) -> None:
    (tmp_path / ".aws").mkdir()
    keys = "[mine]\naws_access_key_id = AKIDMINE\naws_secret_access_key = secret\n"
    (tmp_path / ".aws" / "credentials").write_text(keys)
    no_cloud.setenv("AWS_PROFILE", "mine")
    with serve(shards.parent) as (url, trouble):
        (tmp_path / ".aws" / "config").write_text(f"[profile mine]\nregion = eu-north-1\nendpoint_url = {url}\n")
        open_dataset(f"s3://{shards.name}/zarr/train")[0]
        assert all("Credential=AKIDMINE/" in login and "/eu-north-1/s3/" in login for login in trouble.logins)


def test_the_region_of_a_bucket_is_what_its_server_says(shards: Path) -> None:
    with serve(shards) as (url, _):
        assert clouds.bucket_region(f"{url}/zarr") is None
    assert clouds.bucket_region("http://127.0.0.1:1/") is None


def test_redirects_are_followed(shards: Path) -> None:
    with serve(shards) as (url, _):
        assert_all_there(open_dataset(f"{url}/moved/zarr/train"))


@pytest.mark.parametrize("format", ["zarr", "webdataset"])
def test_http_server_that_says_no_lengths(shards: Path, format: str) -> None:
    with serve(shards) as (url, trouble):
        trouble.say_no_lengths = trouble.ignore_ranges = True
        assert_all_there(open_dataset(f"{url}/{format}/train"))


def test_name_and_password_in_a_url(shards: Path) -> None:
    with serve(shards) as (url, trouble):
        open_dataset(f"{url}/zarr/train".replace("//", "//me:p%40ss@", 1))[0]
        expected = "Basic " + base64.b64encode(b"me:p@ss").decode()
        assert set(trouble.logins) == {expected}


def test_a_refusal_is_told_at_once(shards: Path) -> None:
    with serve(shards) as (url, trouble):
        dataset = open_dataset(f"{url}/zarr/train")
        trouble.refuse, before = True, trouble.requests
        with pytest.raises(ShardError, match=r"blocks\.npy: access is refused"):
            len(dataset.block_ptr)
        assert trouble.requests == before + 1


def test_silent_connections_are_given_up(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transports, "STALL", 1)
    with serve(shards) as (url, trouble):
        dataset = open_dataset(f"{url}/webdataset/train")
        trouble.silent_every = 4
        start = time.perf_counter()
        dataset.read_block(0)
        dataset.read_block(1)
        assert time.perf_counter() - start < 3.5


def _first_energy(dataset, answers) -> None:
    answers.put(dataset[7].energy)


@pytest.mark.filterwarnings("ignore:This process")
def test_a_forked_process_reads_on(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JMP_DATA_CACHE_BYTES", "0")
    context = multiprocessing.get_context("fork")
    with serve(shards) as (url, _):
        dataset = open_dataset(f"{url}/zarr/train")
        list(dataset.blocks())
        answers = context.Queue()
        for remote in (dataset, pickle.loads(pickle.dumps(dataset))):
            remote._cache.clear()
            child = context.Process(target=_first_energy, args=(remote, answers), daemon=True)
            child.start()
            assert answers.get(timeout=60) == STRUCTURES[7].energy
            child.join()
        assert_same_structure(dataset[0], STRUCTURES[0])  # the parent goes on too
