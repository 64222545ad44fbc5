"""Settles what concerns the atoms themselves: unit of length, periodicity, tags."""

from __future__ import annotations

import numpy as np

from jmp_data.own_data.manifest import PbcRule
from jmp_data.own_data.plausibility import judge_length_unit
from jmp_data.own_data.sample import Sample
from jmp_data.own_data.tags import TagsChoice
from jmp_data.own_data.units import normalise_unit


def choose_length_unit(sample: Sample) -> str:
    """The unit of positions and cells."""
    verdict = judge_length_unit(sample.records)
    declared = sample.manifest.units.positions
    if declared != "auto":
        unit = normalise_unit(declared)
        if verdict.certain and verdict.unit != unit:
            sample.say("warning", "units.positions", f"declared {declared}, but {verdict.evidence}")
        return unit
    stated = normalise_unit(sample.inspection.stated.length)
    if stated:
        sample.say_stated("units.positions", stated)
        return stated
    # Files without a statement are in Å so nearly always that distances alone are no reason to rescale them.
    if verdict.unit != "Å":
        sample.say("warning", "units.positions", f"taken as Å, but {verdict.evidence}; declare the unit")
    return "Å"


def choose_pbc(sample: Sample) -> PbcRule:
    """The periodicity rule."""
    unstated = [record for record in sample.records if record.pbc is None]
    with_cell = sum(bool(np.asarray(record.cell).any()) for record in unstated)
    if sample.manifest.pbc == "given" and with_cell:
        text = f"periodic: {with_cell} of {len(sample.records)} sampled structures have a cell and say nothing of it"
        sample.say("guess", "pbc", text)
    return sample.manifest.pbc


def choose_tags_rule(sample: Sample) -> TagsChoice:
    """The rule for tags: as given where they mean what Open Catalyst means by them."""
    tagged = [record.tags for record in sample.records if record.tags is not None]
    values = sorted({int(tag) for tags in tagged for tag in np.unique(tags)})
    rule = sample.manifest.tags
    if rule == "auto":
        if not tagged:
            return "all 2"
        if not set(values) <= {0, 1, 2}:
            meant = "0 bulk, 1 surface, 2 adsorbate"
            sample.say("guess", "tags", f"all 2: the tags run from {values[0]} to {values[-1]} and cannot mean {meant}")
            return "all 2"
        rule = "given"
    if rule == "given":
        _state_given_tags(sample, len(tagged), values)
    if rule == "constraint" and all(record.fixed is None for record in sample.records):
        sample.say("warning", "tags", "no sampled structure has fixed atoms: everything becomes surface (1)")
    return rule


def _state_given_tags(sample: Sample, tagged: int, values: list[int]) -> None:
    if values in ([0], [1]):
        sample.say("note", "tags", f"all tags are {values[0]}: nothing is marked as adsorbate (2)")
    if tagged < len(sample.records):
        text = f"{len(sample.records) - tagged} of {len(sample.records)} sampled structures have none and get 2"
        sample.say("note", "tags", text)


def adsorbate_numbers(sample: Sample) -> tuple[int, ...]:
    """Atomic numbers of the declared adsorbate elements."""
    from ase.data import atomic_numbers

    return tuple(atomic_numbers[symbol] for symbol in sample.manifest.adsorbate_elements)
