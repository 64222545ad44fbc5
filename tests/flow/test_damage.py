"""Archives with faults that readers might stumble over: one line that names file and place, or a quarantined record."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from jmp_data.errors import RawFileError
from jmp_data.sources.transition1x import Transition1x
from tests.cli.run_cli import run
from tests.flow import archives_hdf5 as hdf5
from tests.flow import archives_oc20 as oc20
from tests.flow import archives_oc22 as oc22
from tests.flow.building import build


def _as_text(file: h5py.File) -> None:
    name = "C2H4/wb97x_dz.energy"
    values = file[name][()]
    del file[name]
    file[name] = values.astype("S12")


def _one_short(file: h5py.File) -> None:
    name = "C2H4/wb97x_dz.forces"
    values = file[name][()]
    del file[name]
    file[name] = values[:-1]


def _without_key(file: h5py.File) -> None:
    del file["C2H4/atomic_numbers"]


def _without_groups(file: h5py.File) -> None:
    for name in list(file):
        del file[name]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_as_text, "C2H4 holds other things than numbers: wb97x_dz.energy"),
        (_one_short, r"C2H4 has shapes that do not fit .*wb97x_dz.forces \(4, 6, 3\)"),
        (_without_key, "C2H4 lacks atomic_numbers"),
        (_without_groups, "no groups"),
    ],
)
def test_hdf5_files_of_another_layout(damage: Callable[[h5py.File], None], words: str, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    with h5py.File(tmp_path / "raw" / "ani1x-release.h5", "w") as file:
        for seed, carbons in enumerate((1, 2, 3)):
            hdf5.write_ani1x_group(file, {"C": carbons, "H": 4}, 5, seed)
        damage(file)
    with pytest.raises(RawFileError, match=f"ani1x-release.h5: .*{words}"):
        build("ani1x", tmp_path / "raw", tmp_path / "out")


def test_end_points_of_another_shape(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    with h5py.File(tmp_path / "raw" / "Transition1x.h5", "w") as file:
        reaction = hdf5.make_reaction("CH4O", "rxn0001", [6, 1, 1, 1, 1, 8], 1, 2, saddle=5)
        hdf5.write_reaction(file.create_group("train"), reaction)
        del file["train/CH4O/rxn0001/product/positions"]
        file["train/CH4O/rxn0001/product/positions"] = np.zeros((1, 5, 3))
    with pytest.raises(RawFileError, match=r"Transition1x.h5: group /train/CH4O/rxn0001/product has shapes"):
        build("transition1x", tmp_path / "raw", tmp_path / "out")


def test_a_split_without_one_good_record_is_an_error(tmp_path: Path) -> None:
    frames = oc20.make_frames(3, seed=1)
    for frame in frames:
        frame.forces[-1, 2] = np.nan
    folder = tmp_path / "raw" / "s2ef_val_id" / "s2ef_val_id"
    oc20.write_pair(folder, 0, frames)
    outcome = run("jmp-data", "build", "oc20", "--raw", tmp_path / "raw", "--out", tmp_path / "out", "--json")
    assert outcome.code == 1
    assert json.loads(outcome.out)[0]["quarantined"] == {"nonfinite_forces": 3}
    (line,) = outcome.error_lines
    assert "all 3 records are quarantined" in line
    (first,) = [line for line in outcome.err.splitlines() if line.startswith("quarantined:")]
    assert "3 x nonfinite_forces" in first
    assert f"0.extxyz.xz#0:{frames[0].system}/{frames[0].step}" in first


def test_files_without_records_are_an_error(tmp_path: Path) -> None:
    oc22.write_lmdb(oc22.split_folder(tmp_path / "raw", "train") / "data.0000.lmdb", [])
    outcome = run("jmp-data", "build", "oc22", "--raw", tmp_path / "raw", "--out", tmp_path / "out")
    assert outcome.code == 1
    (line,) = outcome.error_lines
    assert "no records" in line


@pytest.mark.parametrize("seed", range(4))
def test_flipped_bytes_in_hdf5_never_end_in_a_foreign_error(seed: int, tmp_path: Path) -> None:
    """What h5py makes of broken links, names and trees depends on the byte: it reads, or fails as a raw file."""
    rng = np.random.default_rng(seed)
    (tmp_path / "raw").mkdir()
    path = tmp_path / "raw" / "Transition1x.h5"
    with h5py.File(path, "w") as file:
        reaction = hdf5.make_reaction("CH4O", "rxn0001", [6, 1, 1, 1, 1, 8], 0, 2, saddle=5)
        hdf5.write_reaction(file.create_group("train"), reaction)
    whole = path.read_bytes()
    messages = []
    for _ in range(12):
        content = bytearray(whole)
        for place in rng.integers(0, 4000, 5):  # where the structure of the file lies
            content[place] = rng.integers(256)
        path.write_bytes(content)
        try:
            for split in Transition1x().splits(tmp_path / "raw"):
                for part in Transition1x().plan(tmp_path / "raw", split).parts:
                    list(Transition1x().read(tmp_path / "raw", part))
        except RawFileError as error:
            messages.append(str(error))
    assert messages
    assert all("Transition1x.h5" in message for message in messages)
