"""Structures per second from an HTTP server and an S3 server on loopback, near and far, beside those from disk.

    python benchmarks/remote.py [--structures 28800] [--latency 0.05] [--seconds 0.8] [--rounds 4] [--json]

The loader of `benchmarks/loader.py` (slabs of 73 atoms, shuffled, batches of 32, one process, default prefetch),
reading the same data set from a local folder, from `rclone serve http` and from `rclone serve s3`, both behind the
proxy of `benchmarks/far.py`. "50 ms" is what every request waits there; "troubled" cuts every 50th answer in the middle
and refuses every 50th request with 503; "slow" sends no faster than 64 MB/s on one connection. The local cache is off,
except in the rows that say so: those read everything once and are measured on the next pass.

Every turn opens the data set anew, and reads until all that was read ahead is used up before it counts. Turns from disk
and from a server follow each other, and the best of either counts, since other work only ever slows one down: "of disk"
is the ratio of two best rates out of equally many. Half of the processor's cores belong to the loader, wherever it
reads from, the other half to proxy and servers, which in a real run have machines of their own. "µs" is processor time
of the loader for a structure, "servers" are the processor seconds of the others a second.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import psutil
from far import Network, networks

BUCKET, FORMATS = "bench", ("zarr", "webdataset")
KEY, SECRET = "benchmark", "benchmark-secret"
READ_ONLY = ("--read-only", "--no-modtime", "--buffer-size", "0", "--dir-cache-time", "24h", "--poll-interval", "0")
AHEAD_BLOCKS = 2 * 64  # a window and what is read ahead of it


class Way(NamedTuple):
    """A server behind a network; `cached` is with a warm cache."""

    scheme: str
    name: str
    network: Network
    cached: bool = False


def ways(latency: float) -> list[Way]:
    far, troubled, slow = Network(latency), Network(latency, trouble_every=50), Network(latency, bytes_per_s=64e6)
    found = []
    for scheme in ("http", "s3"):
        name = f"{scheme}, {latency * 1000:.0f} ms"
        found += [
            Way(scheme, scheme, Network()),
            Way(scheme, name, far),
            Way(scheme, f"{name}, troubled", troubled),
            Way(scheme, f"{name}, slow", slow),
        ]
    return [*found, Way("http", f"http, {latency * 1000:.0f} ms, cached", far, cached=True)]


@contextlib.contextmanager
def rclone(scheme: str, root: Path) -> Iterator[int]:
    """A server of the files below a folder; yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    own = ("--auth-key", f"{KEY},{SECRET}", "--etag-hash", "") if scheme == "s3" else ()
    command = ["rclone", "serve", scheme, "--addr", f"127.0.0.1:{port}", *READ_ONLY, *own, str(root)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            if process.poll() is not None:
                raise RuntimeError(f"{' '.join(command)} ended with exit code {process.returncode}")
            time.sleep(0.05)
        yield port
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def far_servers(root: Path, chosen: Sequence[Way]) -> Iterator[list[int]]:
    """Servers behind proxies on half of the cores, this process on the other half; yields a port for each way."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[len(cores) // 2 :])  # children inherit it
    with rclone("http", root) as http, rclone("s3", root) as s3:
        servers = {"http": http, "s3": s3}
        with networks([(way.network, servers[way.scheme]) for way in chosen]) as ports:
            os.sched_setaffinity(0, cores[: max(1, len(cores) // 2)])
            yield ports


def servers_cpu() -> float:
    """Processor seconds that this process's children have used: proxy and servers."""
    return sum(sum(child.cpu_times()[:2]) for child in psutil.Process().children(recursive=True))


def turn(url: str, seconds: float, passes: int) -> dict[str, float]:
    """What the loader delivers, after it has read and used so many passes, and all that it had read ahead."""
    from jmp_data.mixture import Mixture
    from jmp_data.shards.dataset import open_dataset
    from jmp_data.stream import StreamLoader

    start = time.perf_counter()
    dataset = open_dataset(url)
    mixture = Mixture.from_datasets({"slabs": dataset}, repeats={"slabs": 10_000})
    stream = iter(StreamLoader(mixture, batch_size=32))
    next(stream)
    first = time.perf_counter() - start
    gc.freeze()  # else a look at all objects of the imports falls into one turn or another
    left = AHEAD_BLOCKS * len(dataset) // dataset.num_blocks + passes * len(dataset)
    while left > 0:
        left -= next(stream).num_graphs
    seen, cpu, servers, start = 0, time.process_time(), servers_cpu(), time.perf_counter()
    while time.perf_counter() < start + seconds:
        seen += next(stream).num_graphs
    wall = time.perf_counter() - start
    cpu, servers = time.process_time() - cpu, servers_cpu() - servers
    stream.close()  # type: ignore[attr-defined]  # a generator
    return {"rate": seen / wall, "us": cpu / seen * 1e6, "servers": servers / wall, "first_batch_s": first}


def make_datasets(root: Path, structures: int) -> None:
    from loader import make_slabs

    from jmp_data.shards.write_dataset import write_dataset

    block = make_slabs(structures)
    for name in FORMATS:
        write_dataset(
            (block.structure(i) for i in range(len(block))), root / name / "train", format=name, schema=block.schema
        )


def compare(root: Path, chosen: Sequence[Way], seconds: float, rounds: int) -> Iterator[dict[str, Any]]:
    """A row for each format and way."""
    os.environ.update(
        {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1"},
        JMP_DATA_CACHE=str(root / "cache"),
    )
    with far_servers(root / "site", chosen) as ports:
        for name, (way, port) in itertools.product(FORMATS, zip(chosen, ports, strict=True)):
            os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
            os.environ["JMP_DATA_CACHE_BYTES"] = str(1 << 34) if way.cached else "0"
            path = f"{BUCKET}/{name}/train"
            url = f"s3://{path}" if way.scheme == "s3" else f"http://127.0.0.1:{port}/{path}"
            turns = []
            for _ in range(rounds):
                turns.append((turn(str(root / "site" / path), seconds, 0), turn(url, seconds, int(way.cached))))
            disk, found = (max(either, key=lambda each: each["rate"]) for either in zip(*turns, strict=True))
            of_disk = {"of_disk": found["rate"] / disk["rate"], "disk": disk["rate"], "disk_us": disk["us"]}
            row = {**found, **of_disk}
            print(name, way.name, row, file=sys.stderr, flush=True)
            yield {"format": name, "from": way.name, **row}
            shutil.rmtree(root / "cache", ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--structures", type=int, default=28_800)
    parser.add_argument("--latency", type=float, default=0.05)
    parser.add_argument("--seconds", type=float, default=0.8)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--only", default="", help="only ways with this in their name")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="remote-benchmark-"))
    try:
        make_datasets(root / "site" / BUCKET, arguments.structures)
        chosen = [way for way in ways(arguments.latency) if arguments.only in way.name]
        rows = list(compare(root, chosen, arguments.seconds, arguments.rounds))
    finally:
        shutil.rmtree(root)
    if arguments.json:
        machine = {"cores": os.cpu_count(), "python": platform.python_version()}
        print(json.dumps({"machine": machine, "rows": rows}, indent=1))
        return
    titles = ("structures/s", "of disk", "disk", "µs", "disk µs", "servers", "first s")
    print(f"{'format':<12}{'from':<22}" + "".join(f"{title:>13}" for title in titles))
    for row in rows:
        rates = f"{row['rate']:>13,.0f}{row['of_disk']:>13.2f}{row['disk']:>13,.0f}"
        costs = f"{row['us']:>13.1f}{row['disk_us']:>13.1f}{row['servers']:>13.2f}{row['first_batch_s']:>13.2f}"
        print(f"{row['format']:<12}{row['from']:<22}{rates}{costs}")


if __name__ == "__main__":
    main()
