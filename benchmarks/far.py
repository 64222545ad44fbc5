"""Makes a server on this machine seem far away and unreliable: a proxy in a process of its own, one port a `Network`.

A thread of each connection receives a request, waits, forwards it, and relays the answer from socket to socket with
`splice`, which moves pages instead of copying bytes, so that the proxy itself costs little. It speaks HTTP/1.1 without
pipelining, HEAD and chunked bodies, as much as reading ranges needs.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import multiprocessing
import os
import re
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_PIPE_BYTES = 1 << 20
_HEAD_BYTES = 1 << 16
_REFUSAL = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\n\r\n"


@dataclass(frozen=True)
class Network:
    """What lies between loader and server.

    Attributes:
        latency: seconds before a request reaches the server.
        trouble_every: cut every so many-th answer in the middle, and refuse every so many-th request; 0 for none.
        bytes_per_s: of one connection; 0 for no limit.
    """

    latency: float = 0.0
    trouble_every: int = 0
    bytes_per_s: float = 0.0


@contextlib.contextmanager
def networks(ways: Sequence[tuple[Network, int]]) -> Iterator[list[int]]:
    """Run proxies for (network, port of the server); yields the port of each."""
    context = multiprocessing.get_context("spawn")
    listeners = [socket.create_server(("127.0.0.1", 0), backlog=512) for _ in ways]
    process = context.Process(target=_serve, args=(listeners, ways), daemon=True)
    process.start()
    try:
        yield [listener.getsockname()[1] for listener in listeners]
    finally:
        process.kill()
        process.join()
        for listener in listeners:
            listener.close()


def _serve(listeners: list[socket.socket], ways: list[tuple[Network, int]]) -> None:
    for listener, (network, port) in zip(listeners, ways, strict=True):
        threading.Thread(target=_accept, args=(listener, network, port)).start()


def _accept(listener: socket.socket, network: Network, port: int) -> None:
    requests = itertools.count(1)
    while True:
        client, _ = listener.accept()
        threading.Thread(target=_connect, args=(client, network, port, requests), daemon=True).start()


def _connect(client: socket.socket, network: Network, port: int, requests: Iterator[int]) -> None:
    with client, socket.create_connection(("127.0.0.1", port)) as server, contextlib.suppress(OSError):
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pipe = os.pipe()
        fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        try:
            while request := _receive_head(client):
                number = next(requests)
                time.sleep(network.latency)
                trouble = number % network.trouble_every if network.trouble_every else -1
                if trouble == 0:
                    client.sendall(_REFUSAL)
                    continue
                server.sendall(request)
                cut = trouble == network.trouble_every // 2
                if not _relay(server, client, pipe, cut=cut, bytes_per_s=network.bytes_per_s):
                    return
        finally:
            for end in pipe:
                os.close(end)


def _receive_head(source: socket.socket) -> bytes:
    """Lines up to the empty one, and what came with them."""
    received = b""
    while b"\r\n\r\n" not in received:
        piece = source.recv(_HEAD_BYTES)
        if not piece:
            return b""
        received += piece
    return received


def _relay(
    server: socket.socket, client: socket.socket, pipe: tuple[int, int], *, cut: bool, bytes_per_s: float
) -> bool:
    """One answer, or its first half; returns whether the connection can go on."""
    received = _receive_head(server)
    if not received:
        return False
    head, _, body = received.partition(b"\r\n\r\n")
    if b"\r\ncontent-range:" in head.lower():  # rclone's S3 says 200 where S3 itself says 206
        head = head.replace(b" 200 OK", b" 206 Partial Content", 1)
    length = re.search(rb"\r\ncontent-length: *(\d+)", head.lower())
    left = (int(length[1]) if length else 0) - len(body)
    if cut:
        left //= 2
    client.sendall(head + b"\r\n\r\n" + body)
    most = 1 << 16 if bytes_per_s else _PIPE_BYTES
    while left:
        held = moved = os.splice(server.fileno(), pipe[1], min(left, most))
        if not moved:
            return False
        while held:
            held -= os.splice(pipe[0], client.fileno(), held)
        left -= moved
        if bytes_per_s:
            time.sleep(moved / bytes_per_s)
    return not cut
