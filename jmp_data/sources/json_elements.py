"""The elements of a huge JSON list one by one: as text, found by their brackets, without parsing or holding the list.

A compiled scan finds where elements end at about the speed of unpacking, so that whoever wants one element in ten
parses only those. The list may be the whole text, or the value of a key of one object.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from numba import njit

from jmp_data.errors import MissingFileError, RawFileError

Array = npt.NDArray[Any]

_CHUNK_BYTES = 1 << 20
_MAX_HEAD_BYTES = 1 << 27
_MAX_ELEMENTS = 4096  # found in one call of the scan
_OUTSIDE, _IN_STRING, _AFTER_BACKSLASH = 0, 1, 2


@contextmanager
def open_json(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a `.json` or `.json.gz` file.

    Raises:
        MissingFileError: there is none.
        RawFileError: the packed file is truncated or damaged.
    """
    try:
        with path.open("rb") as packed:
            if path.suffix == ".gz":
                with gzip.GzipFile(fileobj=packed) as file:
                    yield file  # type: ignore[misc]  # GzipFile is an IO[bytes] in all that is used here
            else:
                yield packed
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file; it was there when the work was planned") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise RawFileError(f"{path}: not a whole gzip file ({error}); get the file again") from error


def read_head(file: IO[bytes], key: str, path: Path) -> tuple[bytes, bytes]:
    """Read up to the `[` of a key's list.

    Args:
        file: at its beginning.
        key: of the object that the file holds.
        path: for error messages.

    Returns:
        What comes before the key, and what was read of the list's inside.

    Raises:
        RawFileError: there is no such key, or it comes after more than 128 MiB.
    """
    pattern = re.compile(rb'"' + re.escape(key.encode()) + rb'"\s*:\s*\[')
    head = b""
    while len(head) <= _MAX_HEAD_BYTES:
        chunk = file.read(_CHUNK_BYTES)
        searched = max(0, len(head) - len(key) - 64)
        head += chunk
        match = pattern.search(head, searched)
        if match:
            return head[: match.start()], head[match.end() :]
        if not chunk:
            break
    raise RawFileError(f"{path}: has no list {key!r}; this is another file than its name says")


def list_elements(file: IO[bytes], path: Path, begun: bytes = b"") -> Iterator[bytes]:
    """The text of each element of a list whose elements are objects or lists, to the end of the list and the file.

    Args:
        file: just behind the list's `[` and `begun`.
        path: for error messages.
        begun: what was read of the list already.

    Raises:
        RawFileError: the file ends within the list.
    """
    starts, ends = np.empty(_MAX_ELEMENTS, np.int64), np.empty(_MAX_ELEMENTS, np.int64)
    buffer, position, depth, state, begin = begun, 0, 0, _OUTSIDE, -1
    while True:
        found, position, depth, state, begin, closed = _find_elements(
            np.frombuffer(buffer, np.uint8), position, depth, state, begin, starts, ends
        )
        for start, end in zip(starts[:found].tolist(), ends[:found].tolist(), strict=True):
            yield buffer[start:end]
        if closed:
            break
        if position < len(buffer):
            continue
        chunk = file.read(_CHUNK_BYTES)
        if not chunk:
            raise RawFileError(f"{path}: ends within its list; get the file again")
        keep = buffer[begin:] if begin >= 0 else b""
        begin = min(begin, 0)
        buffer, position = keep + chunk, len(keep)
    while file.read(_CHUNK_BYTES):  # to the end, where a packed file has its check sum
        pass


@njit(cache=True, nogil=True)
def _find_elements(
    text: Array, position: int, depth: int, state: int, begin: int, starts: Array, ends: Array
) -> tuple[int, int, int, int, int, bool]:
    """Scan until the list closes, the text ends or the arrays are full.

    Returns:
        Elements found, position reached, depth, state, start of the element that is open (-1: none), whether the list
        is closed.
    """
    found = 0
    while position < len(text):
        byte = text[position]
        position += 1
        if state == _AFTER_BACKSLASH:
            state = _IN_STRING
        elif state == _IN_STRING:
            if byte == 92:
                state = _AFTER_BACKSLASH
            elif byte == 34:
                state = _OUTSIDE
        elif byte == 34:
            state = _IN_STRING
        elif byte == 91 or byte == 123:
            if depth == 0:
                begin = position - 1
            depth += 1
        elif byte == 93 or byte == 125:
            if depth == 0:
                return found, position, depth, state, begin, True
            depth -= 1
            if depth == 0:
                starts[found], ends[found] = begin, position
                begin = -1
                found += 1
                if found == len(starts):
                    return found, position, depth, state, begin, False
    return found, position, depth, state, begin, False
