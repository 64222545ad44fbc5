"""Water molecules with made-up labels, and blocks of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase.build import molecule

from jmp_data.schema import Block, Schema, Structure
from jmp_data.schema.fields import ENERGY, FORCES
from jmp_data.trust import TrustThresholds

OFF = TrustThresholds(
    on_top_distance=None,
    min_distance=None,
    max_force=None,
    max_net_force=None,
    force_outlier=None,
    energy_outlier=None,
    duplicates=False,
)


def water(seed: int, **changes: Any) -> Structure:
    random = np.random.default_rng(seed)
    atoms = molecule("H2O")
    forces = random.normal(size=(3, 3))
    values: dict[str, Any] = {
        "atomic_numbers": atoms.numbers,
        "positions": atoms.positions + random.normal(scale=0.03, size=(3, 3)),
        "energy": -2081.0 + random.normal(scale=0.05),
        "forces": forces - forces.mean(axis=0),
        "source_id": f"water#{seed}",
    }
    return Structure(**(values | changes))


def block_of(*structures: Structure) -> Block:
    return Block.from_structures(structures, Schema((ENERGY, FORCES)))


def only(**limits: Any) -> TrustThresholds:
    return OFF.model_copy(update=limits)
