"""Structures per second from an HTTP server and an S3 server on loopback, with and without latency, and from disk.

    python benchmarks/remote.py [--structures 57600] [--latency 0.05] [--seconds 4] [--json]

The loader of `benchmarks/loader.py` (slabs of 73 atoms, shuffled, batches of 32, one process, default prefetch),
reading the same data set from a local folder, from a plain HTTP file server, and from moto's S3 server. Each server is
a process of its own and waits `--latency` seconds before it answers a request. The local cache is off, except in the
rows that say so: those read everything once and are measured on the second pass.

"troubled" servers also cut every 50th answer in the middle and refuse every 50th request with 503; "slow" ones send no
faster than 64 MB/s on one connection.

Servers and loader share the processor, so "server/s" says how many requests the server answered, and a last column how
many processor seconds the loader itself used per second: near 1 it cannot go faster, whatever the network does.
moto copies a whole object to answer a range of it, so its rate is its own limit; compare it with itself, with latency
and without.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

BUCKET = "bench"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
FORMATS = ("zarr", "webdataset")


@dataclass(frozen=True)
class Network:
    """What a server does to its answers.

    Attributes:
        latency: seconds before every answer.
        trouble_every: cut or refuse every so many-th request; 0 for none.
        bytes_per_s: of one connection; 0 for no limit.
    """

    latency: float = 0.0
    trouble_every: int = 0
    bytes_per_s: float = 0.0


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512


def serve_http(root: str, network: Network, port: Any, count: Any) -> None:
    """A file server that knows ranges and keeps connections."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16

        def log_message(self, *arguments: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, *, with_body: bool) -> None:
            with count.get_lock():
                count.value += 1
                number = count.value
            time.sleep(network.latency)
            trouble = network.trouble_every and number % network.trouble_every
            if network.trouble_every and trouble == 0:
                self.send_error(503)
                return
            path = Path(root, self.path.lstrip("/"))
            if not path.is_file():
                self.send_error(404)
                return
            with path.open("rb") as file:
                total = os.fstat(file.fileno()).st_size
                first, last = self._range(total)
                self.send_response(206 if self.headers.get("Range") else 200)
                self.send_header("Content-Length", str(last - first))
                self.send_header("Accept-Ranges", "bytes")
                self.send_header("Content-Range", f"bytes {first}-{last - 1}/{total}")
                self.end_headers()
                self.wfile.flush()
                if with_body:
                    cut = network.trouble_every and trouble == network.trouble_every // 2
                    self._send(file.fileno(), first, (first + last) // 2 if cut else last)
                    self.close_connection = bool(cut)

        def _range(self, total: int) -> tuple[int, int]:
            match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
            if match is None:
                return 0, total
            first, last = match.groups()
            start = int(first) if first else max(0, total - int(last))
            return start, min(int(last) + 1 if first and last else total, total)

        def _send(self, descriptor: int, first: int, last: int) -> None:
            while first < last:
                piece = last - first if not network.bytes_per_s else min(last - first, 1 << 16)
                sent = os.sendfile(self.connection.fileno(), descriptor, first, piece)
                first += sent
                if network.bytes_per_s:
                    time.sleep(sent / network.bytes_per_s)

    server = _Server(("127.0.0.1", 0), Handler)
    port.value = server.server_address[1]
    server.serve_forever()


def serve_s3(root: str, network: Network, port: Any, count: Any) -> None:
    """moto's S3 server behind a layer that waits, holding the files of a folder."""
    import boto3
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Handler(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, *arguments: object) -> None:
            pass

    application = DomainDispatcherApplication(create_backend_app)
    ready = threading.Event()

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if ready.is_set():
            with count.get_lock():
                count.value += 1
                number = count.value
            time.sleep(network.latency)
            if network.trouble_every and number % network.trouble_every == 0:
                start_response("503 Slow Down", [("Content-Length", "0")])
                return [b""]
        return application(environ, start_response)  # type: ignore[no-any-return]

    server = make_server("127.0.0.1", 0, answer, threaded=True, request_handler=Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    client = boto3.client("s3", endpoint_url=endpoint, aws_access_key_id="x", aws_secret_access_key="x")
    client.create_bucket(Bucket=BUCKET)
    for path in Path(root).rglob("*"):
        if path.is_file():
            client.put_object(Bucket=BUCKET, Key=path.relative_to(root).as_posix(), Body=path.read_bytes())
    ready.set()
    port.value = server.server_port
    threading.Event().wait()


@contextlib.contextmanager
def serving(serve: Callable[..., None], root: Path, network: Network) -> Iterator[tuple[int, Any]]:
    """Run a server in a process of its own; yields its port and its counter of requests."""
    context = multiprocessing.get_context("spawn")
    port, count = context.Value("i", 0), context.Value("q", 0)
    process = context.Process(target=serve, args=(str(root), network, port, count), daemon=True)
    process.start()
    try:
        while port.value == 0:
            if not process.is_alive():
                raise RuntimeError(f"{serve.__name__} did not start")
            time.sleep(0.02)
        yield port.value, count
    finally:
        process.kill()
        process.join()


def measure(url: str, seconds: float, warm_pass: bool) -> dict[str, float]:
    """What one fresh process delivers, after it has warmed up."""
    from jmp_data.mixture import Mixture
    from jmp_data.shards.dataset import open_dataset
    from jmp_data.stream import StreamLoader

    dataset = open_dataset(url)
    mixture = Mixture.from_datasets({"slabs": dataset}, repeats={"slabs": 10_000})
    start = time.perf_counter()
    stream = iter(StreamLoader(mixture, batch_size=32))
    next(stream)
    first = time.perf_counter() - start
    seen, warm_until = 0, time.perf_counter() + seconds
    while time.perf_counter() < warm_until or (warm_pass and seen < 2 * len(dataset)):
        seen += next(stream).num_graphs
    seen, start, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() < start + seconds:
        seen += next(stream).num_graphs
    wall = time.perf_counter() - start
    return {"rate": seen / wall, "cpu": (time.process_time() - cpu) / wall, "first_batch_s": first}


def in_process(url: str, seconds: float, cache: Path | None, endpoint: str = "") -> dict[str, float]:
    settings = {"JMP_DATA_CACHE_BYTES": "0" if cache is None else str(1 << 34), "JMP_DATA_CACHE": str(cache)}
    environment = {**os.environ, **CREDENTIALS, **settings, **({"AWS_ENDPOINT_URL": endpoint} if endpoint else {})}
    command = [sys.executable, __file__, "--measure", url, str(seconds), "warm" if cache else "cold"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    return dict(json.loads(done.stdout))


def make_datasets(root: Path, structures: int) -> None:
    from loader import make_slabs

    from jmp_data.shards.write_dataset import write_dataset

    block = make_slabs(structures)
    for name in FORMATS:
        write_dataset(
            (block.structure(i) for i in range(len(block))), root / name / "train", format=name, schema=block.schema
        )


def ways(latency: float) -> list[tuple[str, Callable[..., None], Network, bool]]:
    """(what, server, network, with a warm cache)."""
    far, name = Network(latency), f"{latency * 1000:.0f} ms"
    return [
        ("http", serve_http, Network(), False),
        (f"http, {name}", serve_http, far, False),
        (f"http, {name}, troubled", serve_http, Network(latency, trouble_every=50), False),
        (f"http, {name}, slow", serve_http, Network(latency, bytes_per_s=64e6), False),
        (f"http, {name}, cached", serve_http, far, True),
        ("s3", serve_s3, Network(), False),
        (f"s3, {name}", serve_s3, far, False),
        (f"s3, {name}, troubled", serve_s3, Network(latency, trouble_every=50), False),
    ]


def run(structures: int, latency: float, seconds: float, only: str) -> list[dict[str, Any]]:
    root = Path(tempfile.mkdtemp(prefix="remote-benchmark-"))
    rows: list[dict[str, Any]] = []
    try:
        make_datasets(root / "site", structures)
        for name in FORMATS:
            base = in_process(str(root / "site" / name / "train"), seconds, None)
            print(name, "disk", base, file=sys.stderr, flush=True)
            rows.append({"format": name, "from": "disk", **base, "of_disk": 1.0, "requests_per_s": 0.0})
            for what, serve, network, cached in ways(latency):
                if only not in what:
                    continue
                cache = root / "cache" if cached else None
                with serving(serve, root / "site", network) as (port, count):
                    s3 = serve is serve_s3
                    url = f"s3://{BUCKET}/{name}/train" if s3 else f"http://127.0.0.1:{port}/{name}/train"
                    start = time.perf_counter()
                    found = in_process(url, seconds, cache, f"http://127.0.0.1:{port}" if s3 else "")
                    requests = count.value / (time.perf_counter() - start)
                print(name, what, found, file=sys.stderr, flush=True)
                rows.append(
                    {"format": name, "from": what, **found, "of_disk": found["rate"] / base["rate"],
                     "requests_per_s": requests}
                )  # fmt: skip
                shutil.rmtree(root / "cache", ignore_errors=True)
        return rows
    finally:
        shutil.rmtree(root)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--structures", type=int, default=57_600)
    parser.add_argument("--latency", type=float, default=0.05)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--only", default="", help="only servers with this in their name")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--measure", nargs=3, metavar=("URL", "SECONDS", "CACHE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        url, seconds, cache = arguments.measure
        print(json.dumps(measure(url, float(seconds), cache == "warm")))
        return
    rows = run(arguments.structures, arguments.latency, arguments.seconds, arguments.only)
    if arguments.json:
        machine = {"cores": os.cpu_count(), "python": platform.python_version(), "host": socket.gethostname()}
        print(json.dumps({"machine": machine, "rows": rows}, indent=1))
        return
    print(
        f"{'format':<12}{'from':<24}{'structures/s':>14}{'of disk':>9}{'first s':>9}{'server/s':>10}{'loader cpu':>11}"
    )
    for row in rows:
        print(
            f"{row['format']:<12}{row['from']:<24}{row['rate']:>14,.0f}{row['of_disk']:>9.2f}"
            f"{row['first_batch_s']:>9.2f}{row['requests_per_s']:>10.0f}{row['cpu']:>11.2f}"
        )


if __name__ == "__main__":
    main()
