"""Unit names as people and programs write them, and what each becomes on disk."""

from __future__ import annotations

import re

from jmp_data.errors import ManifestError
from jmp_data.schema.units import CODATA_2014, ConstantSet, convert

KBAR_IN_GPA = 0.1
_STORED = ("eV", "Å", "eV/Å", "eV/Å³", "e·Å", "e·Å²", "Å²", "Å³", "e")
_NAMES = {
    "ha": "hartree",
    "eh": "hartree",
    "hartrees": "hartree",
    "ry": "rydberg",
    "ang": "Å",
    "angstrom": "Å",
    "angstroms": "Å",
    "a": "Å",
    "d": "debye",
    "ev": "eV",
    "mev": "meV",
    "electronvolt": "eV",
    "bohrs": "bohr",
    "gpa": "GPa",
    "hartree": "hartree",
    "rydberg": "rydberg",
    "bohr": "bohr",
    "a0": "bohr",
    "debye": "debye",
}
_KILOCALORIES = re.compile(r"kcal\s*(?:/|per|\*\s*)\s*mol", re.IGNORECASE)
_KILOJOULES = re.compile(r"kj\s*(?:/|per|\*\s*)\s*mol", re.IGNORECASE)
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9]*")


def normalise_unit(text: str) -> str:
    """The spelling that `jmp_data.schema.units` knows: `Ha/Bohr` becomes `hartree/bohr`; unknown words stay."""
    text = text.strip().replace("**", "^").replace("*", "·").replace("kcal·mol^-1", "kcal/mol").replace(" ", "")
    text = _KILOJOULES.sub("kJ/mol", _KILOCALORIES.sub("kcal/mol", text))
    kept = {"kcal/mol": "\0", "kJ/mol": "\1", "cm^-1": "\2"}
    for name, mark in kept.items():
        text = text.replace(name, mark)
    text = _WORD.sub(lambda match: _NAMES.get(match[0].lower(), match[0]), text)
    for name, mark in kept.items():
        text = text.replace(mark, name)
    return text


def stored_unit(unit: str) -> str:
    """The unit on disk of a quantity in a known unit: a combination of eV, Å and e; the unit itself otherwise."""
    if unit == "kbar":
        return "eV/Å³"
    for stored in _STORED:
        try:
            convert(1.0, unit, stored, CODATA_2014)
        except ManifestError:
            continue
        return stored
    return unit


def factor_to_stored(unit: str, constants: ConstantSet) -> float:
    """What one `unit` is worth in `stored_unit(unit)`; 1 for a unit that is kept as it is."""
    if unit == "kbar":
        return convert(KBAR_IN_GPA, "GPa", "eV/Å³", constants)
    stored = stored_unit(unit)
    return 1.0 if stored == unit else convert(1.0, unit, stored, constants)
