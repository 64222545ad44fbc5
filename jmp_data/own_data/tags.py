"""Tags for atoms whose file has none: 0 bulk, 1 surface, 2 adsorbate."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import numpy as np

from jmp_data.own_data.records import Array, Record

TagsChoice = Literal["given", "all 2", "constraint", "layers"]

LAYER_GAP = 0.8
"""Å between atoms of one layer and the next along the surface normal; rumpled layers stay together."""


def choose_tags(record: Record, rule: TagsChoice, adsorbate_elements: Collection[int] = ()) -> Array | None:
    """(natoms,) integers by the rule; None where the rule is `given` and the record has none, or for `all 2`.

    Args:
        record: positions and cell in Å.
        rule: `constraint`: fixed atoms are bulk, free ones surface. `layers`: the topmost layer is surface, what lies
            below it bulk. With both, atoms of the adsorbate's elements that are not fixed are adsorbate.
        adsorbate_elements: atomic numbers.
    """
    if rule == "given":
        return None if record.tags is None else np.asarray(record.tags)
    if rule == "all 2":
        return None
    fixed = np.zeros(record.natoms, bool) if record.fixed is None else record.fixed
    adsorbate = np.isin(record.atomic_numbers, list(adsorbate_elements)) & ~fixed
    surface = ~fixed if rule == "constraint" else _topmost_layer(record, ~adsorbate)
    return np.where(adsorbate, 2, np.where(surface, 1, 0))


def _topmost_layer(record: Record, slab: Array) -> Array:
    """(natoms,) bool: slab atoms that no gap separates from the highest one."""
    surface = np.zeros(record.natoms, bool)
    if slab.any():
        heights = _heights(record, slab)
        order = np.flatnonzero(slab)[np.argsort(-heights[slab], kind="stable")]
        gaps = np.flatnonzero(-np.diff(heights[order]) > LAYER_GAP)
        surface[order[: gaps[0] + 1] if len(gaps) else order] = True
    return surface


def _heights(record: Record, slab: Array) -> Array:
    """(natoms,) heights along the surface normal, counted from the middle of the vacuum where the slab is periodic."""
    normal = np.cross(record.cell[0], record.cell[1])
    length = float(np.linalg.norm(normal))
    if length < 1e-6:
        return record.positions[:, 2]
    normal = normal / length
    height = float(normal @ record.cell[2])
    heights: Array = record.positions @ normal * (np.sign(height) or 1.0)
    if abs(height) < 1e-6:
        return heights
    heights = heights % abs(height)
    # The slab may lie across the boundary of the cell: the largest gap is the vacuum.
    ordered = np.sort(heights[slab])
    gaps = np.diff(ordered, append=ordered[0] + abs(height))
    widest = int(np.argmax(gaps))
    bottom = ordered[widest] + gaps[widest] / 2
    above: Array = (heights - bottom) % abs(height)
    return above
