"""Checkpoint folders of tiny models, for tests of what uses them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from jmp_model.gemnet_oc.scaling import scale_factors
from jmp_model.model import PretrainingModel
from jmp_model.presets import preset
from jmp_model.train.checkpoint import Checkpoint, write_checkpoint
from jmp_model.train.targets import TaskNormalizer

TASKS = ("molecules", "metals")
REFERENCES = {"molecules": {1: -13.5, 6: -1029.0, 8: -2042.0}, "metals": {29: -3.5, 28: -5.5}}
SIZES: dict[str, Any] = {
    "emb_size_atom": 16, "emb_size_edge": 24, "emb_size_trip_in": 4, "emb_size_trip_out": 4, "emb_size_quad_in": 4,
    "emb_size_quad_out": 4, "emb_size_aint_in": 4, "emb_size_aint_out": 4, "emb_size_rbf": 4, "emb_size_cbf": 4,
    "emb_size_sbf": 4, "num_radial": 16, "num_blocks": 1,
}  # fmt: skip
STD = 2.0


def write_tiny(folder: Path, *, seed: int = 0, references: bool = True, **changes: Any) -> Path:
    """A pre-training checkpoint with two tasks, random weights and plausible scale factors."""
    torch.manual_seed(seed)
    model = PretrainingModel(preset("tiny", **{**SIZES, **changes}), tasks=TASKS)
    plausible = {"scale_rbf": 3.0, "scale_cbf": 5.0, "scale_cbf_sum": 3.0, "scale_sbf_sum": 5.0, "scale_sum": 0.8}
    for name, factor in scale_factors(model):
        factor.set(plausible.get(name.rsplit(".", 1)[-1], 1.0))
    checkpoint = Checkpoint(
        backbone=model.config,
        normalizers=tuple(TaskNormalizer(t, REFERENCES[t] if references else {}, STD, 0.5) for t in TASKS),
        model=dict(model.state_dict()),
        average={},
        step=7,
        extra={"elements": [1, 6, 8, 28, 29]},
    )
    write_checkpoint(checkpoint, folder)
    return folder
