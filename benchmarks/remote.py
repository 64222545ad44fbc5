"""Structures per second from an HTTP server and an S3 server on loopback, near and far, beside those from disk.

    python benchmarks/remote.py [--structures 28800] [--latency 0.05] [--seconds 1.5] [--rounds 3] [--json]

The loader of `benchmarks/loader.py` (slabs of 73 atoms, shuffled, batches of 32, one process, default prefetch),
reading the same data set from a local folder, from `rclone serve http` and from `rclone serve s3`, both behind the
proxy of `benchmarks/far.py`. "50 ms" is what every request waits there; "troubled" cuts every 50th answer in the middle
and refuses every 50th request with 503; "slow" sends no faster than 64 MB/s on one connection. The local cache is off,
except in the rows that say so: those read everything once and are measured on the next pass.

Every turn opens the data set anew, and reads until all that was read ahead is used up before it counts. Turns from disk
and from a server follow each other, so that a busy moment of the machine hits both: "of disk" is the median over the
rounds of the ratio of two such turns, all other columns are medians too. Loader, proxy and server share the processor,
as no loader of a real run does with its server: "cpu" are the processor seconds of the loader a second, "others" those
of proxy and server.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import psutil
from far import Network, networks

BUCKET, FORMATS = "bench", ("zarr", "webdataset")
KEY, SECRET = "benchmark", "benchmark-secret"
READ_ONLY = ("--read-only", "--no-modtime", "--buffer-size", "0", "--dir-cache-time", "24h", "--poll-interval", "0")
AHEAD_BLOCKS = 3 * 64  # a window, its successor and what is read ahead


def ways(latency: float) -> list[tuple[str, str, Network, bool]]:
    """(scheme, what, network, with a warm cache)."""
    far, name = Network(latency), f"{latency * 1000:.0f} ms"
    return [
        ("http", "http", Network(), False),
        ("http", f"http, {name}", far, False),
        ("http", f"http, {name}, troubled", Network(latency, trouble_every=50), False),
        ("http", f"http, {name}, slow", Network(latency, bytes_per_s=64e6), False),
        ("http", f"http, {name}, cached", far, True),
        ("s3", "s3", Network(), False),
        ("s3", f"s3, {name}", far, False),
        ("s3", f"s3, {name}, troubled", Network(latency, trouble_every=50), False),
        ("s3", f"s3, {name}, slow", Network(latency, bytes_per_s=64e6), False),
    ]


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


def others_cpu() -> float:
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
    left = AHEAD_BLOCKS * len(dataset) // dataset.num_blocks + passes * len(dataset)
    while left > 0:
        left -= next(stream).num_graphs
    seen, cpu, others, start = 0, time.process_time(), others_cpu(), time.perf_counter()
    while time.perf_counter() < start + seconds:
        seen += next(stream).num_graphs
    wall = time.perf_counter() - start
    cpu, others = time.process_time() - cpu, others_cpu() - others
    stream.close()  # type: ignore[attr-defined]  # a generator
    return {"rate": seen / wall, "cpu": cpu / wall, "others": others / wall, "first_batch_s": first}


def make_datasets(root: Path, structures: int) -> None:
    from loader import make_slabs

    from jmp_data.shards.write_dataset import write_dataset

    block = make_slabs(structures)
    for name in FORMATS:
        write_dataset(
            (block.structure(i) for i in range(len(block))), root / name / "train", format=name, schema=block.schema
        )


def compare(root: Path, latency: float, seconds: float, rounds: int, only: str) -> Iterator[dict[str, Any]]:
    """A row for each format and way."""
    os.environ.update(
        {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1"},
        JMP_DATA_CACHE=str(root / "cache"),
    )
    chosen = [way for way in ways(latency) if only in way[1]]
    with rclone("http", root / "site") as http, rclone("s3", root / "site") as s3:
        servers = {"http": http, "s3": s3}
        with networks([(network, servers[scheme]) for scheme, _, network, _ in chosen]) as proxies:
            for name in FORMATS:
                path = f"{BUCKET}/{name}/train"
                for (scheme, what, _, cached), (port, count) in zip(chosen, proxies, strict=True):
                    os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
                    os.environ["JMP_DATA_CACHE_BYTES"] = str(1 << 34) if cached else "0"
                    url = f"s3://{path}" if scheme == "s3" else f"http://127.0.0.1:{port}/{path}"
                    turns, requests, start = [], count.value, time.perf_counter()
                    for _ in range(rounds):
                        disk = turn(str(root / "site" / path), seconds, 0)
                        found = turn(url, seconds, int(cached))
                        turns.append({**found, "disk": disk["rate"], "of_disk": found["rate"] / disk["rate"]})
                    per_s = (count.value - requests) / (time.perf_counter() - start)
                    row = {key: statistics.median(each[key] for each in turns) for key in turns[0]}
                    print(name, what, row, file=sys.stderr, flush=True)
                    yield {"format": name, "from": what, **row, "requests_per_s": per_s}
                    shutil.rmtree(root / "cache", ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--structures", type=int, default=28_800)
    parser.add_argument("--latency", type=float, default=0.05)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="only ways with this in their name")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="remote-benchmark-"))
    try:
        make_datasets(root / "site" / BUCKET, arguments.structures)
        rows = list(compare(root, arguments.latency, arguments.seconds, arguments.rounds, arguments.only))
    finally:
        shutil.rmtree(root)
    if arguments.json:
        machine = {"cores": os.cpu_count(), "python": platform.python_version()}
        print(json.dumps({"machine": machine, "rows": rows}, indent=1))
        return
    print(
        f"{'format':<12}{'from':<24}{'structures/s':>14}{'disk':>10}{'of disk':>9}{'first s':>9}{'cpu':>7}{'others':>8}"
    )
    for row in rows:
        print(
            f"{row['format']:<12}{row['from']:<24}{row['rate']:>14,.0f}{row['disk']:>9,.0f}{row['of_disk']:>9.2f}"
            f"{row['first_batch_s']:>9.2f}{row['cpu']:>9.2f}{row['others']:>9.2f}"
        )


if __name__ == "__main__":
    main()
