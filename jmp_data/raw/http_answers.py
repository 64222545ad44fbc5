"""Judges what a server answered to a request for (the rest of) a file.

Servers of data sets are not all alike: some ignore ranges, some answer with another file's size, with a log-in page,
with a bot challenge that has status 202 and no body, or with the rest of a file that has changed meanwhile. Here each
answer becomes either an :class:`Answer` that says where its bytes belong, or one of three failures that say what may
help.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path

import requests

from jmp_data.raw.download_plan import RemoteFile

_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")
_TRANSIENT_STATUS = frozenset({408, 425, 429})


class TransientError(Exception):
    """Asking again may help.

    Attributes:
        retry_after: seconds that the server asks to wait, if it does.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class WrongContentError(Exception):
    """The bytes are not those of the file; only a fresh start can help."""


class AddressError(Exception):
    """This address will not give the file; only another one can help."""


@dataclass(frozen=True, slots=True)
class PartState:
    """What the server said about the file of which a part lies here; it decides whether the part can be continued."""

    url: str
    etag: str | None
    last_modified: str | None
    total: int | None

    @property
    def validator(self) -> str | None:
        """What If-Range may carry: a strong ETag or a date."""
        return self.etag if self.etag is not None and not self.etag.startswith("W/") else self.last_modified


@dataclass(frozen=True, slots=True)
class Answer:
    """A body that is worth reading.

    Attributes:
        start: offset in the file of its first byte.
        total: size of the whole file, where the server or the publisher states it.
        etag: validator of the server's version.
        last_modified: date of the server's version.
    """

    start: int
    total: int | None
    etag: str | None
    last_modified: str | None


def read_answer(
    response: requests.Response, file: RemoteFile, final: Path, *, start: int, state: PartState | None
) -> Answer | None:
    """Decides what to do with an answer.

    Args:
        response: its status and headers; the body is not touched.
        file: what is wanted.
        final: where the user would have to put it by hand.
        start: first byte that was asked for.
        state: of the part that ends there, if it came from the same address.

    Returns:
        None where nothing is missing behind ``start`` (status 416 that names this size).

    Raises:
        TransientError, WrongContentError, AddressError: the answer is of no use.
    """
    headers = response.headers
    _check_status(response.status_code, response.reason, headers, final)
    match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
    etag, last_modified = headers.get("ETag"), headers.get("Last-Modified")
    if response.status_code == 416:
        if match is None or match[3] != str(start):
            raise WrongContentError(f"the server has nothing behind byte {start} of the part that is here")
        return None
    length = headers.get("Content-Length", "")
    if response.status_code == 200:
        start = 0
        total = int(length) if length.isdigit() else None
    else:
        if match is None or match[1] != str(start):
            raise WrongContentError(
                f"asked for byte {start}, the server answered with {match[0] if match else 'no range'}"
            )
        total = None if match[3] == "*" else int(match[3])
        if start and state is not None and (_differ(state.etag, etag) or _differ(state.total, total)):
            raise WrongContentError("the file changed on the server while a part of it was here")
    if total == 0:
        raise TransientError("the server sent an empty file")
    if _differ(total, file.size):
        raise TransientError(f"the server offers {total} bytes where {file.size} are published")
    if not file.has_digest:
        _require_plain_body(headers, file, total)
    return Answer(start, file.size if total is None else total, etag, last_modified)


def _check_status(status: int, reason: str, headers: Mapping[str, str], final: Path) -> None:
    """Passes 200, 206 and 416 on; everything else is a failure of the attempt or of the address."""
    if status == 202 or "x-amzn-waf-action" in headers:
        action = headers.get("x-amzn-waf-action", "none")
        raise AddressError(
            f"the host answered with a bot challenge (HTTP {status}, x-amzn-waf-action: {action}) instead of the file; "
            f"download it with a browser and save it as {final}"
        )
    if status in (200, 206, 416):
        return
    message = f"HTTP {status} {reason}".rstrip()
    if status >= 500 or status in _TRANSIENT_STATUS:
        raise TransientError(message, _retry_after(headers.get("Retry-After")))
    raise AddressError(message)


def _require_plain_body(headers: Mapping[str, str], file: RemoteFile, total: int | None) -> None:
    """Refuses bodies that could be taken for the file without being it, where no digest would tell."""
    if headers.get("Content-Type", "").startswith("text/html") and not file.name.endswith((".html", ".htm")):
        raise AddressError("the server answered with a web page instead of the file")
    encoding = headers.get("Content-Encoding", "identity")
    if encoding != "identity" and not (encoding == "gzip" and file.name.endswith(".gz")):
        raise AddressError(f"the server insists on sending the file in {encoding} encoding")
    if total is None and file.size is None and headers.get("Transfer-Encoding") != "chunked":
        raise AddressError("neither server nor publisher says how long the file is, so that a part would pass as whole")


def _retry_after(value: str | None) -> float | None:
    """Seconds to wait: the header holds a number or a date."""
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _differ(first: object, second: object) -> bool:
    """Whether two statements contradict each other; one that was not made contradicts nothing."""
    return first is not None and second is not None and first != second
