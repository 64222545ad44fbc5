"""Settles the sign of the forces, and their unit where only that is open, by the work between near frames."""

from __future__ import annotations

from dataclasses import replace

from jmp_data.own_data.force_sign import ForceSign, check_force_sign
from jmp_data.own_data.label_choice import PER_ANGSTROM
from jmp_data.own_data.labels import Gathered, LabelRule, Meaning, Resolved, convert_records
from jmp_data.own_data.sample import Sample
from jmp_data.schema import Block
from jmp_data.schema.units import CODATA_2014


def settle_forces(
    sample: Sample, energy: LabelRule, forces: LabelRule, length_unit: str
) -> tuple[LabelRule, ForceSign]:
    """Test the forces; what was guessed about them is corrected, what was declared is only doubted.

    Args:
        sample: its frames that are near to each other are what is tested.
        energy: rule of the energy.
        forces: rule of the forces as chosen so far.
        length_unit: of positions.

    Returns:
        The rule of the forces, and the outcome of the test.
    """
    sign = check_force_sign(_blocks(sample, energy, forces, length_unit))
    per_angstrom = PER_ANGSTROM.get(energy.unit)
    if sample.manifest.units.forces == "auto" and per_angstrom and sign.units_disagree:
        other = replace(forces, unit=per_angstrom)
        second = check_force_sign(_blocks(sample, energy, other, length_unit))
        if not second.units_disagree:
            sample.say("guess", "units.forces", f"{per_angstrom} after all, for so {second.evidence}")
            forces, sign = other, second
    if sign.verdict == "gradient" and sign.is_beyond_doubt and sample.manifest.force_sign == "auto":
        turned: Meaning = "value" if forces.meaning == "gradient" else "gradient"
        name = "force" if turned == "value" else turned
        sample.say("guess", "force_sign", f"{name}, for read the other way {sign.evidence}")
        return replace(forces, meaning=turned), sign
    _state(sample, sign)
    return forces, sign


def _state(sample: Sample, sign: ForceSign) -> None:
    if sign.verdict == "gradient":
        sample.say("warning", "force_sign", f"these look like gradients, not forces: {sign.evidence}")
    elif sign.verdict == "unclear":
        sample.say("warning", "force_sign", f"undecided: {sign.evidence}")
    elif sign.units_disagree:
        sample.say("warning", "force_sign", sign.evidence)
    else:
        sample.say("note", "force_sign", sign.evidence)


def _blocks(sample: Sample, energy: LabelRule, forces: LabelRule, length_unit: str) -> list[Block]:
    """The sampled records that have both labels, in eV and Å."""
    labels = tuple(replace(rule, required=True) for rule in (energy, forces))
    resolved = Resolved(labels, length_unit, pbc=sample.manifest.pbc, tags="all 2")
    gathered = [Gathered(record.label, record) for record in sample.records]
    return [item for item in convert_records(gathered, resolved, CODATA_2014) if isinstance(item, Block)]
