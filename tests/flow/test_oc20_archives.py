"""OC20 sets as other programs write them, structure by structure."""

from __future__ import annotations

import lzma
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jmp_data
from jmp_data.errors import MissingFileError
from tests.flow import archives_oc20 as oc20
from tests.flow.building import build
from tests.flow.truth import assert_same

Comment = Callable[[oc20.Frame, str], str]


def test_sets_that_ase_wrote_come_out_whole_and_in_order(tmp_path: Path) -> None:
    train, val = oc20.make_frames(47, seed=0), oc20.make_frames(9, seed=1)
    oc20.write_set(tmp_path / "raw", "s2ef_train_200K", train, per_file=4)
    oc20.write_set(tmp_path / "raw", "s2ef_val_id", val, per_file=4)
    done = build("oc20", tmp_path / "raw", tmp_path / "out")
    assert list(done) == ["train", "val_id"]
    truths = [oc20.truth_of(frame, "train") for frame in train] + [oc20.truth_of(frame, "val_id") for frame in val]
    assert_same(tmp_path / "out" / "oc20", truths)
    built = jmp_data.open_dataset(str(tmp_path / "out" / "oc20" / "train"))
    # Twelve files: 10.extxyz.xz follows 9.extxyz.xz, not 1.extxyz.xz.
    assert [structure.energy for structure in built] == [frame.energy for frame in train]
    assert [float(s.targets["reference_energy"]) for s in built] == [frame.reference for frame in train]


def _reordered(frame: oc20.Frame, properties: str) -> str:
    lattice = " ".join(f"{value:.10g}" for value in frame.atoms.cell.array.ravel())
    energies = f"free_energy={frame.free_energy!r} Properties={properties} energy={frame.energy!r}"
    return f'pbc="T T T" {energies} Lattice="{lattice}"'


def _replaced(old: str, new: str) -> Comment:
    return lambda frame, properties: oc20.published_comment(frame, properties).replace(old, new)


def _with_more(frame: oc20.Frame, properties: str) -> str:
    more = 'stress="0.1 0.0 0.0 0.0 0.1 0.0 0.0 0.0 0.1" config_type="slab energy=5" magmom=0.0 relaxed'
    return f"{oc20.published_comment(frame, properties)} {more}"


def _many_digits(line: str) -> str:
    return " ".join(f"{float(word):+.17e}" if "." in word else word for word in line.split())


VARIANTS: dict[str, dict[str, Any]] = {
    "published": {},
    "tags before mask": {"columns": ("species", "pos", "tags", "move_mask", "forces")},
    "forces before mask": {"columns": ("species", "pos", "forces", "move_mask", "tags")},
    "more columns between": {
        "columns": ("species", "pos", "energies", "move_mask", "free", "tags", "magmoms", "forces")
    },
    "comment in another order": {"comment": _reordered},
    "more in the comment": {"comment": _with_more},
    "pbc spelt out": {"comment": _replaced("T T T", "True True True")},
    "no pbc": {"comment": _replaced(' pbc="T T T"', "")},
    "one space": {"row": lambda line: " ".join(line.split())},
    "tabs and spaces behind": {"row": lambda line: "\t".join(line.split()) + "  "},
    "many digits and exponents": {"row": _many_digits},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_other_spellings_of_the_same_frames(variant: str, tmp_path: Path) -> None:
    frames = oc20.make_frames(6, seed=3)
    folder = tmp_path / "raw" / "s2ef_val_id" / "s2ef_val_id"
    oc20.write_pair(folder, 0, frames, oc20.text_by_hand(frames, **VARIANTS[variant]))
    build("oc20", tmp_path / "raw", tmp_path / "out")
    assert_same(tmp_path / "out" / "oc20", [oc20.truth_of(frame, "val_id") for frame in frames])


def test_partial_periodicity_and_frames_without_fixed_atoms(tmp_path: Path) -> None:
    frames = oc20.make_frames(4, seed=3)
    folder = tmp_path / "raw" / "s2ef_val_id"
    columns = ("species", "pos", "tags", "forces")
    text = oc20.text_by_hand(frames, columns=columns, comment=_replaced("T T T", "T T F"))
    oc20.write_pair(folder, 0, frames, text)
    build("oc20", tmp_path / "raw", tmp_path / "out")
    truths = [
        replace(oc20.truth_of(frame, "val_id"), pbc=(True, True, False), fixed=np.zeros(len(frame.atoms), bool))
        for frame in frames
    ]
    assert_same(tmp_path / "out" / "oc20", truths)


def test_line_ends_blank_lines_and_several_streams(tmp_path: Path) -> None:
    frames = [oc20.make_frames(3, seed=seed) for seed in range(3)]
    folder = tmp_path / "raw" / "s2ef_val_id" / "s2ef_val_id"
    oc20.write_pair(folder, 0, frames[0], oc20.text_by_ase(frames[0]).replace("\n", "\r\n"))
    oc20.write_pair(folder, 1, frames[1], oc20.text_by_ase(frames[1]) + "\n\n")
    oc20.write_pair(folder, 2, frames[2], oc20.text_by_ase(frames[2]).rstrip("\n"))
    ids = oc20.ids_text(frames[0]).replace("\n", "\r\n") + "\r\n"
    (folder / "0.txt.xz").write_bytes(lzma.compress(ids.encode()))
    text = oc20.text_by_ase(frames[1]).encode()
    streams = lzma.compress(text[:700]) + bytes(8) + lzma.compress(text[700:], check=lzma.CHECK_CRC32) + bytes(4)
    (folder / "1.extxyz.xz").write_bytes(streams)
    build("oc20", tmp_path / "raw", tmp_path / "out")
    truths = [oc20.truth_of(frame, "val_id") for some in frames for frame in some]
    assert_same(tmp_path / "out" / "oc20", truths)


def test_the_larger_of_two_training_sets_is_built_once(tmp_path: Path) -> None:
    frames = oc20.make_frames(12, seed=3)
    oc20.write_set(tmp_path / "raw", "s2ef_train_200K", frames[:5], per_file=5)
    oc20.write_set(tmp_path / "raw", "s2ef_train_2M", frames, per_file=5)
    assert list(build("oc20", tmp_path / "raw", tmp_path / "out")) == ["train"]
    assert_same(tmp_path / "out" / "oc20", [oc20.truth_of(frame, "train") for frame in frames])


def test_a_set_as_the_published_tar(tmp_path: Path) -> None:
    frames = oc20.make_frames(8, seed=3)
    oc20.write_set(tmp_path / "elsewhere", "s2ef_val_id", frames, per_file=5)
    raw = tmp_path / "raw"
    raw.mkdir()
    with tarfile.open(raw / "s2ef_val_id.tar", "w") as archive:
        archive.add(tmp_path / "elsewhere" / "s2ef_val_id", "s2ef_val_id")
    for _ in range(2):  # the second time from the folder that the first left
        assert list(build("oc20", raw, tmp_path / "out")) == ["val_id"]
        assert_same(tmp_path / "out" / "oc20", [oc20.truth_of(frame, "val_id") for frame in frames])


def test_what_an_interrupted_unpacking_left_is_no_set(tmp_path: Path) -> None:
    oc20.write_set(
        tmp_path / "raw" / ".extracted" / "s2ef_val_id.tar.staging", "s2ef_val_id", oc20.make_frames(2), per_file=2
    )
    with pytest.raises(MissingFileError, match="s2ef_val"):
        build("oc20", tmp_path / "raw", tmp_path / "out")
