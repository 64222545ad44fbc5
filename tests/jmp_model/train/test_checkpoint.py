from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from jmp_data.errors import CheckpointError
from jmp_model.presets import preset
from jmp_model.train.checkpoint import (
    Checkpoint,
    checkpoint_folder,
    latest_checkpoint,
    list_checkpoints,
    read_checkpoint,
    write_checkpoint,
)
from jmp_model.train.targets import TaskNormalizer


def make_checkpoint(value: float = 1.0) -> Checkpoint:
    return Checkpoint(
        backbone=preset("tiny"),
        normalizers=(TaskNormalizer("oc20", {1: -1.25, 29: 3.5}, 2.0, 0.5, origin="test"),),
        model={"w": torch.full((2, 3), value), "backbone.scale_factor": torch.tensor(0.5)},
        average={"w": torch.full((2, 3), value + 1)},
        optimizer={"exp_avg/w": torch.zeros(2, 3), "step/w": torch.tensor(4.0)},
        step=4,
        stream={"epoch": 1, "step": 3},
        mixture_fingerprint="abc",
        config={"model": "tiny"},
        extra={"precision": {}},
    )


def test_round_trip(tmp_path: Path) -> None:
    written = make_checkpoint()
    found = read_checkpoint(write_checkpoint(written, tmp_path / "one"))
    for name in ("backbone", "normalizers", "step", "stream", "mixture_fingerprint", "config", "extra"):
        assert getattr(found, name) == getattr(written, name)
    for kind in ("model", "average", "optimizer"):
        mine, theirs = getattr(found, kind), getattr(written, kind)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert found.tasks == ("oc20",)


def test_averaged_weights_are_what_one_goes_on_with(tmp_path: Path) -> None:
    found = read_checkpoint(write_checkpoint(make_checkpoint(), tmp_path / "one"), with_optimizer=False)
    assert found.optimizer == {}
    assert found.weights()["w"][0, 0] == 2.0
    assert found.weights(averaged=False)["w"][0, 0] == 1.0
    assert found.weights()["backbone.scale_factor"] == 0.5


def test_an_unfinished_folder_is_no_checkpoint(tmp_path: Path) -> None:
    write_checkpoint(make_checkpoint(), checkpoint_folder(tmp_path, 3))
    unfinished = tmp_path / "checkpoints" / ".step-00000004.partial"
    unfinished.mkdir()
    (unfinished / "model.safetensors").write_bytes(b"half")
    assert latest_checkpoint(tmp_path) == checkpoint_folder(tmp_path, 3)
    write_checkpoint(make_checkpoint(5.0), checkpoint_folder(tmp_path, 4))
    assert read_checkpoint(tmp_path).model["w"][0, 0] == 5.0
    assert len(list_checkpoints(tmp_path)) == 2


def test_writing_again_replaces(tmp_path: Path) -> None:
    write_checkpoint(make_checkpoint(1.0), tmp_path / "one")
    write_checkpoint(make_checkpoint(7.0), tmp_path / "one")
    assert read_checkpoint(tmp_path / "one").model["w"][0, 0] == 7.0


@pytest.mark.parametrize("name", ["model", "average", "optimizer"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damage_is_noticed_and_named(tmp_path: Path, name: str, damage: str) -> None:
    folder = write_checkpoint(make_checkpoint(), tmp_path / "one")
    file = folder / f"{name}.safetensors"
    content = bytearray(file.read_bytes())
    if damage == "remove":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(content[:-1])
    else:
        content[-3] ^= 1
        file.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name}\.safetensors"):
        read_checkpoint(folder)


def test_foreign_and_newer_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint"):
        read_checkpoint(tmp_path)
    folder = write_checkpoint(make_checkpoint(), tmp_path / "one")
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, "version": 99}))
    with pytest.raises(CheckpointError, match="upgrade"):
        read_checkpoint(folder)
    (folder / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not the state"):
        read_checkpoint(folder)
    (folder / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        read_checkpoint(folder)
