"""Arrays handed from process to process without a copy: written once into anonymous memory, mapped by whoever gets it.

The memory has no name: it lives as long as someone has it open or mapped, so nothing is left behind when a process is
killed, and the size of `/dev/shm` does not matter. Descriptors travel over Unix sockets.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import pickle
import socket
import struct
import tempfile
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Header = list[tuple[str, str, tuple[int, ...], int]]
"""(name, dtype, shape, byte offset) of each array."""

_ALIGNMENT = 64
_MOST_FREE = 4
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
    header, size = _lay_out(arrays)
    descriptor = anonymous_memory()
    os.ftruncate(descriptor, size)
    _fill(_Mapping(descriptor).arrays(header), arrays)
    return header, descriptor


def read_arrays(header: Header, descriptor: int) -> dict[str, Array]:
    """Map arrays; the descriptor is no longer needed afterwards. The memory goes when the last array does."""
    return _Mapping(descriptor).arrays(header)


class _Mapping:
    """Memory of a descriptor in this process, unmapped when neither this object nor an array of it is left."""

    def __init__(self, descriptor: int) -> None:
        self.size = os.fstat(descriptor).st_size
        # mmap.mmap would hold a duplicate of the descriptor, and a process may have only so many of them.
        address = _libc.mmap(None, self.size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, descriptor, 0)
        if address is None or address == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), "shared memory cannot be mapped")
        self._address: int = address
        weakref.finalize(self, _libc.munmap, address, self.size).atexit = False

    def find(self, arrays: Mapping[str, Array]) -> Header | None:
        """Places of arrays that lie in this memory; None if any of them does not."""
        header: Header = []
        for name, array in arrays.items():
            offset = array.ctypes.data - self._address
            if not (array.flags.c_contiguous and 0 <= offset <= self.size - array.nbytes):
                return None
            header.append((name, array.dtype.str, array.shape, offset))
        return header

    def arrays(self, header: Header, on_release: Callable[[], None] | None = None) -> dict[str, Array]:
        """Views of the memory; `on_release` is called when the last of them is gone."""
        buffer = (ctypes.c_ubyte * self.size).from_address(self._address)
        weakref.finalize(buffer, _release, self, on_release).atexit = False
        flat = np.frombuffer(memoryview(buffer), np.uint8)
        found = {}
        for name, dtype, shape, offset in header:
            nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
            found[name] = flat[offset : offset + nbytes].view(dtype).reshape(shape)
        return found


def _release(mapping: _Mapping, on_release: Callable[[], None] | None) -> None:
    """Runs with a reference to the mapping, which therefore outlives its arrays."""
    del mapping
    if on_release is not None:
        on_release()


def _lay_out(arrays: Mapping[str, Array]) -> tuple[Header, int]:
    """Places of arrays in one memory, and its size."""
    header: Header = []
    size = _ALIGNMENT
    for name, array in arrays.items():
        header.append((name, array.dtype.str, array.shape, size))
        size += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
    return header, size


def _fill(mapped: Mapping[str, Array], arrays: Mapping[str, Array]) -> None:
    for name, array in arrays.items():
        mapped[name][...] = array


@dataclass(frozen=True)
class Parcel:
    """What the reader of a `SharedWriter` is told.

    Attributes:
        slot: number of the memory; its descriptor goes along the first time.
        header: places of the arrays.
        dropped: slots that will not be used again.
    """

    slot: int
    header: Header
    dropped: list[int]


class _Slot(NamedTuple):
    """Memory that one parcel fills; `descriptor` as long as the reader has never seen it."""

    number: int
    mapping: _Mapping
    descriptor: int | None


class SharedWriter:
    """Writes arrays for one reader, into memory that it has let go of where there is some.

    Pages of new memory must be found and cleared by the system, which takes longer than it takes to fill them.
    """

    def __init__(self) -> None:
        self._count = 0
        self._given: dict[int, _Mapping] = {}
        self._free: dict[int, _Mapping] = {}
        self._claimed: _Slot | None = None

    def claim(self, words: int) -> npt.NDArray[np.int64]:
        """Memory for arrays of the next `write`, which then need not be copied: (words,) int64 of any content."""
        self.abandon()
        self._claimed = self._take(_ALIGNMENT + 8 * words)
        (claimed,) = self._claimed.mapping.arrays([("", "<i8", (words,), _ALIGNMENT)]).values()
        return claimed

    def abandon(self) -> None:
        """There will be no `write` for what was claimed."""
        slot, self._claimed = self._claimed, None
        if slot is not None and slot.descriptor is not None:
            os.close(slot.descriptor)
        elif slot is not None:
            self._free[slot.number] = slot.mapping

    def write(self, arrays: Mapping[str, Array]) -> tuple[Parcel, int | None]:
        """Copy arrays; returns what to tell the reader, and the descriptor of new memory, which the caller closes."""
        header = None if self._claimed is None else self._claimed.mapping.find(arrays)
        if self._claimed is not None and header is not None:
            slot, self._claimed = self._claimed, None
        else:
            header, size = _lay_out(arrays)
            slot = self._take(size)
            _fill(slot.mapping.arrays(header), arrays)
            self.abandon()  # not before: some of the arrays may lie there
        self._given[slot.number] = slot.mapping
        return Parcel(slot.number, header, self._drop()), slot.descriptor

    def _take(self, size: int) -> _Slot:
        """Free memory, or new one."""
        number = next((number for number, mapping in self._free.items() if mapping.size >= size), None)
        if number is not None:
            return _Slot(number, self._free.pop(number), None)
        self._count += 1
        descriptor = anonymous_memory()
        os.ftruncate(descriptor, size + size // 4)  # pages that are not written take no memory
        return _Slot(self._count, _Mapping(descriptor), descriptor)

    def released(self, slots: Iterable[int]) -> None:
        """The reader is done with these."""
        for slot in slots:
            self._free[slot] = self._given.pop(slot)

    def _drop(self) -> list[int]:
        """Forget the oldest of too many free slots."""
        dropped = list(self._free)[: max(0, len(self._free) - _MOST_FREE)]
        for slot in dropped:
            del self._free[slot]
        return dropped


class SharedReader:
    """The other side of a `SharedWriter`."""

    def __init__(self) -> None:
        self._mapped: dict[int, _Mapping] = {}
        self._released: deque[int] = deque()

    def read(self, parcel: Parcel, descriptor: int | None) -> dict[str, Array]:
        """The arrays; when the last of them is gone, the writer may use their memory again."""
        if descriptor is not None:
            self._mapped[parcel.slot] = _Mapping(descriptor)
        for slot in parcel.dropped:
            self._mapped.pop(slot, None)
        return self._mapped[parcel.slot].arrays(parcel.header, partial(self._released.append, parcel.slot))

    def released(self) -> list[int]:
        """Slots whose arrays went since the last call, to be told to the writer."""
        slots = []
        with contextlib.suppress(IndexError):  # arrays may go at any time, in any thread
            while True:
                slots.append(self._released.popleft())
        return slots


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
