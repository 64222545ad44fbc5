"""ANI-1x and Transition-1x files as other programs write them, and real groups of ANI-1x, structure by structure."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import jmp_data
from tests.flow import archives_hdf5 as hdf5
from tests.flow.building import build
from tests.flow.truth import Truth, assert_same
from tests.shared import SHARED, needs_shared

FORMULAS: list[tuple[dict[str, int], int]] = [
    ({"C": 1, "H": 4, "N": 4, "O": 4}, 2),
    ({"C": 3, "H": 8}, 7),
    ({"H": 2, "O": 1}, 5),
    ({"H": 2}, 3),
    ({"C": 10, "H": 9, "N": 1, "O": 2}, 6),
    *(({"C": carbons, "H": 2 * carbons + 2, "N": 1}, 4) for carbons in range(1, 12)),
]


def _assert_same_ani1x(out: Path, truths: list[Truth]) -> None:
    """Whatever the split: all conformations are there once, with the labels that h5py reads."""
    folders = sorted((out / "ani1x").iterdir())
    built = {
        (s.atomic_numbers.tobytes(), s.positions.astype(np.float32).tobytes()): (folder.name, s)
        for folder in folders
        for s in jmp_data.open_dataset(str(folder))
    }
    assert sum(len(jmp_data.open_dataset(str(folder))) for folder in folders) == len(built) == len(truths)
    placed = [replace(truth, split=built[truth.key][0]) for truth in truths]
    assert_same(out / "ani1x", placed, energy_rtol=1e-15)
    assert all((structure.tags == 2).all() and not structure.fixed.any() for _, structure in built.values())


@pytest.mark.parametrize(
    "options", [{}, {"compression": "gzip", "chunks": True}, {"compression": "lzf", "shuffle": True}]
)
def test_ani1x_files_of_all_26_data_sets(options: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "raw" / "ani1x-release.h5"
    path.parent.mkdir()
    with h5py.File(path, "w") as file:
        for seed, (formula, conformations) in enumerate(FORMULAS):
            hdf5.write_ani1x_group(file, formula, conformations, seed, **options)
        assert len(file["C3H8"]) == 26
    build("ani1x", tmp_path / "raw", tmp_path / "out")
    _assert_same_ani1x(tmp_path / "out", hdf5.ani1x_truths(path))


@needs_shared
def test_real_ani1x_groups(tmp_path: Path) -> None:
    path = tmp_path / "raw" / "ani1x-release.h5"
    path.parent.mkdir()
    shutil.copy(SHARED / "samples/ani1x/ani1x-release_3groups.h5", path)
    build("ani1x", tmp_path / "raw", tmp_path / "out")
    _assert_same_ani1x(tmp_path / "out", hdf5.ani1x_truths(path))


REACTIONS = [
    ("train", hdf5.make_reaction("C2H5NO2", "rxn1961", [6, 6, 1, 1, 1, 1, 1, 7, 8, 8], 2, 0, saddle=4)),
    ("train", hdf5.make_reaction("C2H5NO2", "rxn0004", [6, 6, 1, 1, 1, 1, 1, 7, 8, 8], 0, 1, saddle=None)),
    ("train", hdf5.make_reaction("CH4O", "rxn0001", [6, 1, 1, 1, 1, 8], 1, 2, saddle=12)),
    ("val", hdf5.make_reaction("C3H6", "rxn0010", [6, 6, 6, 1, 1, 1, 1, 1, 1], 1, 3, saddle=3)),
    ("test", hdf5.make_reaction("C2HF", "rxn0009", [6, 6, 1, 9], 1, 4, saddle=2)),
]


def _write_transition1x(raw: Path, links: str, **options: Any) -> None:
    raw.mkdir()
    with h5py.File(raw / "Transition1x.h5", "w") as file:
        for split, reaction in REACTIONS:
            place = f"{reaction.formula}/{reaction.name}"
            if links == "external":
                with h5py.File(raw / "elsewhere.hdf5", "a") as elsewhere:
                    hdf5.write_reaction(elsewhere.require_group("data"), reaction)
                file[f"data/{place}"] = h5py.ExternalLink("elsewhere.hdf5", f"/data/{place}")
                file[f"{split}/{place}"] = h5py.ExternalLink("elsewhere.hdf5", f"/data/{place}")
            elif links == "copies":
                hdf5.write_reaction(file.require_group("data"), reaction, **options)
                hdf5.write_reaction(file.require_group(split), reaction, **options)
            else:
                hdf5.write_reaction(file.require_group("data"), reaction, **options)
                file[f"{split}/{place}"] = file[f"data/{place}"] if links == "hard" else h5py.SoftLink(f"/data/{place}")


@pytest.mark.parametrize("links", ["copies", "hard", "soft", "external"])
def test_transition1x_paths_come_once_whatever_links_the_splits_are(links: str, tmp_path: Path) -> None:
    _write_transition1x(tmp_path / "raw", links, **({"compression": "gzip"} if links == "copies" else {}))
    done = build("transition1x", tmp_path / "raw", tmp_path / "out")
    truths = [truth for split, reaction in REACTIONS for truth in hdf5.path_truths(reaction, split)]
    assert_same(tmp_path / "out" / "transition1x", truths)
    # End points and saddles of the sub-groups repeat frames of the path: skipped, and counted.
    assert dict(done["train"].manifest.skipped) == {"repeats_path_frame": 8}
    assert done["train"].manifest.records_in == 26 + 10 + 18 + 8


def test_a_saddle_that_is_no_frame_of_the_path_is_kept(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    reaction = hdf5.make_reaction("CH4O", "rxn0001", [6, 1, 1, 1, 1, 8], 1, 2, saddle=5)
    with h5py.File(tmp_path / "raw" / "Transition1x.h5", "w") as file:
        hdf5.write_reaction(file.create_group("train"), reaction)
        file["train/CH4O/rxn0001/transition_state/positions"][...] += 0.5
    build("transition1x", tmp_path / "raw", tmp_path / "out")
    truths = hdf5.path_truths(reaction, "train")
    saddle = replace(truths[5], positions=truths[5].positions + 0.5, words=("CH4O", "rxn0001", "transition_state"))
    assert_same(tmp_path / "out" / "transition1x", [*truths, saddle])
