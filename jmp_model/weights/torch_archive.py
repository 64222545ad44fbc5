"""Reads the zip files that `torch.save` writes: tensors as views of the mapped file, all else inert.

Such a file has one pickle, `*/data.pkl`, and the values of storage `k` in `*/data/k`, uncompressed. Nothing but the
tensors that are used is read from disk. The older, pickled layout is left to `torch.load(weights_only=True)`.
"""

from __future__ import annotations

import pickle
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jmp_data.errors import MissingFileError, RawFileError, UnsafePickleError
from jmp_model.weights.inert_pickle import InertUnpickler, Name

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_MAX_DIMENSIONS = 8


@dataclass(frozen=True, slots=True)
class TorchFile:
    """What a file holds.

    Attributes:
        content: dictionaries, lists, tuples, numbers, text, tensors, and `Foreign` in place of other objects.
        foreign: name of each class or function that was left unread → how many objects.
    """

    content: Any
    foreign: dict[str, int]


def read_torch_file(path: Path) -> TorchFile:
    """Read a file of `torch.save` without executing anything that it says.

    Raises:
        MissingFileError: there is no such file.
        UnsafePickleError: it calls something that no checkpoint needs.
        RawFileError: it is damaged, truncated or of another kind.
    """
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file")
    if not zipfile.is_zipfile(path):
        return _read_legacy(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_archive(path, archive)
    except (zipfile.BadZipFile, KeyError, EOFError, struct.error, NotImplementedError) as error:
        raise RawFileError(f"{path}: damaged, or not a file of torch.save ({error}); get it again") from error


def _read_legacy(path: Path) -> TorchFile:
    with path.open("rb") as stream:
        begins_like_torch = stream.read(2) == b"\x80\x02"
    if begins_like_torch:
        try:
            return TorchFile(torch.load(path, map_location="cpu", weights_only=True), {})
        except pickle.UnpicklingError as error:
            raise UnsafePickleError(
                f"{path}: is in the layout of torch before 1.6 and holds more than weights; nothing was executed"
            ) from error
        except (RuntimeError, EOFError, ValueError, KeyError, IndexError) as error:
            raise RawFileError(f"{path}: damaged file of torch.save ({error}); get it again") from error
    raise RawFileError(f"{path}: neither a file of torch.save nor a whole one; get it again")


def _read_archive(path: Path, archive: zipfile.ZipFile) -> TorchFile:
    members = {info.filename.partition("/")[2]: info for info in archive.infolist()}
    if "data.pkl" not in members or "constants.pkl" in members:
        raise RawFileError(f"{path}: a zip file, but not one of torch.save")
    if "byteorder" in members and archive.read(members["byteorder"]) != b"little":
        raise RawFileError(f"{path}: written on a big-endian machine, which is not supported")
    storages = _Storages(path, members)
    unpickler = InertUnpickler(
        storages.member("data.pkl").tobytes(),
        str(path),
        load_storage=storages.load,
        makers={
            "torch._utils._rebuild_tensor": _view,
            "torch._utils._rebuild_tensor_v2": _view,
            "torch._utils._rebuild_tensor_v3": _typed_view,
            "torch._utils._rebuild_parameter": lambda tensor, *_: _tensor(tensor),
            "torch.Size": lambda sizes: tuple(sizes),
            "torch.device": lambda *parts: ":".join(map(str, parts)),
        },
    )
    return TorchFile(unpickler.load(), unpickler.foreign)


class _Storages:
    """Values of the file's storages, mapped; each is checked against its stored checksum once."""

    def __init__(self, path: Path, members: dict[str, zipfile.ZipInfo]) -> None:
        self._path = path
        self._members = members
        # Copy on write: torch wants writable memory, the file stays as it is.
        self._bytes = np.memmap(path, np.uint8, mode="c")
        self._loaded: dict[str, Tensor] = {}

    def member(self, name: str) -> Any:
        """Bytes of one member, as an array."""
        if name not in self._members:
            raise RawFileError(f"{self._path}: lacks its member {name}; get it again")
        info = self._members[name]
        signature, name_length, extra_length = _LOCAL_HEADER.unpack(
            self._bytes[info.header_offset : info.header_offset + _LOCAL_HEADER.size].tobytes()
        )
        start = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
        stored = self._bytes[start : start + info.file_size]
        if info.compress_type != zipfile.ZIP_STORED or signature != b"PK\x03\x04" or len(stored) != info.file_size:
            raise RawFileError(f"{self._path}: its member {name} is compressed or cut; get it again")
        if zlib.crc32(stored.data) != info.CRC:
            raise RawFileError(f"{self._path}: its member {name} is damaged (checksum); get it again")
        return stored

    def load(self, key: tuple[Any, ...]) -> Tensor:
        """Flat tensor of a persistent id ('storage', class, key, device, count)."""
        match key:
            case ("storage", Name(module=("torch" | "torch.storage"), name=kind), str(name), _, int(count)) if (
                kind in _STORAGES
            ):
                if name not in self._loaded:
                    self._loaded[name] = torch.from_numpy(self.member(f"data/{name}"))
                flat = self._loaded[name].view(_STORAGES[kind])
                if flat.numel() != count:
                    raise ValueError(f"storage {name} declares {count} values and holds {flat.numel()}")
                return flat
        raise ValueError("a persistent id is not that of a tensor's storage")


def _tensor(value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise ValueError(f"a tensor is made of a {type(value).__name__}")
    return value


def _view(storage: object, offset: object, shape: object, strides: object, *_: object) -> Tensor:
    """A window onto a storage; torch checks that it stays inside."""
    match offset, shape, strides:
        case int(), tuple(sizes), tuple(steps) if len(sizes) == len(steps) <= _MAX_DIMENSIONS:
            if all(isinstance(n, int) and n >= 0 for n in (offset, *sizes, *steps)):
                return _tensor(storage).as_strided(sizes, steps, offset)
    raise ValueError("a tensor is not made of a storage, an offset, a shape and strides")


def _typed_view(storage: object, offset: object, shape: object, strides: object, *others: object) -> Tensor:
    """A window onto untyped bytes; the type is the last argument."""
    kind = others[2] if len(others) > 2 else None
    dtype = getattr(torch, kind.name, None) if isinstance(kind, Name) and kind.module == "torch" else None
    if not isinstance(dtype, torch.dtype):
        raise ValueError("a tensor has no type")
    return _view(_tensor(storage).view(dtype), offset, shape, strides)
