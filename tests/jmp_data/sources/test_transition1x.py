"""Transition-1x: golden values, repeats counted whatever way the file is linked, and damage."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import h5py
import numpy as np
import pytest

from jmp_data import demo
from jmp_data.errors import ManifestError, MissingFileError, RawFileError
from jmp_data.schema.units import JMP_REFERENCE
from jmp_data.sources import get_source, hdf5_frames
from tests.jmp_data.sources.reading import read_split
from tests.raw_archives import write_transition1x

ENERGY, FORCES = "wB97x_6-31G(d).energy", "wB97x_6-31G(d).forces"


def write_frames(node: h5py.Group, energies: list[float], shift: float = 0.0) -> None:
    """Frames of H2 whose bond grows by 0.25 Å from frame to frame, forces equal to the frame number."""
    count = len(energies)
    positions = np.zeros((count, 2, 3))
    positions[:, 1, 0] = 0.75 + 0.25 * np.arange(count) + shift
    node["atomic_numbers"] = np.array([1, 1])
    node["positions"] = positions
    node[ENERGY] = np.array(energies)
    node[FORCES] = np.arange(count)[:, None, None] * np.array([[[1.0, 0, 0], [-1.0, 0, 0]]])


def test_golden_values(tmp_path: Path) -> None:
    """Already eV and eV/Å: stored as they stand, under every constant set."""
    with h5py.File(tmp_path / "Transition1x.h5", "w") as file:
        write_frames(file.create_group("val/H2/rxn0042"), [-31.725, -31.5, -30.25])
    block = read_split("transition1x", tmp_path, "val", constants=JMP_REFERENCE).block
    structure = block.structure(2)
    assert block.energy.tolist() == [-31.725, -31.5, -30.25]
    assert structure.forces.tolist() == [[2, 0, 0], [-2, 0, 0]]
    assert structure.positions.tolist() == [[0, 0, 0], [1.25, 0, 0]]
    assert structure.atomic_numbers.tolist() == [1, 1]
    assert structure.tags.tolist() == [2, 2]
    assert structure.cell is None
    assert structure.source_id == "Transition1x.h5#val/H2/rxn0042/2"


@pytest.mark.parametrize("partition", ["hard", "soft", "copy"])
def test_repeated_endpoints_are_left_out_and_counted(
    tmp_path: Path, partition: Literal["hard", "soft", "copy"]
) -> None:
    rng = np.random.default_rng(0)
    reactions = [
        demo.Reaction(
            name=f"rxn{number:04d}",
            split=split,
            atomic_numbers=np.array([6, 1, 1, 8]),
            positions=rng.normal(size=(18, 4, 3)),
            energies=rng.normal(size=18),
            forces=rng.normal(size=(18, 4, 3)),
            transition_state=5,
        )
        for number, split in enumerate(["train", "train", "val", "test"])
    ]
    demo.write_transition1x(tmp_path / "Transition1x.h5", reactions, partition=partition)
    assert get_source("transition1x").splits(tmp_path) == ("train", "val", "test")
    outcome = read_split("transition1x", tmp_path, "train")
    assert len(outcome.block) == 36
    assert outcome.skipped == {"repeats_path_frame": 6}
    np.testing.assert_array_equal(outcome.block.energy, np.concatenate([r.energies for r in reactions[:2]]))
    np.testing.assert_array_equal(
        outcome.block.forces, np.concatenate([r.forces.reshape(-1, 3) for r in reactions[:2]]).astype(np.float32)
    )
    assert sum(len(read_split("transition1x", tmp_path, split).block) for split in ("val", "test")) == 36


def test_an_endpoint_that_is_no_exact_repeat_is_kept(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "Transition1x.h5", "w") as file:
        node = file.create_group("train/H2/rxn0001")
        write_frames(node, [-31.0, -30.5])
        write_frames(node.create_group("reactant"), [-31.0])  # repeats frame 0
        write_frames(node.create_group("product"), [-31.0], shift=1e-9)  # moved: another double
        write_frames(node.create_group("transition_state"), [-31.0], shift=1e-9)  # repeats the product kept before
    outcome = read_split("transition1x", tmp_path, "train")
    assert [name.rsplit("rxn0001/", 1)[1] for name in outcome.ids] == ["0", "1", "product/0"]
    assert outcome.skipped == {"repeats_path_frame": 2}


def test_same_positions_with_another_energy_are_no_repeat(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "Transition1x.h5", "w") as file:
        node = file.create_group("train/H2/rxn0001")
        write_frames(node, [-31.0, -30.5])
        write_frames(node.create_group("product"), [-30.999])
    assert len(read_split("transition1x", tmp_path, "train").block) == 3


def test_nan_labels_are_quarantined(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "Transition1x.h5", "w") as file:
        write_frames(file.create_group("train/H2/rxn0001"), [-31.0, np.nan, -30.0])
    outcome = read_split("transition1x", tmp_path, "train")
    assert outcome.block.energy.tolist() == [-31.0, -30.0]
    assert outcome.quarantined[0].source_id == "Transition1x.h5#train/H2/rxn0001/1"


def test_parts_never_divide_a_reaction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5_frames, "MAX_STRUCTURES_PER_PART", 50)
    write_transition1x(tmp_path, reactions=12)
    plan = get_source("transition1x").plan(tmp_path, "train")
    assert [len(part.selection) for part in plan.parts] == [2, 2, 2, 2]  # 21 records each
    outcome = read_split("transition1x", tmp_path, "train")
    assert len(outcome.block) == 8 * 18
    formulas = [name.split("/")[1] for name in outcome.ids]
    assert formulas == sorted(formulas)


def test_the_group_of_everything_is_never_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "Transition1x.h5", "w") as file:
        write_frames(file.create_group("data/H2/rxn0001"), [-31.0])
    with pytest.raises(RawFileError, match="no reactions in train, val or test; it has data"):
        get_source("transition1x").splits(tmp_path)
    with pytest.raises(MissingFileError, match="no group train"):
        get_source("transition1x").plan(tmp_path, "train")
    with pytest.raises(ManifestError, match="no split 'data'"):
        get_source("transition1x").plan(tmp_path, "data")


@pytest.mark.parametrize("key", [ENERGY, FORCES, "positions", "atomic_numbers"])
def test_a_missing_key_is_named_before_any_work(tmp_path: Path, key: str) -> None:
    write_transition1x(tmp_path)
    with h5py.File(tmp_path / "Transition1x.h5", "a") as file:
        formula = next(iter(file["train"]))
        del file[f"train/{formula}/rxn0000"][key]
    with pytest.raises(RawFileError, match=r"Transition1x\.h5: group /train/\w+/rxn0000 lacks"):
        get_source("transition1x").plan(tmp_path, "train")


@pytest.mark.parametrize("key", [ENERGY, FORCES])
def test_a_missing_key_of_an_endpoint_is_named(tmp_path: Path, key: str) -> None:
    write_transition1x(tmp_path, reactions=1)
    with h5py.File(tmp_path / "Transition1x.h5", "a") as file:
        formula = next(iter(file["train"]))
        del file[f"train/{formula}/rxn0000/product"][key]
    with pytest.raises(RawFileError, match=r"Transition1x\.h5.*rxn0000"):
        read_split("transition1x", tmp_path, "train")


def test_a_broken_link_is_named(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "Transition1x.h5", "w") as file:
        file.create_group("train/H2")["rxn0001"] = h5py.SoftLink("/data/H2/rxn0001")
    with pytest.raises(RawFileError, match="rxn0001 cannot be opened"):
        get_source("transition1x").plan(tmp_path, "train")
