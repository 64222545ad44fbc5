"""Streams of ``torch.save`` read as torch reads them, in both layouts; damaged or hostile ones are refused."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch

from jmp_data.errors import RawFileError, UnsafePickleError
from jmp_data.raw import torch_storages
from jmp_data.raw.torch_storages import read_storage

WHERE = "a.lmdb: record 3"
TYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]


def save(storage: object, *, zipped: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(storage, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


@pytest.mark.parametrize("zipped", [False, True], ids=["legacy", "zip"])
@pytest.mark.parametrize("count", [0, 1, 300, 70_000])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_every_type_and_size_in_both_layouts(dtype, count, zipped):
    tensor = (torch.arange(count) % 100).to(dtype)
    got = read_storage(save(tensor._typed_storage(), zipped=zipped), WHERE)
    assert got.dtype == tensor.numpy().dtype
    np.testing.assert_array_equal(got, tensor.numpy())


def test_untyped_storages_are_bytes():
    stream = save(torch.arange(3.0).untyped_storage(), zipped=False)
    np.testing.assert_array_equal(read_storage(stream, WHERE).view("<f4"), [0, 1, 2])


def test_the_fast_path_and_the_general_path_agree(monkeypatch):
    streams = [save(torch.arange(n).to(d)._typed_storage(), zipped=False) for n in (0, 1, 300, 70_000) for d in TYPES]
    fast = [read_storage(stream, WHERE) for stream in streams]
    assert all(torch_storages._LONE_STORAGE.match(stream) for stream in streams)
    for stream, values in zip(streams, fast, strict=True):
        general = torch_storages._read_legacy(stream, WHERE)
        assert general.dtype == values.dtype
        np.testing.assert_array_equal(general, values)


def legacy(
    target: bytes,
    *,
    magic: object = 0x1950A86A20F9469CFC6C,
    version: object = 1001,
    little_endian: bool = True,
    keys: object = ("k",),
    count: int = 4,
    raw: bytes = struct.pack("<4f", 0, 1, 2, 3),
) -> bytes:
    """A legacy stream part by part; ``target`` is the third pickle, with its persistent id."""
    system = {"protocol_version": 1001, "little_endian": little_endian, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    head = b"".join(pickle.dumps(part, 2) for part in (magic, version, system))
    return head + target + pickle.dumps(list(keys), 2) + struct.pack("<q", count) + raw


def target(
    count: int = 4, view: bytes = b"N", kind: bytes = b"storage", cls: bytes = b"ctorch\nFloatStorage\n"
) -> bytes:
    def text(value: bytes) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value

    number = b"J" + struct.pack("<i", count)
    return b"\x80\x02(" + text(kind) + cls + text(b"k") + text(b"cuda:0") + number + view + b"tQ."


def test_storages_written_on_a_gpu_without_view_metadata():
    np.testing.assert_array_equal(read_storage(legacy(target(view=b"")), WHERE), [0, 1, 2, 3])


def test_a_view_is_a_window_onto_the_stored_values():
    view = b"(X\x01\x00\x00\x00vK\x01K\x02t"
    np.testing.assert_array_equal(read_storage(legacy(target(view=view)), WHERE), [1, 2])


@pytest.mark.parametrize(
    "stream",
    [
        legacy(target(), magic=17),
        legacy(target(), version=1002),
        legacy(target(), little_endian=False),
        legacy(target(), keys=("other",)),
        legacy(target(), keys=("k", "k2")),
        legacy(target(), count=5),
        legacy(target(count=5), count=5),
        legacy(target(count=-1), count=-1),
        legacy(target(), raw=b"\0" * 15),
        legacy(target(), raw=b"\0" * 17),
        legacy(target(view=b"(X\x01\x00\x00\x00vK\x03K\x02t")),
        legacy(target(view=b"K\x05")),
        legacy(target(kind=b"module")),
        legacy(pickle.dumps(5, 2)),
        legacy(target())[:-20],
        b"",
        b"PK\x03\x04 and no archive",
    ],
)
def test_inconsistent_streams_are_refused(stream):
    with pytest.raises(RawFileError, match=r"a\.lmdb: record 3"):
        read_storage(stream, WHERE)


@pytest.mark.parametrize(
    "cls", [b"cos\nsystem\n", b"ctorch\nload\n", b"ctorch\nBFloat16Storage\n", b"ctorch\nTensor\n"]
)
def test_other_classes_are_refused(cls):
    with pytest.raises(UnsafePickleError):
        read_storage(legacy(target(cls=cls)), WHERE)


def test_every_truncation_is_noticed():
    for zipped in (False, True):
        stream = save(torch.arange(3.0)._typed_storage(), zipped=zipped)
        for stop in range(len(stream)):
            with pytest.raises(RawFileError):
                read_storage(stream[:stop], WHERE)


def test_compressed_or_foreign_zip_members_are_refused():
    stream = save(torch.zeros(4)._typed_storage(), zipped=True)
    with zipfile.ZipFile(io.BytesIO(stream)) as archive:
        members = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}

    def pack(changed: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", compression) as archive:
            for name, content in {**members, **changed}.items():
                archive.writestr(f"archive/{name}", content)
        return buffer.getvalue()

    np.testing.assert_array_equal(read_storage(pack({}), WHERE), np.zeros(4))
    bomb = pack({"data/0": b"\0" * 10_000_000}, zipfile.ZIP_DEFLATED)
    for bad in (bomb, pack({"byteorder": b"big"}), pack({"data/0": b"\0" * 15})):
        with pytest.raises(RawFileError):
            read_storage(bad, WHERE)
    with pytest.raises(UnsafePickleError):
        read_storage(pack({"data.pkl": b"\x80\x02cos\nsystem\n."}), WHERE)
