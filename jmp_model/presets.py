"""The named model sizes: the two published ones, and one small enough to train on two CPU cores in minutes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from jmp_model.gemnet_oc.config import GemNetOCConfig

PRETRAINING_TASKS = ("oc20", "oc22", "ani1x", "transition1x")
"""Order of the pre-training heads in the released checkpoints."""

SMALL = GemNetOCConfig(
    num_blocks=4,
    emb_size_atom=256,
    emb_size_edge=512,
    emb_size_trip_in=64,
    emb_size_trip_out=64,
    emb_size_quad_in=32,
    emb_size_quad_out=32,
    emb_size_aint_in=64,
    emb_size_aint_out=64,
    emb_size_rbf=16,
    emb_size_cbf=16,
    emb_size_sbf=32,
    num_concat=1,
    edge_dropout=0.1,
)
"""JMP-S, 44.1 million parameters with the four pre-training heads."""

LARGE = replace(
    SMALL,
    num_blocks=6,
    emb_size_edge=1024,
    emb_size_trip_out=128,
    emb_size_quad_in=64,
    emb_size_rbf=32,
    emb_size_sbf=64,
    num_concat=4,
)
"""JMP-L, 234.3 million parameters with the four pre-training heads."""

TINY = replace(
    SMALL,
    num_blocks=2,
    emb_size_atom=48,
    emb_size_edge=64,
    emb_size_trip_in=16,
    emb_size_trip_out=16,
    emb_size_quad_in=8,
    emb_size_quad_out=8,
    emb_size_aint_in=16,
    emb_size_aint_out=16,
    emb_size_rbf=8,
    emb_size_cbf=8,
    emb_size_sbf=8,
    num_before_skip=1,
    num_after_skip=1,
    num_atom=1,
    num_output_afteratom=1,
    num_atom_emb_layers=1,
    num_global_out_layers=1,
    num_radial=32,
    absolute_rbf_cutoff=6.0,
)
"""For demonstrations and tests: same architecture and all interactions, a few hundred thousand parameters.

Its 32 radial functions end at 6 Å, not at 12: spread over 12 Å they are too wide to tell bond lengths apart, and forces
on molecules hardly learn."""

PRESETS: dict[str, GemNetOCConfig] = {"tiny": TINY, "small": SMALL, "large": LARGE}


def preset(name: str, **changes: Any) -> GemNetOCConfig:
    """Return a named configuration, with fields replaced where wanted.

    Args:
        name: "tiny", "small" (JMP-S) or "large" (JMP-L).
        **changes: fields of `GemNetOCConfig` to replace, for example `direct_forces=False`.

    Raises:
        ValueError: the name is not a preset.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown model preset {name!r}: choose one of {', '.join(PRESETS)}")
    return replace(PRESETS[name], **changes)
