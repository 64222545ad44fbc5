"""Arrays handed from process to process without a copy: written once into anonymous memory, mapped by whoever gets it.

The memory has no name: it lives as long as someone has it open or mapped, so nothing is left behind when a process is
killed, and the size of `/dev/shm` does not matter. Descriptors travel over Unix sockets.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import pickle
import socket
import struct
import tempfile
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Header = list[tuple[str, str, tuple[int, ...], int]]
"""(name, dtype, shape, byte offset) of each array."""

_ALIGNMENT = 64
_LENGTH = struct.Struct("<q")
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def anonymous_memory() -> int:
    """A new descriptor of memory without a name; the caller closes it."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("jmp-data")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def write_arrays(arrays: Mapping[str, Array]) -> tuple[Header, int]:
    """Copy arrays into new anonymous memory.

    Returns:
        header: what `read_arrays` needs.
        descriptor: the memory; the caller closes it.
    """
    header: Header = []
    size = _ALIGNMENT
    for name, array in arrays.items():
        header.append((name, array.dtype.str, array.shape, size))
        size += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
    descriptor = anonymous_memory()
    os.ftruncate(descriptor, size)
    mapped = read_arrays(header, descriptor)
    for name, array in arrays.items():
        mapped[name][...] = array
    return header, descriptor


def read_arrays(header: Header, descriptor: int) -> dict[str, Array]:
    """Map arrays; the descriptor is no longer needed afterwards. The memory goes when the last array does."""
    size = os.fstat(descriptor).st_size
    # mmap.mmap would hold a duplicate of the descriptor, and a process may have only so many of them.
    address = _libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, descriptor, 0)
    if address is None or address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "shared memory cannot be mapped")
    buffer = (ctypes.c_ubyte * size).from_address(address)
    weakref.finalize(buffer, _libc.munmap, address, size).atexit = False
    flat = np.frombuffer(memoryview(buffer), np.uint8)
    arrays = {}
    for name, dtype, shape, offset in header:
        nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        arrays[name] = flat[offset : offset + nbytes].view(dtype).reshape(shape)
    return arrays


def send(connection: socket.socket, message: Any, descriptor: int | None = None) -> None:
    """Send a pickled message, and a descriptor along with it."""
    body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    descriptors = [] if descriptor is None else [descriptor]
    socket.send_fds(connection, [_LENGTH.pack(len(body))], descriptors)
    connection.sendall(body)


def receive(connection: socket.socket) -> tuple[Any, int | None]:
    """The next message and its descriptor, if it has one; the caller closes that.

    Raises:
        EOFError: the other side is gone.
    """
    head, descriptors, _, _ = socket.recv_fds(connection, _LENGTH.size, 1)
    head += _exactly(connection, _LENGTH.size - len(head)) if head else b""
    if not head:
        raise EOFError("the other process is gone")
    body = _exactly(connection, _LENGTH.unpack(head)[0])
    return pickle.loads(body), descriptors[0] if descriptors else None  # noqa: S301  from our own process


def _exactly(connection: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        part = connection.recv(min(size, 1 << 20))
        if not part:
            raise EOFError("the other process is gone")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
