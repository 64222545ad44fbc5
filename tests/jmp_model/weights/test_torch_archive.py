"""Tensors of every kind against `torch.load`, and files that are damaged or something else."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jmp_data.errors import MissingFileError, RawFileError, UnsafePickleError
from jmp_model.weights.torch_archive import read_torch_file
from tests.jmp_model.weights.released_files import FitLoop

BASE = torch.arange(24, dtype=torch.float32)
TENSORS: dict[str, Any] = {
    "view": BASE.view(4, 6)[1:, ::2],
    "transposed": BASE.view(4, 6).T,
    "expanded": torch.ones(1).expand(3, 2),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 3),
    "parameter": torch.nn.Parameter(torch.ones(2)),
    "shared": [BASE, BASE[:3]],
    **{
        str(dtype): torch.ones(3, dtype=dtype)
        for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool)
    },
}


def save(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def flat(content: dict[str, Any]) -> list[tuple[str, torch.Tensor]]:
    return [
        (f"{name}{i}", tensor)
        for name, value in content.items()
        for i, tensor in enumerate(value if isinstance(value, list) else [value])
    ]


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_tensors_are_those_that_torch_reads(tmp_path: Path, protocol: int) -> None:
    file = save(tmp_path / "a.pt", TENSORS, pickle_protocol=protocol)
    ours, theirs = read_torch_file(file).content, torch.load(file, weights_only=False)
    assert ours.keys() == theirs.keys()
    for (name, mine), (_, other) in zip(flat(ours), flat(theirs), strict=True):
        assert mine.dtype == other.dtype, name
        assert torch.equal(mine, other), name


def test_the_old_layout_is_read_where_it_holds_weights_alone(tmp_path: Path) -> None:
    file = save(tmp_path / "a.pt", {"w": BASE}, _use_new_zipfile_serialization=False)
    assert torch.equal(read_torch_file(file).content["w"], BASE)
    hostile = save(tmp_path / "b.pt", {"w": FitLoop(1)}, _use_new_zipfile_serialization=False)
    with pytest.raises(UnsafePickleError, match="nothing was executed"):
        read_torch_file(hostile)


def test_objects_are_counted(tmp_path: Path) -> None:
    file = read_torch_file(save(tmp_path / "a.pt", [FitLoop(1), FitLoop(2), BASE]))
    assert file.foreign == {"tests.jmp_model.weights.released_files.FitLoop": 2}
    assert torch.equal(file.content[2], BASE)


def test_changing_what_was_read_leaves_the_file_alone(tmp_path: Path) -> None:
    file = save(tmp_path / "a.pt", {"w": torch.ones(4)})
    before = file.read_bytes()
    read_torch_file(file).content["w"].fill_(7.0)
    assert file.read_bytes() == before


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"nothing\.pt"):
        read_torch_file(tmp_path / "nothing.pt")


@pytest.mark.parametrize("share", [0.02, 0.5, 0.9, 0.999])
def test_truncated_files_are_noticed(tmp_path: Path, share: float) -> None:
    whole = save(tmp_path / "a.pt", TENSORS).read_bytes()
    (tmp_path / "b.pt").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(RawFileError, match=r"b\.pt"):
        read_torch_file(tmp_path / "b.pt")


def test_flipped_bytes_in_weights_are_noticed(tmp_path: Path) -> None:
    file = save(tmp_path / "a.pt", {"w": torch.full((64,), 3.0)})
    content = bytearray(file.read_bytes())
    content[content.index(np.float32(3.0).tobytes() * 8) + 5] ^= 1
    file.write_bytes(content)
    with pytest.raises(RawFileError, match="checksum"):
        read_torch_file(file)


@pytest.mark.parametrize("name", ["text", "empty", "zip", "script"])
def test_other_files_are_told_apart(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    if name == "text":
        file.write_text("<html>not found</html>")
    elif name == "empty":
        file.write_bytes(b"")
    elif name == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("a/readme.txt", "hello")
    else:
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), file)
    with pytest.raises(RawFileError, match=str(file)):
        read_torch_file(file)


def rewritten(path: Path, change: Any) -> Path:
    """The same archive with its pickle changed."""
    source, target = zipfile.ZipFile(path), io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for info in source.infolist():
            content = source.read(info)
            archive.writestr(info.filename, change(content) if info.filename.endswith("data.pkl") else content)
    path.write_bytes(target.getvalue())
    return path


@pytest.mark.parametrize(
    ("before", "after"),
    [(b"K\x04", b"K\x7f"), (b"FloatStorage", b"IntStorage\n"), (b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x009")],
    ids=["larger shape", "another class", "another storage"],
)
def test_tensors_beyond_their_storage_are_refused(tmp_path: Path, before: bytes, after: bytes) -> None:
    file = save(tmp_path / "a.pt", {"w": torch.ones(4)})
    with pytest.raises(RawFileError, match=r"a\.pt"):
        read_torch_file(rewritten(file, lambda pickled: pickled.replace(before, after)))
