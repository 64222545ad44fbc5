"""Blocks as WebDataset samples: one tar per shard, one sample per block, one `.npy` member per column.

Stock `webdataset` with its own decoders reads these tars (key = block number, fields such as `positions.npy`). The
first member of a sample, `checksums.json`, holds the CRC-32C of every other member, so damage is found without
anything outside the tar. A block is one contiguous byte range, hence one range read.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from jmp_data.errors import ShardError
from jmp_data.shards.checksums import crc32c

_RECORD = 512
_NPY_HEADER_LENGTH = slice(8, 10)
END_OF_ARCHIVE = b"\0" * (2 * _RECORD)
CHECKSUMS = "checksums.json"


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o644
    return info.tobuf(tarfile.USTAR_FORMAT)


def _member(name: str, payload: bytes) -> bytes:
    return _header(name, len(payload)) + payload + b"\0" * (-len(payload) % _RECORD)


def _npy(array: npt.NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def encode_block(number: int, arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """One block as consecutive tar members: checksums first, then `<number>.<column>.npy`."""
    payloads = {f"{name}.npy": _npy(array) for name, array in arrays.items()}
    checksums = {name: crc32c(payload) for name, payload in payloads.items()}
    head = json.dumps(checksums, separators=(",", ":")).encode()
    members = {CHECKSUMS: head, **payloads}
    return b"".join(_member(f"{number:06d}.{name}", payload) for name, payload in members.items())


def _iter_members(block: bytes | memoryview, where: str) -> dict[str, memoryview]:
    view, offset, members = memoryview(block), 0, {}
    while offset < len(block):
        name = bytes(view[offset : offset + 100]).rstrip(b"\0").decode("ascii", "replace")
        try:
            size = int(bytes(view[offset + 124 : offset + 135]), 8)
        except ValueError:
            raise ShardError(f"{where}: tar header at byte {offset} is damaged") from None
        start = offset + _RECORD
        if start + size > len(block):
            raise ShardError(f"{where}: member {name} is truncated")
        members[name.partition(".")[2]] = view[start : start + size]
        offset = start + size + (-size % _RECORD)
    return members


def check_block(block: bytes, number: int, *, where: str) -> list[str]:
    """What is wrong with the bytes of one block that no checksum of an array covers: tar headers and padding.

    Args:
        block: its byte range.
        number: of the block in its shard.
        where: names shard and block in messages.

    Returns:
        A message for each damaged member, naming the array.
    """
    messages, offset = [], 0
    while offset < len(block):
        header = block[offset : offset + _RECORD]
        try:
            info = tarfile.TarInfo.frombuf(header, "ascii", "strict")
        except (tarfile.HeaderError, UnicodeDecodeError):
            messages.append(f"{where}: tar header at byte {offset} is damaged")
            break
        end = offset + _RECORD + info.size
        stop = end + (-info.size % _RECORD)
        array = info.name.partition(".")[2].removesuffix(".npy")
        # Headers are written by one rule from name and size; any other byte in them was not.
        if header != _header(info.name, info.size) or not info.name.startswith(f"{number:06d}."):
            messages.append(f"{where}: array {array}: tar header is damaged")
        if block[end:stop].strip(b"\0") or stop > len(block):
            messages.append(f"{where}: array {array}: padding is damaged")
        offset = stop
    return messages


def decode_block(
    block: bytes | memoryview, columns: Mapping[str, tuple[np.dtype[Any] | None, tuple[int, ...]]], *, where: str
) -> dict[str, npt.NDArray[Any]]:
    """Arrays of the asked columns, views into `block`.

    Args:
        block: the byte range of one block.
        columns: name → (dtype, trailing shape); dtype None lets NumPy read the header (fixed-width bytes).
        where: names shard and block in errors.

    Raises:
        ShardError: a member is missing, truncated or fails its checksum; the message names the array.
    """
    members = _iter_members(block, where)
    try:
        checksums = json.loads(bytes(members[CHECKSUMS]))
    except (KeyError, ValueError):
        raise ShardError(f"{where}: {CHECKSUMS} is missing or damaged") from None
    arrays = {}
    for name, (dtype, shape) in columns.items():
        member = members.get(f"{name}.npy")
        if member is None or checksums.get(f"{name}.npy") != crc32c(member):
            raise ShardError(
                f"{where}: array {name}: checksum does not match or member is missing; the file is damaged"
            )
        if dtype is None:
            arrays[name] = np.load(io.BytesIO(member), allow_pickle=False)
            continue
        start = 10 + int.from_bytes(member[_NPY_HEADER_LENGTH], "little")
        arrays[name] = np.frombuffer(member[start:], dtype).reshape(-1, *shape)
    return arrays
