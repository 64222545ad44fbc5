"""From a manifest and a look at the files to settled choices, with a statement for every guess and every doubt.

What the manifest declares is taken; what it leaves at `auto` is guessed from the sample. A statement says what was
guessed and on what evidence, or what in the sample speaks against a declaration. Nothing is guessed in silence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from jmp_data.manifests import EnergyKind
from jmp_data.own_data.force_sign import ForceSign
from jmp_data.own_data.geometry_choice import adsorbate_numbers, choose_length_unit, choose_pbc, choose_tags_rule
from jmp_data.own_data.inspection import Inspection
from jmp_data.own_data.label_choice import (
    choose_energy,
    choose_energy_kind,
    choose_forces,
    choose_stress,
    choose_target,
)
from jmp_data.own_data.labels import LabelRule, Resolved
from jmp_data.own_data.manifest import OwnManifest
from jmp_data.own_data.sample import Sample
from jmp_data.own_data.sign_choice import settle_forces
from jmp_data.own_data.statements import Statement
from jmp_data.own_data.survey import KeyFacts
from jmp_data.schema.fields import STANDARD_TARGETS


@dataclass(frozen=True, slots=True)
class Choices:
    """The settled choices.

    Attributes:
        resolved: what turns records into columns.
        energy_kind: what the energy is relative to.
        force_sign: outcome of the test on neighbouring frames; None without energies or forces.
        facts: the keys of the sample.
        statements: guesses, warnings, notes.
    """

    resolved: Resolved
    energy_kind: EnergyKind
    force_sign: ForceSign | None
    facts: dict[str, KeyFacts]
    statements: tuple[Statement, ...]


def resolve(manifest: OwnManifest, inspection: Inspection) -> Choices:
    """Settle everything.

    Raises:
        ManifestError: a declared key is in no sampled record, or its values fit no column.
    """
    sample = Sample(manifest, inspection)
    length = choose_length_unit(sample)
    energy = choose_energy(sample)
    forces, sign = choose_forces(sample, energy), None
    if energy is not None and forces is not None:
        forces, sign = settle_forces(sample, energy, forces, length)
    found = [rule for rule in (energy, forces, choose_stress(sample)) if rule is not None]
    targets = [choose_target(sample, name, entry) for name, entry in manifest.targets.items()]
    labels = [_settle_missing(sample, rule) for rule in (*found, *targets)]
    _state_optional(sample, labels)
    tags = choose_tags_rule(sample)
    resolved = Resolved(
        labels=tuple(labels),
        length_unit=length,
        pbc=choose_pbc(sample),
        tags=tags,
        adsorbate_elements=adsorbate_numbers(sample),
        unexpected=_unexpected(sample, labels),
    )
    kind = choose_energy_kind(sample, energy, tags)
    _state_what_is_left_out(sample, labels)
    _state_unreadable(sample)
    return Choices(resolved, kind, sign, sample.facts, tuple(sample.statements))


def _settle_missing(sample: Sample, rule: LabelRule) -> LabelRule:
    """Whether a record without the label is set aside, or gets NaN, which only floats can hold."""
    required = sample.manifest.required
    have, count = sample.facts[rule.key].count, len(sample.records)
    needed = have == count if required == "auto" else rule.field.name in required
    field = rule.field
    if not needed and np.dtype(field.dtype).kind != "f":
        field = replace(field, dtype="float64")
    return replace(rule, field=field, required=needed)


def _state_optional(sample: Sample, labels: Sequence[LabelRule]) -> None:
    optional = [f"{rule.field.name} ({sample.facts[rule.key].count})" for rule in labels if not rule.required]
    if optional and sample.manifest.required == "auto":
        text = f"not all of {len(sample.records)} sampled structures have {', '.join(optional)}; the others get NaN"
        sample.say("guess", "required", text)


def _unexpected(sample: Sample, labels: Sequence[LabelRule]) -> tuple[str, ...]:
    """Standard labels that were looked for and not found: a record that has one all the same is not stripped of it."""
    have = {rule.field.name for rule in labels}
    keys = sample.manifest.keys
    return tuple(
        name
        for name in STANDARD_TARGETS
        if name not in have and getattr(keys, name) == "auto" and name not in sample.facts
    )


def _state_what_is_left_out(sample: Sample, labels: Sequence[LabelRule]) -> None:
    left = [fact for key, fact in sample.facts.items() if key not in {rule.key for rule in labels}]
    numbers = ", ".join(fact.key for fact in left if fact.numeric)
    others = ", ".join(fact.key for fact in left if not fact.numeric)
    if numbers:
        sample.say("note", "targets", f"not taken (name them under targets: to keep them): {numbers}")
    if others:
        sample.say("note", "targets", f"no numbers, left out: {others}")


def _state_unreadable(sample: Sample) -> None:
    unreadable = sample.inspection.unreadable
    if unreadable:
        name, first = unreadable[0]
        total = len(unreadable) + len(sample.records)
        where = f"{name}: record {first.label}: {first.message}"
        sample.say("warning", "files", f"{len(unreadable)} of {total} sampled records cannot be read; {where}")
