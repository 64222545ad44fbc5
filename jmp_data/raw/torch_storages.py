"""Reads the storages that torch writes into pickles, as flat NumPy arrays and without torch.

A tensor inside a pickle is a call of ``torch._utils._rebuild_tensor_v2`` on a storage; the storage is a call of
``torch.storage._load_from_bytes`` on bytes that are a whole ``torch.save`` stream of their own. That stream comes in
two layouts:

* legacy: five things in a row — pickled magic number, pickled protocol version, pickled description of the machine,
  the pickled object whose storages are persistent ids, the pickled list of storage keys — and then, per key, an int64
  count and the raw values;
* zip: an archive with the object's pickle in ``*/data.pkl`` and the raw values of storage ``k`` in ``*/data/k``,
  never compressed.

Nearly every stream is legacy with exactly one storage and differs from the next in type, key and count only, so one
regular expression recognises it whole; anything else takes the general path through
:class:`~jmp_data.raw.pickle_machine.PickleMachine`.
"""

from __future__ import annotations

import io
import re
import struct
import zipfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jmp_data.errors import RawFileError
from jmp_data.raw.pickle_machine import Global, PersistentId, PickleMachine

FlatArray = NDArray[Any]

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_PROTOCOL_VERSION = 1001
_MAX_KEYS = 4096

DTYPES: dict[str, np.dtype[Any]] = {
    "Float": np.dtype("<f4"),
    "Double": np.dtype("<f8"),
    "Half": np.dtype("<f2"),
    "Long": np.dtype("<i8"),
    "Int": np.dtype("<i4"),
    "Short": np.dtype("<i2"),
    "Char": np.dtype("<i1"),
    "Byte": np.dtype("<u1"),
    "Bool": np.dtype("?"),
}
_DTYPES_BY_PREFIX = {kind.encode(): dtype for kind, dtype in DTYPES.items()}
STORAGE_CLASSES: dict[tuple[str, str], Global] = {
    **{("torch", f"{kind}Storage"): Global(f"torch.{kind}Storage", tag=dtype) for kind, dtype in DTYPES.items()},
    ("torch.storage", "UntypedStorage"): Global("torch.storage.UntypedStorage", tag=DTYPES["Byte"]),
    ("torch", "UntypedStorage"): Global("torch.UntypedStorage", tag=DTYPES["Byte"]),
}

_LONE_STORAGE = re.compile(
    rb"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19\."  # magic number
    rb"\x80\x02M\xe9\x03\."  # protocol version 1001
    rb"\x80\x02}q\x00\(X\x10\x00\x00\x00protocol_versionq\x01M\xe9\x03X\r\x00\x00\x00little_endianq\x02\x88"
    rb"X\n\x00\x00\x00type_sizesq\x03}q\x04\(X\x05\x00\x00\x00shortq\x05K\x02X\x03\x00\x00\x00intq\x06K\x04"
    rb"X\x04\x00\x00\x00longq\x07K[\x04\x08]uu\."
    rb"\x80\x02\(X\x07\x00\x00\x00storageq\x00ctorch\n([A-Z][a-z]{2,5})Storage\nq\x01"
    rb"X([\x00-\x20])\x00\x00\x00([0-9]{1,32})q\x02X\x03\x00\x00\x00cpuq\x03"
    rb"(K.|M..|J....)N?tq\x04Q\."
    rb"\x80\x02]q\x00X\2\x00\x00\x00\3q\x01a\."
    rb"(.{8})",  # number of values
    re.DOTALL,
)


def read_storage(stream: bytes, where: str) -> FlatArray:
    """Reads one ``torch.save`` stream that holds a single storage.

    Args:
        stream: the argument of ``torch.storage._load_from_bytes``.
        where: file and record, for error messages.

    Returns:
        (numel,) values in the storage's own type; a read-only view of ``stream``.

    Raises:
        UnsafePickleError: the stream's pickle asks for anything but a storage.
        RawFileError: the stream is truncated or inconsistent.
    """
    match = _LONE_STORAGE.match(stream)
    if match is not None:
        kind, key_length, key, declared, stored = match.groups()
        dtype = _DTYPES_BY_PREFIX.get(kind)
        count = int.from_bytes(stored, "little")
        if dtype is not None and key_length[0] == len(key) and count == int.from_bytes(declared[1:], "little"):
            start = match.end()
            if start + count * dtype.itemsize != len(stream):
                raise _wrong_size(where, count, dtype, len(stream) - start)
            return np.frombuffer(stream, dtype, count, start)
    if stream[:4] == b"PK\x03\x04":
        return _read_zip(stream, where)
    return _read_legacy(stream, where)


def _wrong_size(where: str, count: int, dtype: np.dtype[Any], available: int) -> RawFileError:
    return RawFileError(f"{where}: a torch storage declares {count} values of {dtype} but holds {available} bytes")


def _read_legacy(stream: bytes, where: str) -> FlatArray:
    """The general path: five pickles, then the storages in the order of the key list."""
    parts: list[Any] = []
    position = 0
    for persistent in (False, False, False, True, False):
        machine = PickleMachine(stream, where, table=STORAGE_CLASSES, start=position, persistent_ids=persistent)
        parts.append(machine.run())
        position = machine.position
    magic, version, system, target, keys = parts
    if magic != _MAGIC_NUMBER or version != _PROTOCOL_VERSION or not isinstance(system, dict):
        raise RawFileError(f"{where}: a torch storage does not begin like a torch.save stream of version 1001")
    if system.get("little_endian") is not True:
        raise RawFileError(f"{where}: a torch storage was written on a big-endian machine, which is not supported")
    key, dtype, count, view = _storage_id(target, where)
    if keys != [key]:
        raise RawFileError(f"{where}: a torch stream lists other storages than the one that it needs")
    header = stream[position : position + 8]
    if len(header) != 8:
        raise RawFileError(f"{where}: a torch storage ends before its values")
    (stored_count,) = struct.unpack("<q", header)
    start = position + 8
    if stored_count != count or start + count * dtype.itemsize != len(stream):
        raise _wrong_size(where, count, dtype, len(stream) - start)
    return np.frombuffer(stream, dtype, count, start)[view]


def _read_zip(stream: bytes, where: str) -> FlatArray:
    try:
        with zipfile.ZipFile(io.BytesIO(stream)) as archive:
            members = {info.filename.partition("/")[2]: info for info in archive.infolist()[:_MAX_KEYS]}
            pickled = _read_member(archive, members, "data.pkl", len(stream))
            machine = PickleMachine(pickled, where, table=STORAGE_CLASSES, persistent_ids=True)
            key, dtype, count, view = _storage_id(machine.run(), where)
            if "byteorder" in members and _read_member(archive, members, "byteorder", 16) != b"little":
                raise RawFileError(
                    f"{where}: a torch storage was written on a big-endian machine, which is not supported"
                )
            values = _read_member(archive, members, f"data/{key}", len(stream))
    except RawFileError:
        raise
    except (zipfile.BadZipFile, KeyError, EOFError, struct.error, ValueError, OSError, RuntimeError) as error:
        raise RawFileError(f"{where}: a torch storage is a damaged zip stream: {error}") from error
    if count * dtype.itemsize != len(values):
        raise _wrong_size(where, count, dtype, len(values))
    return np.frombuffer(values, dtype, count)[view]


def _read_member(archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], name: str, limit: int) -> bytes:
    info = members[name]
    if info.compress_type != zipfile.ZIP_STORED or info.file_size > limit:
        raise zipfile.BadZipFile(f"member {name} is compressed or larger than its archive")
    return archive.read(info)


def _storage_id(target: object, where: str) -> tuple[str, np.dtype[Any], int, slice]:
    """Takes apart ('storage', class, key, location, count[, view]) and checks each part."""
    key = target.key if isinstance(target, PersistentId) else ()
    match key:
        case ("storage", Global(tag=np.dtype() as dtype), str(name), str(), int(count)) if count >= 0:
            return name, dtype, count, slice(None)
        case ("storage", Global(tag=np.dtype() as dtype), str(name), str(), int(count), view) if count >= 0:
            return name, dtype, count, _view(view, count, where)
    raise RawFileError(f"{where}: a torch stream holds something other than one storage")


def _view(view: object, count: int, where: str) -> slice:
    """A storage may be a window (key, offset, size) onto the stored one."""
    match view:
        case None:
            return slice(None)
        case (str(), int(offset), int(size)) if 0 <= offset <= offset + size <= count:
            return slice(offset, offset + size)
    raise RawFileError(f"{where}: a torch storage is a view beyond its own end")
