"""Settles which key is which label, in which unit and with which sign, as far as names and magnitudes tell."""

from __future__ import annotations

import numpy as np

from jmp_data.errors import ManifestError
from jmp_data.manifests import EnergyKind
from jmp_data.own_data.labels import LabelRule, Meaning
from jmp_data.own_data.manifest import OwnTarget
from jmp_data.own_data.plausibility import is_referenced, judge_energy_unit
from jmp_data.own_data.sample import Sample, number_of
from jmp_data.own_data.survey import KeyFacts, Role, find_role
from jmp_data.own_data.tags import TagsChoice
from jmp_data.own_data.units import factor_to_stored, normalise_unit, stored_unit
from jmp_data.schema import Field
from jmp_data.schema.fields import ENERGY, FORCES, STRESS, Level
from jmp_data.schema.units import CODATA_2014

PER_BOHR = {"hartree": "hartree/bohr", "rydberg": "rydberg/bohr"}
PER_ANGSTROM = {"hartree": "hartree/Å", "rydberg": "rydberg/Å"}
_PER_ANGSTROM_NAMES = ("wb97x_dz.", "wb97x_tz.")  # ANI-1x
_NONE = "none"


def choose_energy(sample: Sample) -> LabelRule | None:
    """The energy, or None where there is none."""
    key = _choose_key(sample, "energy")
    if key is None:
        sample.say("note", "keys.energy", "no energies")
        return None
    if key.endswith("free_energy"):
        sample.say("guess", "keys.energy", f"{key!r}, for there is no other; it contains the smearing's entropy")
    _compare_with_free_energy(sample, key)
    declared = sample.manifest.units.energy
    per_atom = declared.endswith("/atom")
    records, energies = sample.with_number(key)
    natoms = np.array([record.natoms for record in records])
    verdict = judge_energy_unit(records, energies * natoms if per_atom else energies)
    stated = sample.stated_unit(key)
    if declared != "auto":
        unit = normalise_unit(declared.removesuffix("/atom"))
        if verdict.certain and verdict.unit != unit:
            sample.say("warning", "units.energy", f"declared {declared}, but {verdict.evidence}")
    elif stated:
        unit = stated
        sample.say_stated("units.energy", stated)
    else:
        unit = verdict.unit
        sample.say("guess", "units.energy", f"{unit}: {verdict.evidence}")
    return LabelRule(ENERGY, key, unit, per_atom=per_atom)


def choose_forces(sample: Sample, energy: LabelRule | None) -> LabelRule | None:
    """The forces, or None where there are none."""
    key = _choose_key(sample, "forces")
    if key is None:
        sample.say("note", "keys.forces", "no forces")
        return None
    declared, stated = sample.manifest.units.forces, sample.stated_unit(key)
    base = "eV" if energy is None else energy.unit
    if declared != "auto":
        unit = normalise_unit(declared)
    elif stated:
        unit = stated
        sample.say_stated("units.forces", stated)
    elif base in PER_ANGSTROM and key.startswith(_PER_ANGSTROM_NAMES):
        unit = PER_ANGSTROM[base]
        sample.say("guess", "units.forces", f"{unit}: {key!r} is a name of ANI-1x, which is not per bohr")
    elif base in PER_BOHR:
        unit = PER_BOHR[base]
        text = f"{unit}, as quantum chemistry codes print; ANI-like sets have {PER_ANGSTROM[base]}, 1.89 times as much"
        sample.say("guess", "units.forces", f"{text}: check it")
    else:
        unit = f"{base}/Å"
        sample.say("guess", "units.forces", f"{unit}, to go with energies in {base}")
    return LabelRule(FORCES, key, unit, "gradient" if _is_gradient(sample, key) else "value")


def choose_stress(sample: Sample) -> LabelRule | None:
    """The stress, or None where there is none."""
    key = _choose_key(sample, "stress")
    if key is None:
        return None
    meaning: Meaning = "virial" if "virial" in key.lower() else "tension"
    if sample.manifest.stress_sign != "auto":
        meaning = sample.manifest.stress_sign
    else:
        text = "minus stress times volume" if meaning == "virial" else "positive is tension, as in ASE"
        sample.say("guess", "stress_sign", f"{meaning}, by the name of {key!r}: {text}")
    declared = sample.manifest.units.stress
    if declared != "auto":
        unit = normalise_unit(declared)
    else:
        unit = sample.stated_unit(key) or ("eV" if meaning == "virial" else "eV/Å³")
        sample.say("guess", "units.stress", f"{unit}, as ASE's users write it")
    if (stored_unit(unit) == "eV") != (meaning == "virial"):
        raise ManifestError(f"units.stress: {unit} does not fit stress_sign: {meaning}; a virial is in eV")
    return LabelRule(STRESS, key, unit, meaning, voigt=sample.manifest.voigt)


def choose_target(sample: Sample, name: str, entry: OwnTarget) -> LabelRule:
    """A further target.

    Raises:
        ManifestError: it is not there, is no number, or changes its shape.
    """
    key = entry.key or _find_target(sample, name)
    sample.require_key(f"targets.{name}", key)
    fact = sample.facts[key]
    if not fact.numeric:
        raise ManifestError(f"targets.{name}: {key!r} holds text such as {fact.example!r}, not numbers")
    level, shape = _level_and_shape(sample, name, entry, fact)
    unit = normalise_unit(entry.unit) or sample.stated_unit(key)
    if unit and not entry.unit:
        sample.say_stated(f"targets.{name}", unit)
    dtype = "int64" if fact.integer else "float64" if level == "structure" else "float32"
    field = Field(name, level, dtype, shape, stored_unit(unit), entry.kind, f"key {key}")
    return LabelRule(field, key, unit)


def choose_energy_kind(sample: Sample, energy: LabelRule | None, tags: TagsChoice) -> EnergyKind:
    """What the energy is relative to: small ones are no totals."""
    if energy is None:
        return "none"
    records, energies = sample.with_number(energy.key)
    natoms = np.array([record.natoms for record in records])
    energies = energies * factor_to_stored(energy.unit, CODATA_2014) * (natoms if energy.per_atom else 1)
    small = bool(records) and is_referenced(records, energies)
    declared = sample.manifest.energy_kind
    if declared != "auto":
        if small and declared == "total":
            sample.say("warning", "energy_kind", "declared total, but less than 1 eV per atom is no total energy")
        return declared
    if not small:
        return "total"
    seen = {int(tag) for record in records if record.tags is not None for tag in np.unique(record.tags)}
    kind: EnergyKind = "adsorption" if tags == "given" and {1, 2} <= seen else "formation"
    sample.say("guess", "energy_kind", f"{kind}: less than 1 eV per atom is no total energy")
    return kind


def _choose_key(sample: Sample, role: Role) -> str | None:
    """The key of a role: as declared, or the likeliest, with a statement where it is not the plain name."""
    declared: str = getattr(sample.manifest.keys, role)
    if declared == _NONE:
        return None
    if declared != "auto":
        sample.require_key(f"keys.{role}", declared)
        return declared
    found = find_role(role, sample.facts)
    if not found:
        return None
    others = [key for key in found[1:] if not key.endswith(f".{found[0]}")]
    beside = f"; not taken: {', '.join(others)}" if others else ""
    if found[0] != role or others:
        sample.say("guess", f"keys.{role}", f"{found[0]!r}{beside}")
    return found[0]


def _compare_with_free_energy(sample: Sample, key: str) -> None:
    both = [r for r in sample.records if key != "free_energy" and {key, "free_energy"} <= r.values.keys()]
    difference = max((abs(number_of(r, key) - number_of(r, "free_energy")) for r in both), default=0.0)
    if difference > 0:
        sample.say(
            "note",
            "keys.energy",
            f"{key!r} is taken, not 'free_energy'; they differ by up to {difference:.4g} (half the smearing entropy), "
            "and forces are consistent with the latter",
        )


def _is_gradient(sample: Sample, key: str) -> bool:
    if sample.manifest.force_sign != "auto":
        return sample.manifest.force_sign == "gradient"
    named = "grad" in key.lower()
    if named:
        sample.say("guess", "force_sign", f"gradient, by the name of {key!r}: forces are minus that")
    return named


def _find_target(sample: Sample, name: str) -> str:
    """The key of a target that is declared by its name alone, wherever it is kept."""
    return next((fact.key for fact in sample.facts.values() if name in (fact.key, fact.name)), name)


def _level_and_shape(sample: Sample, name: str, entry: OwnTarget, fact: KeyFacts) -> tuple[Level, tuple[int, ...]]:
    if fact.shape is None:
        raise ManifestError(f"targets.{name}: {fact.key!r} changes its shape from structure to structure")
    if entry.level in ("auto", fact.level):
        return fact.level, fact.shape
    sizes = {record.natoms for record in sample.records}
    if entry.level == "atom" or len(sizes) > 1:
        raise ManifestError(f"targets.{name}: {fact.key!r} is not one value for each {entry.level}")
    return "structure", (sizes.pop(), *fact.shape)
