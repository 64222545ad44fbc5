"""A plain HTTP file server on loopback with injected trouble, for reading shards from anywhere."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote


class Trouble:
    """What the server does wrong; change it while it runs."""

    def __init__(self) -> None:
        self.latency = 0.0
        self.drop_every = 0
        self.fail_every = 0
        self.silent_every = 0
        self.ignore_ranges = False
        self.say_no_lengths = False
        self.refuse = False
        self.logins: list[str | None] = []
        self.requests = 0
        self.lock = threading.Lock()

    def next(self) -> int:
        with self.lock:
            self.requests += 1
            return self.requests


@contextmanager
def serve(root: Path) -> Iterator[tuple[str, Trouble]]:
    """Serve a folder; yields its URL and the trouble switch."""
    trouble = Trouble()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            number = trouble.next()
            time.sleep(trouble.latency)
            trouble.logins.append(self.headers.get("Authorization"))
            if trouble.refuse:
                self.send_error(403)
                return
            if self.path.startswith("/moved/"):
                self.send_response(302)
                self.send_header("Location", f"http://localhost:{server.server_address[1]}{self.path[6:]}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            path = root / unquote(self.path).lstrip("/")
            if not path.is_file():
                self.send_error(404)
                return
            if trouble.fail_every and number % trouble.fail_every == 0:
                self.send_error(503)
                return
            content, status = path.read_bytes(), 200
            match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
            total = len(content)
            if match and not trouble.ignore_ranges:
                first, last = match.groups()
                start = int(first) if first else max(0, total - int(last))
                stop = min(int(last) + 1 if first and last else total, total)
                content, status = content[start:stop], 206
            self.send_response(status)
            if trouble.say_no_lengths:
                self.send_header("Connection", "close")
            else:
                self.send_header("Content-Length", str(len(content)))
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("ETag", '"1"')
            self.send_header("Last-Modified", "Mon, 30 Nov 2026 00:00:00 GMT")
            if status == 206:
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{total}")
            self.end_headers()
            if not body:
                return
            if trouble.silent_every and number % trouble.silent_every == 0:
                self.wfile.write(content[: len(content) // 2])
                time.sleep(4)
                self.close_connection = True
                return
            if trouble.drop_every and number % trouble.drop_every == 0:
                self.wfile.write(content[: len(content) // 2])
                self.close_connection = True
                self.connection.close()
                return
            self.wfile.write(content)
            self.close_connection = trouble.say_no_lengths

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", trouble
    finally:
        server.shutdown()
        server.server_close()
