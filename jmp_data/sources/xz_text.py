"""Unpack an `.xz` file as far as it can be trusted: the readable part of a truncated file, nothing of a corrupt one."""

from __future__ import annotations

import lzma
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jmp_data.errors import MissingFileError, RawFileError

_CHUNK = 1 << 18
MAX_BYTES = 4 << 30
"""A hundred times the largest published file; more than that is not one of them."""


@dataclass(frozen=True, slots=True)
class XzText:
    """What came out of a file.

    Attributes:
        text: the unpacked bytes; all that came before the cut in a truncated file.
        state: `corrupt` where the check sums or the stream itself are wrong: then no part of the text can be trusted.
        message: what is wrong with the file, without its name; empty where it is whole.
    """

    text: bytes
    state: Literal["whole", "truncated", "corrupt"] = "whole"
    message: str = ""


def read_xz(path: Path) -> XzText:
    """Unpack a file in one go (published ones hold about 40 MB).

    Raises:
        MissingFileError: there is no such file.
        RawFileError: it unpacks to more than `MAX_BYTES`.
    """
    try:
        packed = memoryview(path.read_bytes())
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file; it was there when the work was planned") from None
    pieces: list[bytes] = []
    size, position, decompressor = 0, 0, lzma.LZMADecompressor(lzma.FORMAT_XZ)
    try:
        while position < len(packed):
            if decompressor.eof:  # a file may hold several streams one after another, with zeros between and behind
                position = len(packed) - len(bytes(packed[position:]).lstrip(b"\0"))
                if position == len(packed):
                    break
                decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ)
            piece = decompressor.decompress(packed[position : position + _CHUNK])
            position = min(position + _CHUNK, len(packed)) - len(decompressor.unused_data)
            pieces.append(piece)
            size += len(piece)
            if size > MAX_BYTES:
                raise RawFileError(f"{path}: unpacks to more than {MAX_BYTES >> 30} GiB, so it is no published file")
    except lzma.LZMAError as error:
        return XzText(b"".join(pieces), "corrupt", f"corrupt xz stream ({error}); get the file again")
    text = b"".join(pieces)
    if not decompressor.eof:
        return XzText(text, "truncated", f"xz stream ends after {len(packed)} bytes; get the file again")
    return XzText(text)
