"""Import and export of files in the released layout, made from the parity weights."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from jmp_data import Structure, write_dataset
from jmp_data.errors import CheckpointError, ManifestError, UnsafePickleError
from jmp_model.gemnet_oc.config import GemNetOCConfig
from jmp_model.inspection import describe_checkpoint, open_for_inspection
from jmp_model.model import PretrainingModel
from jmp_model.presets import PRETRAINING_TASKS, preset
from jmp_model.train.checkpoint import read_checkpoint, write_checkpoint
from jmp_model.weights.convert import export_released, fitted_references, import_released
from jmp_model.weights.name_map import from_released, is_parameter
from jmp_model.weights.released import read_released, released_settings
from tests.jmp_model.weights.released_files import (
    lightning_checkpoint,
    parity_settings,
    parity_state,
    perturbed,
    write_parity_checkpoint,
)
from tests.shared import SHARED, needs_shared

pytestmark = needs_shared


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parity_checkpoint(tmp_path_factory.mktemp("released") / "jmp.pt")


def same(left: Any, right: Any) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_live_and_averaged_weights_are_both_there(released: Path) -> None:
    checkpoint = import_released(released).checkpoint
    state = parity_state()
    assert same(checkpoint.model, from_released(state))
    names = [name for name in state if is_parameter(name)]
    assert same(checkpoint.average, dict(zip(names, perturbed(state), strict=True)))
    assert not torch.equal(checkpoint.weights()[names[0]], state[names[0]])
    assert torch.equal(checkpoint.weights(averaged=False)[names[0]], state[names[0]])


def test_live_weights_alone_on_request(released: Path) -> None:
    checkpoint = import_released(released, weights="live").checkpoint
    assert not checkpoint.average
    assert same(checkpoint.weights(), from_released(parity_state()))


def test_every_key_is_accounted_for(released: Path) -> None:
    keys = import_released(released).keys
    file = read_released(released)
    assert keys.mapped.keys() | keys.unmapped.keys() == file.state.keys()
    assert sorted(keys.unmapped) == sorted(
        f"task_steps._module_dict._typed_moduledict_{t}.value" for t in PRETRAINING_TASKS
    )
    assert keys.kinds()["scale factors"] == 11 * 2 + 2 * 3
    assert keys.kinds()["gaussian buffers"] == 16


@pytest.mark.parametrize("name", ["small", "large"])
def test_published_key_lists_are_mapped_whole(tmp_path: Path, name: str) -> None:
    """A file with exactly the published names and shapes; expanded zeros, so that it stays small."""
    assert SHARED is not None
    shapes = json.loads((SHARED / "reference" / f"jmp-{name[0]}-keys.json").read_text())
    state = {key: torch.ones(()).expand(shape) for key, shape in shapes.items()}
    settings = {**parity_settings(), **released_settings(preset(name))}
    content = {"state_dict": state, "hyper_parameters": {"backbone": settings}, "epoch": 1, "global_step": 2}
    torch.save(content, tmp_path / "jmp.pt")
    keys = import_released(tmp_path / "jmp.pt", weights="live").keys
    assert len(keys.mapped) + len(keys.unmapped) == len(shapes)
    assert len(keys.unmapped) == 4
    with torch.device("meta"):
        expected = PretrainingModel(preset(name)).state_dict()
    assert set(keys.mapped.values()) == set(expected)


def test_what_surrounds_the_weights_is_left_unread_and_listed(released: Path) -> None:
    foreign = import_released(released).foreign
    assert {name.rpartition("released_files.")[2] for name in foreign} >= {
        "FitLoop",
        "Metric",
        "Callback.State",
        "Stage",
    }


def test_normalisers_are_the_published_ones_and_references_are_said_to_be_missing(released: Path) -> None:
    checkpoint = import_released(released).checkpoint
    assert checkpoint.tasks == PRETRAINING_TASKS
    by_task = {normalizer.task: normalizer for normalizer in checkpoint.normalizers}
    assert by_task["oc20"].energy_std == 24.901469505465872
    assert by_task["transition1x"].force_std == 0.3591422140598297
    for normalizer in checkpoint.normalizers:
        assert normalizer.reference == {}
        assert normalizer.energy_mean == 0.0
        assert "not published" in normalizer.origin


def test_trained_elements_come_from_the_moments(released: Path) -> None:
    extra = import_released(released).checkpoint.extra
    assert extra["elements"] == [1, 6, 8]
    assert extra["task_elements"]["ani1x"] == [1, 6, 7, 8]
    assert extra["provenance"]["imported_from"] == "jmp.pt"
    assert len(extra["provenance"]["sha256"]) == 64


def test_references_of_ones_own_data_can_be_added(released: Path, tmp_path: Path) -> None:
    structures = [
        Structure(
            atomic_numbers=[1] * h + [8] * o,
            positions=torch.rand(h + o, 3).numpy() * 9,
            energy=-13.0 * h - 2000.0 * o,
            forces=torch.ones(h + o, 3).numpy(),
        )
        for h, o in ((2, 1), (2, 2), (1, 3), (4, 1))
    ]
    write_dataset(structures, tmp_path / "ani1x" / "train")
    references = fitted_references([tmp_path / "ani1x" / "train" / "manifest.json"])
    (name,) = references
    references = {"ani1x": references[name]}
    checkpoint = import_released(released, references=references).checkpoint
    normalizer = checkpoint.normalizers[2]
    assert normalizer.reference == pytest.approx({1: -13.0, 8: -2000.0})
    assert normalizer.energy_std == 2.8700712783472118
    with pytest.raises(CheckpointError, match="references for elsewhere"):
        import_released(released, references={"elsewhere": references["ani1x"]})


def test_a_folder_without_references_is_refused(tmp_path: Path) -> None:
    write_dataset([Structure(atomic_numbers=[1], positions=[[0, 0, 0]])], tmp_path / "bare")
    with pytest.raises(ManifestError, match="no fitted element references"):
        fitted_references([tmp_path / "bare"])


def test_export_gives_the_same_file_and_import_the_same_checkpoint(released: Path, tmp_path: Path) -> None:
    first = import_released(released).checkpoint
    stored = read_checkpoint(write_checkpoint(first, tmp_path / "ours"))
    export_released(stored, tmp_path / "back.pt")
    second = import_released(tmp_path / "back.pt").checkpoint
    assert same(first.model, second.model)
    assert same(first.average, second.average)
    assert (first.backbone, first.normalizers, first.step) == (second.backbone, second.normalizers, second.step)
    assert first.extra["task_elements"] == second.extra["task_elements"]
    assert first.extra["elements"] == second.extra["elements"]


def test_exported_files_have_the_released_order(released: Path, tmp_path: Path) -> None:
    """What reads averaged weights by position, or names in order, must find them where they were."""
    export_released(import_released(released).checkpoint, tmp_path / "back.pt")
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    before = lightning_checkpoint(parity_state(), parity_settings())
    assert list(back["state_dict"]) == list(before["state_dict"])
    ema = before["optimizer_states"][0]["ema"]
    assert all(torch.equal(a, b) for a, b in zip(back["optimizer_states"][0]["ema"], ema, strict=True))
    assert GemNetOCConfig.from_released(back["hyper_parameters"]["backbone"]) == GemNetOCConfig.from_released(
        parity_settings()
    )


@pytest.mark.parametrize("name", ["tiny", "small", "large"])
def test_settings_survive_both_ways(name: str) -> None:
    config = preset(name, direct_forces=name != "small", qint_tags=(1, 2))
    assert GemNetOCConfig.from_released(released_settings(config)) == config


def test_a_model_that_the_original_cannot_compute_is_not_exported(released: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    checkpoint = import_released(released).checkpoint
    other = replace(checkpoint, backbone=replace(checkpoint.backbone, symmetrization="symmetric"))
    with pytest.raises(CheckpointError, match="symmetric"):
        export_released(other, tmp_path / "no.pt")
    assert list(tmp_path.iterdir()) == []


def changed(change: Any) -> dict[str, Any]:
    """The parity file's dictionary after a change."""
    content = copy.deepcopy(lightning_checkpoint(parity_state(), parity_settings()))
    change(content)
    return content


def _drop(content: dict[str, Any], ending: str) -> None:
    state: dict[str, Tensor] = content["state_dict"]
    del state[next(name for name in state if name.endswith(ending))]


def _zero_scale(content: dict[str, Any]) -> None:
    name = next(name for name in content["state_dict"] if name.endswith("scale_factor"))
    content["state_dict"][name] = torch.tensor(0.0, dtype=torch.float64)


def _unreal_scale(content: dict[str, Any]) -> None:
    name = next(name for name in content["state_dict"] if name.endswith("scale_factor"))
    content["state_dict"][name] = torch.tensor(float("nan"), dtype=torch.float64)


def _unreal_size(content: dict[str, Any]) -> None:
    content["hyper_parameters"]["backbone"]["emb_size_edge"] = 16.0


def _other_width(content: dict[str, Any]) -> None:
    content["hyper_parameters"]["backbone"]["emb_size_edge"] = 32


def _foreign_state(content: dict[str, Any]) -> None:
    content["state_dict"] = {"encoder.weight": torch.ones(3)}


def _no_average(content: dict[str, Any]) -> None:
    del content["optimizer_states"][0]["ema"]


def _short_average(content: dict[str, Any]) -> None:
    content["optimizer_states"][0]["ema"] = content["optimizer_states"][0]["ema"][:-1]


def _shuffled_average(content: dict[str, Any]) -> None:
    content["optimizer_states"][0]["ema"] = content["optimizer_states"][0]["ema"][::-1]


def _other_activation(content: dict[str, Any]) -> None:
    content["hyper_parameters"]["backbone"]["activation"] = "relu"


def _other_buffer(content: dict[str, Any]) -> None:
    name = next(name for name in content["state_dict"] if "seq_energy_pre" in name)
    content["state_dict"][name] = content["state_dict"][name] + 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: _drop(c, "scale_factor"), "lacks scale factors: 1 tensors are missing"),
        (_zero_scale, "never fitted"),
        (_unreal_scale, "1 scale factors are no numbers"),
        (_unreal_size, "emb_size_edge = 16.0: must be a whole number"),
        (lambda c: _drop(c, "dense_ca.linear.weight"), "is of another model: 1 tensors are missing|cannot be matched"),
        (_other_width, "is of another model"),
        (_foreign_state, "not a JMP pre-training checkpoint|cannot be matched"),
        (_no_average, "no averaged"),
        (_short_average, "cannot be matched"),
        (_shuffled_average, "another shape or type"),
        (_other_activation, "activation"),
        (_other_buffer, "differ"),
        (lambda c: c.pop("state_dict"), "lacks state_dict"),
        (lambda c: c.pop("hyper_parameters"), "lacks hyper_parameters"),
        (lambda c: c["hyper_parameters"].pop("backbone"), "no backbone settings"),
    ],
)
def test_other_models_end_in_one_clear_line(tmp_path: Path, change: Any, message: str) -> None:
    file = tmp_path / "other.pt"
    torch.save(changed(change), file)
    with pytest.raises(CheckpointError, match=message) as caught:
        import_released(file)
    assert "\n" not in str(caught.value)


def test_averages_are_found_in_a_tuple_too(tmp_path: Path) -> None:
    torch.save(changed(lambda c: c.update(optimizer_states=tuple(c["optimizer_states"]))), tmp_path / "tuple.pt")
    assert import_released(tmp_path / "tuple.pt").checkpoint.average


def test_files_in_which_every_row_of_the_embedding_was_trained_are_described(tmp_path: Path) -> None:
    """Rows 119 and 120 belong to no element that has a symbol."""
    state = parity_state()
    rows = len(state["embedding.atom_embedding.weight"])
    content = lightning_checkpoint(state, parity_settings(), trained=tuple(range(1, rows + 1)))
    torch.save(content, tmp_path / "all.pt")
    facts = describe_checkpoint(open_for_inspection(tmp_path / "all.pt"))
    assert facts["elements"][-3:] == ["Og", "Z=119", "Z=120"]


def test_files_without_averages_give_their_live_weights_on_request(tmp_path: Path) -> None:
    torch.save(changed(_no_average), tmp_path / "live.pt")
    assert same(import_released(tmp_path / "live.pt", weights="live").checkpoint.model, from_released(parity_state()))


def _compiled(content: dict[str, Any]) -> None:
    state = content["state_dict"]
    content["state_dict"] = {
        name.replace("backbone.", "backbone._orig_mod.").replace("embedding.", "_orig_mod.embedding.", 1): value
        for name, value in state.items()
    }


def _distributed(content: dict[str, Any]) -> None:
    content["state_dict"] = {f"module.{name}": value for name, value in content["state_dict"].items()}


@pytest.mark.parametrize("change", [_compiled, _distributed])
def test_names_of_wrappers_are_taken_away(tmp_path: Path, change: Any) -> None:
    torch.save(changed(change), tmp_path / "wrapped.pt")
    checkpoint = import_released(tmp_path / "wrapped.pt").checkpoint
    assert same(checkpoint.model, from_released(parity_state()))
    assert checkpoint.average.keys() == {name for name in parity_state() if is_parameter(name)}


def test_tensors_outside_the_model_are_listed_and_not_taken(tmp_path: Path) -> None:
    def add(content: dict[str, Any]) -> None:
        content["state_dict"]["probe.weight"] = torch.ones(2)
        content["somebody_elses_entry"] = [1, 2, 3]

    torch.save(changed(add), tmp_path / "more.pt")
    imported = import_released(tmp_path / "more.pt")
    assert imported.keys.unmapped["probe.weight"].startswith("unknown")
    assert imported.keys.kinds()["unknown"] == 1
    assert "probe.weight" not in imported.checkpoint.model
    assert same(imported.checkpoint.model, from_released(parity_state()))
    assert imported.checkpoint.average.keys() == {name for name in parity_state() if is_parameter(name)}


def test_tensors_that_the_model_has_no_place_for_are_refused(tmp_path: Path) -> None:
    def add(content: dict[str, Any]) -> None:
        content["state_dict"]["backbone.more.weight"] = torch.ones(2)

    torch.save(changed(add), tmp_path / "more.pt")
    with pytest.raises(CheckpointError, match=r"is of another model|cannot be matched"):
        import_released(tmp_path / "more.pt", weights="live")


class Reducer:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        import os

        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("place", ["callbacks", "hyper_parameters", "optimizer_states", "state_dict"])
def test_hostile_files_execute_nothing(tmp_path: Path, place: str) -> None:
    trap = tmp_path / "trap"
    content = lightning_checkpoint(parity_state(), parity_settings())
    holder = content[place][0] if isinstance(content[place], list) else content[place]
    holder["hostile"] = Reducer(trap)
    torch.save(content, tmp_path / "hostile.pt")
    with pytest.raises(UnsafePickleError, match=r"hostile\.pt: the file calls posix\.system"):
        import_released(tmp_path / "hostile.pt")
    assert not trap.exists()
