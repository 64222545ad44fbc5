"""Some blocks of a compressed Blosc buffer, without decompressing the others.

A Blosc 1 buffer is a header of 16 bytes, the start of each block as little-endian int32, and the blocks, each
compressed alone. Consecutive blocks under a header and a table of their own are a whole buffer again, which the
library decompresses like any other.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt
from numcodecs import blosc

_HEADER = struct.Struct("<BBBBIII")
_FORMAT_VERSION = 2
_STORED_PLAIN = 2


def decompress_granules(payload: npt.NDArray[np.uint8], first: int, stop: int, target: npt.NDArray[Any]) -> None:
    """Decompress blocks `first` to `stop - 1`.

    Args:
        payload: a whole Blosc buffer.
        first: the first block.
        stop: one past the last.
        target: (bytes of these blocks,) uint8, contiguous; where they go.
    """
    version, inner, flags, typesize, nbytes, blocksize, compressed = _HEADER.unpack(payload[: _HEADER.size].tobytes())
    count = -(-nbytes // blocksize)
    if version != _FORMAT_VERSION or flags & _STORED_PLAIN or (first, stop) == (0, count):
        whole = np.frombuffer(blosc.decompress(payload), np.uint8)
        target[...] = whole[first * blocksize : stop * blocksize]
        return
    starts = payload[_HEADER.size : _HEADER.size + 4 * count].view("<i4")
    begin, end = int(starts[first]), compressed if stop == count else int(starts[stop])
    table = starts[first:stop] + (_HEADER.size + 4 * (stop - first) - begin)
    size = _HEADER.size + table.nbytes + end - begin
    header = _HEADER.pack(version, inner, flags, typesize, len(target), blocksize, size)
    blosc.decompress(b"".join([header, table.astype("<i4").tobytes(), payload[begin:end].tobytes()]), target)
