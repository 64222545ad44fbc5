"""A real HTTP server on loopback that can be told to misbehave, one fault a request."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BLOCK = 1 << 14


@dataclass(frozen=True)
class Fault:
    """What is wrong with one answer; everything not said here is done right.

    Attributes:
        status: answer with this status and no content.
        headers: added to, or replacing, the right ones; None removes one.
        drop_after: close the connection after so many bytes of body.
        content: serve other bytes.
        ignore_range: send everything with status 200.
        shift_range: start so many bytes later than asked, and say so.
        pause: seconds of silence before the body.
        redirect: path to send the client to.
        close_delimited: say no length and end the body by closing the connection.
    """

    status: int | None = None
    headers: dict[str, str | None] = field(default_factory=dict)
    drop_after: int | None = None
    content: bytes | None = None
    ignore_range: bool = False
    shift_range: int = 0
    pause: float = 0.0
    redirect: str | None = None
    close_delimited: bool = False


class FaultyServer:
    """Files by path, a queue of faults by path, and a log of what was asked for."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, deque[Fault]] = defaultdict(deque)
        self.always: dict[str, Fault] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.with_validators = True

    def put(self, path: str, content: bytes, *faults: Fault, always: Fault | None = None) -> str:
        """Publishes a file and returns its address."""
        self.files[path] = content
        self.faults[path].extend(faults)
        if always is not None:
            self.always[path] = always
        return f"{self.url}{path}"

    def ranges(self, path: str) -> list[str | None]:
        """The Range header of each request for ``path``."""
        return [asked for requested, asked in self.requests if requested == path]


def _handler(server: FaultyServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            pass

        def do_GET(self) -> None:
            path = self.path
            server.requests.append((path, self.headers.get("Range")))
            queue = server.faults[path]
            fault = queue.popleft() if queue else server.always.get(path, Fault())
            if path not in server.files:
                return self._answer(404, {}, b"", fault)
            if fault.redirect is not None:
                return self._answer(302, {"Location": fault.redirect}, b"", fault)
            if fault.status is not None:
                return self._answer(fault.status, {}, b"", fault)
            content = server.files[path] if fault.content is None else fault.content
            etag = f'"{hashlib.sha1(content).hexdigest()}"'
            headers = {"ETag": etag, "Accept-Ranges": "bytes"} if server.with_validators else {}
            start = self._start(etag, fault)
            if start is None:
                return self._answer(200, headers, content, fault)
            start += fault.shift_range
            if start >= len(content):
                return self._answer(416, {"Content-Range": f"bytes */{len(content)}"}, b"", fault)
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            return self._answer(206, headers, content[start:], fault)

        def _start(self, etag: str, fault: Fault) -> int | None:
            match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            if match is None or fault.ignore_range or self.headers.get("If-Range", etag) != etag:
                return None
            return int(match[1])

        def _answer(self, status: int, headers: dict[str, str], body: bytes, fault: Fault) -> None:
            self.send_response(status)
            merged = {**headers, "Content-Length": str(len(body)), **fault.headers}
            if fault.close_delimited:
                merged["Content-Length"] = None
                merged["Connection"] = "close"
            for name, value in merged.items():
                if value is not None:
                    self.send_header(name, value)
            self.end_headers()
            time.sleep(fault.pause)
            stop = len(body) if fault.drop_after is None else fault.drop_after
            for offset in range(0, stop, BLOCK):
                self.wfile.write(body[offset : min(stop, offset + BLOCK)])
            if stop < len(body) or fault.close_delimited or "Content-Length" in fault.headers:
                self.close_connection = True

    return Handler


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away are part of the tests."""


@contextmanager
def serve() -> Iterator[FaultyServer]:
    """Runs a server on a free port of loopback."""
    listener = _QuietServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    server = FaultyServer(f"http://127.0.0.1:{listener.server_address[1]}")
    listener.RequestHandlerClass = _handler(server)
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()
