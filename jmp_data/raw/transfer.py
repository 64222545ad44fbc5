"""Brings one file over HTTP into its ``.part`` file, whatever the server does on the way.

One :class:`Transfer` asks for the bytes that are missing, appends them, and asks again when the connection breaks. It
trusts no single statement of a server: a resumed answer must begin where the part ends, carry the same validator and
the same total; a complete file must have the published size and digest. What cannot be mended by asking again moves
on to the next mirror, and when there is none, to an error that says what each address did.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO, Literal

import requests
import urllib3

from jmp_data.errors import DownloadError
from jmp_data.raw.digests import RunningDigest, digest_file, write_json
from jmp_data.raw.download_plan import LocalPaths, RemoteFile
from jmp_data.raw.http_answers import AddressError, PartState, TransientError, WrongContentError, read_answer

Stage = Literal["waiting", "checking", "downloading", "retrying", "done"]

_BLOCK = 1 << 18
_USER_AGENT = "jmp-data"


@dataclass(frozen=True, slots=True)
class TransferProgress:
    """How far one file is.

    Attributes:
        name: of the file.
        stage: what is happening.
        received: bytes on disk, or bytes read while checking.
        total: bytes in all, where known.
        note: what went wrong, while retrying.
    """

    name: str
    stage: Stage
    received: int
    total: int | None
    note: str = ""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How patient a download is.

    Attributes:
        attempts: failures in a row, without a byte of progress, before an address is given up.
        restarts: how often a file with wrong content is fetched from scratch.
        first_delay: seconds before the first retry; doubles each time, with jitter.
        longest_delay: seconds that no wait exceeds, whatever ``Retry-After`` says.
        connect_timeout: seconds to wait for a connection.
        read_timeout: seconds of silence after which a connection counts as broken.
    """

    attempts: int = 6
    restarts: int = 2
    first_delay: float = 1.0
    longest_delay: float = 120.0
    connect_timeout: float = 20.0
    read_timeout: float = 60.0


class Transfer:
    """Fetches one file into its part.

    Args:
        file: the published file.
        paths: where its part and state lie.
        policy: how often and how long to retry.
        report: gets the progress.
        stop: set when the whole download is to end.
        recorded_sha256: digest of an earlier download, binding where none is published.
    """

    def __init__(
        self,
        file: RemoteFile,
        paths: LocalPaths,
        *,
        policy: RetryPolicy,
        report: Callable[[TransferProgress], None],
        stop: threading.Event,
        recorded_sha256: str | None,
    ) -> None:
        self._file = file
        self._paths = paths
        self._policy = policy
        self._report = report
        self._stop = stop
        self._recorded_sha256 = recorded_sha256
        self._digest = RunningDigest()
        self._restarts = 0
        self._furthest = self._part_size()
        self.url = ""

    def run(self) -> RunningDigest:
        """Returns the digest of the complete part, which then has passed every check.

        Raises:
            DownloadError: no address gave the file; names what each did.
        """
        failures: list[str] = []
        with requests.Session() as session:
            for url in self._file.urls:
                self.url = url
                try:
                    return self._from_address(session, url)
                except AddressError as failure:
                    failures.append(f"{url}: {failure}")
        raise DownloadError(
            f"{self._paths.final}: could not be downloaded; " + "; ".join(failures) + ". "
            "Fetch it by hand, put it there, and run the command again to have it checked."
        )

    def _from_address(self, session: requests.Session, url: str) -> RunningDigest:
        attempt = 0
        while True:
            try:
                self._receive(session, url)
                return self._verified()
            except WrongContentError as failure:
                self._discard()
                self._furthest = 0
                self._restarts += 1
                if self._restarts > self._policy.restarts:
                    raise AddressError(f"{failure}; what came was removed") from failure
                self._pause(str(failure), attempt, None)
            except TransientError as failure:
                size = self._part_size()
                attempt = 1 if size > self._furthest else attempt + 1
                self._furthest = max(size, self._furthest)
                if attempt >= self._policy.attempts:
                    raise AddressError(f"{failure} ({attempt} times in a row)") from failure
                self._pause(str(failure), attempt, failure.retry_after)

    def _receive(self, session: requests.Session, url: str) -> None:
        """Makes one request and appends what comes; returns when the part is complete."""
        state = self._resumable_state(url)
        start = self._part_size()
        if start and (start == self._file.size or (state is not None and start == state.total)):
            return
        headers = {"Accept-Encoding": "identity", "User-Agent": _USER_AGENT}
        if start:
            headers["Range"] = f"bytes={start}-"
            if state is not None and state.validator is not None:
                headers["If-Range"] = state.validator
        timeout = (self._policy.connect_timeout, self._policy.read_timeout)
        try:
            with session.get(url, headers=headers, stream=True, timeout=timeout) as response:
                answer = read_answer(response, self._file, self._paths.final, start=start, state=state)
                if answer is None:
                    return
                if answer.start == 0:
                    self._discard()  # old bytes must never stand beside the new state, not even after a crash
                self._keep_state(PartState(url, answer.etag, answer.last_modified, answer.total))
                self._append(response, answer.start, answer.total)
        except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema) as error:
            raise AddressError(str(error)) from error
        except (requests.exceptions.TooManyRedirects, requests.exceptions.SSLError) as error:
            raise AddressError(str(error)) from error
        except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as error:
            raise TransientError(f"the connection failed ({_brief(error)})") from error

    def _resumable_state(self, url: str) -> PartState | None:
        """Decides whether the part can be continued from this address; discards it where not."""
        size = self._part_size()
        if not size:
            return None
        state = self._read_state()
        same_source = state is not None and state.url == url and state.validator is not None
        whole = self._file.size if self._file.size is not None else state.total if state is not None else None
        if (same_source or self._file.has_digest) and (whole is None or size <= whole):
            return state if same_source else None
        self._discard()
        return None

    def _append(self, response: requests.Response, start: int, total: int | None) -> None:
        self._require_space(None if total is None else total - start)
        if self._digest.size != start:
            self._digest = RunningDigest() if start == 0 else digest_file(self._paths.part)
        received = start
        with self._paths.part.open("r+b" if self._paths.part.exists() else "wb") as part:
            part.truncate(start)
            part.seek(start)
            try:
                for block in response.raw.stream(_BLOCK, decode_content=False):
                    received += len(block)
                    if total is not None and received > total:
                        raise WrongContentError(f"the server sent more than the {total} bytes that it announced")
                    self._write(part, block)
                    self._report(TransferProgress(self._file.name, "downloading", received, total))
                    if self._stop.is_set():
                        raise DownloadError(f"{self._paths.final}: interrupted; run the command again to go on")
            finally:
                part.flush()
                os.fsync(part.fileno())
        if received == 0:
            raise TransientError("the server sent an empty file")
        if total is not None and received < total:
            raise TransientError(f"the connection ended after {received} of {total} bytes")

    def _write(self, part: BinaryIO, block: bytes) -> None:
        try:
            part.write(block)
        except OSError as error:
            raise DownloadError(
                f"{self._paths.part}: cannot be written ({error.strerror}); make room and run the command again"
            ) from error
        self._digest.update(block)

    def _verified(self) -> RunningDigest:
        """Compares the complete part with what is published, or with what was recorded earlier."""
        if self._digest.size != self._part_size():
            self._digest = digest_file(
                self._paths.part,
                on_block=lambda n: self._report(TransferProgress(self._file.name, "checking", n, self._part_size())),
            )
        digest = self._digest
        objection = self._file.objection(digest.size, digest.sha256, digest.md5)
        if objection is None and not self._file.has_digest and self._recorded_sha256 not in (None, digest.sha256):
            objection = (
                f"its sha256 is {digest.sha256}, but {self._recorded_sha256} was recorded when it was first downloaded "
                f"(if the publisher replaced the file, remove its entry from digests.json)"
            )
        if objection is not None:
            raise WrongContentError(f"the file that came is not the published one: {objection}")
        return digest

    def _require_space(self, needed: int | None) -> None:
        free = shutil.disk_usage(self._paths.part.parent).free
        if needed is not None and needed > free:
            raise DownloadError(f"{self._paths.final}: needs {needed} more bytes, the disk has {free}; make room first")

    def _pause(self, note: str, attempt: int, retry_after: float | None) -> None:
        self._report(TransferProgress(self._file.name, "retrying", self._part_size(), self._file.size, note))
        delay = self._policy.first_delay * 2.0 ** max(0, attempt - 1)
        delay = max(delay * random.uniform(0.75, 1.25), retry_after or 0.0)
        if self._stop.wait(min(delay, self._policy.longest_delay)):
            raise DownloadError(f"{self._paths.final}: interrupted; run the command again to go on")

    def _part_size(self) -> int:
        return self._paths.part.stat().st_size if self._paths.part.is_file() else 0

    def _discard(self) -> None:
        self._digest = RunningDigest()
        self._paths.part.unlink(missing_ok=True)
        self._paths.state.unlink(missing_ok=True)

    def _keep_state(self, state: PartState) -> None:
        write_json(self._paths.state, asdict(state))

    def _read_state(self) -> PartState | None:
        """A missing or damaged state only means that the part cannot be continued by validator."""
        try:
            return PartState(**json.loads(self._paths.state.read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            return None


def _brief(error: Any) -> str:
    return f"{type(error).__name__}: {error}"[:200]
