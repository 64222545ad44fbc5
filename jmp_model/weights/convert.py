"""Checkpoints from the released layout to ours and back, with a list of which keys stand for what."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

import jmp_data
from jmp_data.errors import CheckpointError, ManifestError
from jmp_data.manifests import load_manifest
from jmp_model.gemnet_oc.config import GemNetOCConfig
from jmp_model.model import PretrainingModel
from jmp_model.presets import PRETRAINING_TASKS
from jmp_model.train.checkpoint import Checkpoint
from jmp_model.train.targets import TaskNormalizer
from jmp_model.weights.name_map import (
    ALIAS,
    COUNTERS,
    GAUSSIAN_BUFFERS,
    MODEL_PREFIXES,
    from_released,
    our_name,
    to_released,
)
from jmp_model.weights.released import ReleasedFile, read_released, write_released

Weights = Literal["ema", "live"]

_COUNTER_PREFIX = f"{COUNTERS}_module_dict._typed_moduledict_"
NO_REFERENCES = "published constants; the element references were not published, energies are relative"


@dataclass(frozen=True)
class KeyMap:
    """What became of the keys of a released file.

    Attributes:
        mapped: released key → our name; several released keys may be one tensor of ours.
        unmapped: released key → why it has no counterpart.
    """

    mapped: dict[str, str]
    unmapped: dict[str, str]

    def kinds(self) -> dict[str, int]:
        """Number of released keys by what they hold."""
        return dict(Counter(_kind_of(name) for name in (*self.mapped, *self.unmapped)))


@dataclass(frozen=True)
class Imported:
    """A released checkpoint in our terms.

    Attributes:
        checkpoint: live weights, averaged ones if they were wanted, normalisers, provenance.
        keys: which released keys became what.
        foreign: classes of objects that were left unread → how many.
    """

    checkpoint: Checkpoint
    keys: KeyMap
    foreign: Mapping[str, int]


def import_released(
    path: Path, *, weights: Weights = "ema", references: Mapping[str, Mapping[str, Any]] | None = None
) -> Imported:
    """Read a checkpoint in the released layout; nothing in it is executed.

    Args:
        path: the `.pt` file.
        weights: "ema" keeps live and averaged weights and uses the averaged ones, as JMP's own fine-tuning does; "live"
            drops the averaged ones.
        references: pre-training task → fitted constants of its data set (`linear_reference` symbol → eV, and
            `energy_std`, `force_rms`, which count only for tasks without published ones); see `fitted_references`.

    Raises:
        CheckpointError: another model, a missing scale factor, no averaged weights, unknown normalisers.
        RawFileError: the file is damaged.
        UnsafePickleError: it was made to execute something.
    """
    return convert_released(read_released(path), path, weights=weights, references=references or {})


def convert_released(
    file: ReleasedFile, path: Path, *, weights: Weights, references: Mapping[str, Mapping[str, Any]]
) -> Imported:
    """`import_released` for a file that is read already."""
    tasks = _tasks(file, path)
    keys = _map_keys(file, tasks, path)
    own = keys.mapped.keys()
    model = from_released({name: value for name, value in file.state.items() if name in own})
    _check_scales(model, path)
    if weights == "ema" and file.average is None:
        raise CheckpointError(
            f"{path}: has no averaged (EMA) weights, which JMP fine-tunes from; --weights live takes the live ones"
        )
    unknown = sorted(set(references) - set(tasks))
    if unknown:
        raise CheckpointError(f"{path}: references for {', '.join(unknown)}, but its heads are {', '.join(tasks)}")
    averaged = file.average if weights == "ema" and file.average is not None else {}
    average = from_released({name: value for name, value in averaged.items() if name in own})
    checkpoint = Checkpoint(
        backbone=file.backbone,
        normalizers=tuple(_normalizer(task, file, references.get(task), path) for task in tasks),
        model={name: value.contiguous() for name, value in model.items()},
        average={name: value.contiguous() for name, value in average.items()},
        step=file.step,
        extra=_extra(file, tasks, weights, path),
    )
    return Imported(checkpoint, keys, file.foreign)


def export_released(checkpoint: Checkpoint, path: Path) -> KeyMap:
    """Write a pre-training checkpoint in the released layout; `import_released` gives the same checkpoint back.

    Raises:
        CheckpointError: a fine-tuned model, or one that the original cannot compute.
    """
    if not checkpoint.tasks:
        raise CheckpointError(f"{path}: only pre-training checkpoints have a released layout; this one is fine-tuned")
    # Averaged weights have no names in that layout, only an order: that of the model.
    live, averaged = (_in_model_order(checkpoint, checkpoint.weights(averaged=which), path) for which in (False, True))
    state = to_released(live, tasks=checkpoint.tasks)
    average = to_released(averaged, tasks=()) if checkpoint.average else None
    provenance = checkpoint.extra.get("provenance", {})
    file = ReleasedFile(
        backbone=checkpoint.backbone,
        state=state,
        average=average,
        epoch=int(provenance.get("epoch", 0)),
        step=checkpoint.step,
        ours={
            "written_by": f"jmp-data {jmp_data.__version__}",
            "normalizers": [normalizer.to_json() for normalizer in checkpoint.normalizers],
            "ema_decay": checkpoint.config.get("optimizer", {}).get("ema_decay"),
            "extra": {key: checkpoint.extra[key] for key in ("elements", "task_elements") if key in checkpoint.extra},
        },
    )
    write_released(file, path)
    return _map_keys(file, checkpoint.tasks, path)


def _in_model_order(checkpoint: Checkpoint, weights: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    names = list(_expected_state(checkpoint.backbone, checkpoint.tasks))
    if weights.keys() != set(names):
        differ = sorted(weights.keys() ^ set(names))
        raise CheckpointError(f"{path}: the checkpoint's weights do not fit its own settings, first {differ[0]}")
    return {name: weights[name] for name in names}


def _expected_state(backbone: GemNetOCConfig, tasks: Sequence[str]) -> dict[str, Tensor]:
    """Names and shapes of a pre-training model, without its memory."""
    with torch.device("meta"):
        return dict(PretrainingModel(backbone, tasks=tasks).state_dict())


def fitted_references(folders: Sequence[str | Path]) -> dict[str, Mapping[str, Any]]:
    """Constants that were fitted on data sets, by data set name.

    Args:
        folders: data sets as `jmp-data build` makes them (training splits), or their `manifest.json` files.

    Raises:
        ManifestError: a data set has no fitted references, or two have one name.
    """
    found: dict[str, Mapping[str, Any]] = {}
    for folder in folders:
        dataset = jmp_data.open_dataset(str(folder).removesuffix("/manifest.json"))
        fitted = dataset.references.get("fitted") or {}
        if "linear_reference" not in fitted:
            raise ManifestError(f"{folder}: its manifest has no fitted element references; give a training split")
        if dataset.name in found:
            raise ManifestError(f"{folder}: references of {dataset.name} were given already")
        found[dataset.name] = fitted
    return found


def _tasks(file: ReleasedFile, path: Path) -> tuple[str, ...]:
    """Names of the heads, from the counters that each has; the published four if there are none."""
    heads = {name.split(".")[2] for name in file.state if name.startswith("output.out_energy.")}
    named = [name.removeprefix(_COUNTER_PREFIX).rpartition(".")[0] for name in file.state if name.startswith(COUNTERS)]
    tasks = tuple(named) or PRETRAINING_TASKS
    if len(heads) != len(tasks):
        raise CheckpointError(
            f"{path}: not a JMP pre-training checkpoint: {len(heads)} energy heads for tasks {', '.join(tasks)}"
        )
    return tasks


def _map_keys(file: ReleasedFile, tasks: Sequence[str], path: Path) -> KeyMap:
    """Match the keys with those of the model that the settings describe.

    Raises:
        CheckpointError: one line that says how they differ.
    """
    expected = _expected_state(file.backbone, tasks)
    mapped, unmapped, foreign = {}, {}, []
    for released, value in file.state.items():
        ours = our_name(released)
        if ours is None:
            unmapped[released] = "counts the steps of a task; no weight"
        elif ours in expected and expected[ours].shape == value.shape:
            mapped[released] = ours
        elif released.startswith(MODEL_PREFIXES):
            foreign.append(released)
        else:
            unmapped[released] = "unknown; outside the model, not taken over"
    missing = [name for name in expected if name not in set(mapped.values())]
    scales = [name for name in missing if name.endswith("scale_factor")]
    if foreign or missing:
        what = "lacks scale factors" if len(scales) == len(missing) and not foreign else "is of another model"
        raise CheckpointError(
            f"{path}: {what}: {len(missing)} tensors are missing, {len(foreign)} are unknown or of another shape; "
            f"first {(foreign + missing)[0]}"
        )
    return KeyMap(mapped, unmapped)


def _check_scales(model: Mapping[str, Tensor], path: Path) -> None:
    scales = {name: float(value) for name, value in model.items() if name.endswith("scale_factor")}
    broken = [name for name, value in scales.items() if not math.isfinite(value)]
    if broken:
        raise CheckpointError(f"{path}: {len(broken)} scale factors are no numbers, first {broken[0]}")
    unfitted = [name for name, value in scales.items() if value == 0]
    if unfitted:
        raise CheckpointError(
            f"{path}: {len(unfitted)} scale factors were never fitted (0), first {unfitted[0]}; a model without its "
            "scale factors is another model"
        )


def _normalizer(task: str, file: ReleasedFile, fitted: Mapping[str, Any] | None, path: Path) -> TaskNormalizer:
    from ase.data import atomic_numbers

    own = next((entry for entry in file.ours.get("normalizers", ()) if entry["task"] == task), None)
    linear = {} if fitted is None else {atomic_numbers[s]: float(v) for s, v in fitted["linear_reference"].items()}
    if own is not None:
        normalizer = TaskNormalizer.from_json(own)
        return normalizer if fitted is None else replace(normalizer, reference=linear)
    constants = _published_constants(task)
    if constants is None:
        if fitted is None:
            raise CheckpointError(
                f"{path}: no normaliser is known for its task {task}; give --references with the training split"
            )
        return TaskNormalizer(task, linear, fitted["energy_std"], fitted["force_rms"], origin="fitted, --references")
    origin = NO_REFERENCES if fitted is None else "published constants; element references fitted, --references"
    return TaskNormalizer(task, linear, constants["energy_std"], constants["force_std"], origin=origin)


def _published_constants(task: str) -> dict[str, float] | None:
    try:
        constants = load_manifest(task).published_constants()
    except ManifestError:
        return None
    return constants if {"energy_std", "force_std"} <= constants.keys() else None


def _extra(file: ReleasedFile, tasks: Sequence[str], weights: Weights, path: Path) -> dict[str, Any]:
    extra: dict[str, Any] = {
        "provenance": {
            "imported_from": path.name,
            "sha256": file.sha256,
            "weights": weights,
            "epoch": file.epoch,
            "step": file.step,
            "imported_by": f"jmp-data {jmp_data.__version__}",
        },
        **file.ours.get("extra", {}),
    }
    if file.trained_elements is not None:
        extra["elements"] = list(file.trained_elements)
    known = {task: _manifest_elements(task) for task in tasks}
    extra.setdefault("task_elements", {task: elements for task, elements in known.items() if elements})
    return extra


def _manifest_elements(task: str) -> list[int]:
    """Elements of a data set, where its manifest lists them."""
    from ase.data import atomic_numbers

    try:
        symbols = load_manifest(task).atoms.elements
    except ManifestError:
        return []
    return sorted(atomic_numbers[symbol] for symbol in symbols)


def _kind_of(released: str) -> str:
    if released.startswith(COUNTERS):
        return "counters"
    if not released.startswith(MODEL_PREFIXES):
        return "unknown"
    if released.endswith("scale_factor"):
        return "scale factors"
    if released.endswith(tuple(f"rbf.{buffer}" for buffer in GAUSSIAN_BUFFERS)):
        return "gaussian buffers"
    return "aliases of weights" if ALIAS in released else "weights"
