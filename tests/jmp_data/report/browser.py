"""A real browser without a window, driven over a pipe: what a page logs, asks for and looks like."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next((found for name in _NAMES if (found := shutil.which(name))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason=f"no browser found ({', '.join(_NAMES)})")


class Page:
    """One page of a browser that this object starts and ends.

    Attributes:
        messages: what went to the console, errors of scripts and warnings of the browser included.
        requests: every address that was asked for.
    """

    def __init__(self, *, dark: bool = False, width: int = 1280, height: int = 900) -> None:
        assert BROWSER is not None
        self.messages: list[str] = []
        self.requests: list[str] = []
        self._profile = tempfile.mkdtemp()
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        # The browser reads descriptor 3 and writes descriptor 4; ours must be neither before they are copied there.
        ours = [fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in (to_browser, from_browser)]
        command = (
            f"exec 3<&{ours[0]} 4>&{ours[1]}; exec {BROWSER} --headless "
            f"--no-sandbox --disable-gpu --hide-scrollbars --remote-debugging-pipe --user-data-dir={self._profile} "
            f"--window-size={width},{height} about:blank"
        )
        self._process = subprocess.Popen(
            ["/bin/bash", "-c", command],
            pass_fds=ours,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (to_browser, from_browser, *ours):
            os.close(end)
        self._buffer, self._number = b"", 0
        self._loaded = False
        self._session: str | None = None
        targets = self.call("Target.getTargets")["targetInfos"]
        target = next(entry["targetId"] for entry in targets if entry["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        scheme = "dark" if dark else "light"
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def __enter__(self) -> Page:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._write)
        os.close(self._read)
        shutil.rmtree(self._profile, ignore_errors=True)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the DevTools protocol."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return dict(answer["result"])
        raise TimeoutError(method)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            some = os.read(self._read, 1 << 20)
            assert some, "the browser went away"
            self._buffer += some
        line, self._buffer = self._buffer.split(b"\0", 1)
        message: dict[str, Any] = json.loads(line)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, event: str, values: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.requests.append(values["request"]["url"])
        elif event == "Runtime.consoleAPICalled":
            self.messages.append(f"{values['type']}: {[a.get('value') for a in values['args']]}")
        elif event == "Runtime.exceptionThrown":
            self.messages.append(f"exception: {values['exceptionDetails']['text']}")
        elif event == "Log.entryAdded":
            self.messages.append(f"{values['entry']['level']}: {values['entry']['text']}")
        elif event == "Page.loadEventFired":
            self._loaded = True

    def open(self, path: Path) -> None:
        """Open a file from disk and wait until it is loaded."""
        self._loaded = False
        address = path.resolve().as_uri()
        self.call("Page.navigate", url=address)
        while not self._loaded:
            self._receive()
        # On a busy machine the event may still be that of the blank page before.
        deadline = time.monotonic() + 60
        while self.evaluate("document.readyState + ' ' + location.href") != f"complete {address}":
            assert time.monotonic() < deadline, "the page does not load"
            time.sleep(0.05)
        self.evaluate("document.fonts.ready.then(() => true)")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression on the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """The whole page as PNG."""
        answer = self.call("Page.captureScreenshot", captureBeyondViewport=True, format="png")
        path.write_bytes(base64.b64decode(answer["data"]))
