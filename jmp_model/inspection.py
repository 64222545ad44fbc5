"""What a checkpoint holds, as plain facts for people and machines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jmp_model.gemnet_oc.config import GemNetOCConfig
from jmp_model.inputs import element_symbol
from jmp_model.presets import PRESETS
from jmp_model.train.checkpoint import FORMAT_VERSION, Checkpoint
from jmp_model.weights.any_checkpoint import read_any_checkpoint
from jmp_model.weights.convert import Weights, convert_released
from jmp_model.weights.name_map import is_parameter
from jmp_model.weights.released import read_released

# Settings that do not make another size of model.
_NOT_SIZES = ("edge_dropout", "direct_forces", "symmetrization", "collinear")


def open_for_inspection(path: Path) -> Checkpoint:
    """A checkpoint of any kind; of a released file, whatever weights it has."""
    if not path.is_file():
        return read_any_checkpoint(path)
    file = read_released(path)
    weights: Weights = "live" if file.average is None else "ema"
    return convert_released(file, path, weights=weights, references={}).checkpoint


def describe_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    """Model, weights, tasks with their constants, provenance; JSON-ready."""
    scales = [float(value) for name, value in checkpoint.model.items() if name.endswith("scale_factor")]
    elements = checkpoint.extra.get("elements") or []
    return {
        "kind": checkpoint.extra.get("kind", "pre-trained"),
        "format": FORMAT_VERSION,
        "model": _model_name(checkpoint.backbone),
        "parameters": sum(value.numel() for name, value in checkpoint.model.items() if is_parameter(name)),
        "direct_forces": checkpoint.backbone.direct_forces,
        "weights": ["live", "averaged"] if checkpoint.average else ["live"],
        "scale_factors": {"fitted": sum(value != 0 for value in scales), "of": len(scales)},
        "step": checkpoint.step,
        "optimizer_state": bool(checkpoint.optimizer),
        "mixture_fingerprint": checkpoint.mixture_fingerprint,
        "elements": [element_symbol(z) for z in elements],
        "provenance": dict(checkpoint.extra.get("provenance", {})),
        "backbone": asdict(checkpoint.backbone),
        "tasks": _describe_tasks(checkpoint),
    }


def _describe_tasks(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    if "scales" in checkpoint.extra:
        scales: Mapping[str, Any] = checkpoint.extra["scales"]
        name = checkpoint.extra["task"]["name"]
        return [{"task": name, "target": target, **_with_symbols(scale)} for target, scale in scales.items()]
    return [_with_symbols(normalizer.to_json()) for normalizer in checkpoint.normalizers]


def _with_symbols(entry: Mapping[str, Any]) -> dict[str, Any]:
    reference = entry["reference"] or {}
    return {**entry, "reference": {element_symbol(int(z)): value for z, value in reference.items()} or "none"}


def _model_name(config: GemNetOCConfig) -> str:
    def sizes(entry: GemNetOCConfig) -> dict[str, Any]:
        return {name: value for name, value in asdict(entry).items() if name not in _NOT_SIZES}

    return next((name for name, entry in PRESETS.items() if sizes(entry) == sizes(config)), "own sizes")
