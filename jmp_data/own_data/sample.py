"""The sampled records with the manifest they are judged by, and the statements made on the way."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jmp_data.errors import ManifestError
from jmp_data.own_data.inspection import Inspection
from jmp_data.own_data.manifest import OwnManifest
from jmp_data.own_data.records import Array, Record
from jmp_data.own_data.statements import Statement, StatementKind
from jmp_data.own_data.survey import KeyFacts, as_array, survey_keys
from jmp_data.own_data.units import normalise_unit


class Sample:
    """What choices are made from.

    Attributes:
        manifest: what the user declares.
        inspection: of the files.
        records: the sampled records.
        facts: their keys.
        statements: guesses, warnings and notes so far.
    """

    def __init__(self, manifest: OwnManifest, inspection: Inspection) -> None:
        self.manifest, self.inspection = manifest, inspection
        self.records: Sequence[Record] = inspection.records
        self.facts: dict[str, KeyFacts] = survey_keys(inspection.records)
        self.statements: list[Statement] = []

    def say(self, kind: StatementKind, about: str, text: str) -> None:
        """Make a statement."""
        self.statements.append(Statement(kind, about, text))

    def require_key(self, about: str, key: str) -> None:
        """Check that a declared key is there.

        Raises:
            ManifestError: no sampled record has it.
        """
        if key not in self.facts or not self.facts[key].count:
            raise ManifestError(
                f"{about}: no sampled structure has {key!r}; the keys are {', '.join(self.facts) or 'none at all'}"
            )

    def stated_unit(self, key: str) -> str:
        """The unit that the files state for a key; empty where they do not."""
        return normalise_unit(self.inspection.stated.by_key.get(key, ""))

    def say_stated(self, about: str, unit: str) -> None:
        """State a unit that comes from the files themselves."""
        self.say("guess", about, f"{unit}, from the {self.inspection.stated.where}")

    def with_number(self, key: str) -> tuple[list[Record], Array]:
        """Records that have a finite number under a key, and those numbers."""
        numbers = [number_of(record, key) for record in self.records]
        records = [record for record, number in zip(self.records, numbers, strict=True) if np.isfinite(number)]
        return records, np.array([number for number in numbers if np.isfinite(number)])


def number_of(record: Record, key: str) -> float:
    """One number of a record; NaN where it has none."""
    value = record.values.get(key)
    if value is None:
        return float("nan")
    array = as_array(value)
    return float(array.reshape(-1)[0]) if array.dtype.kind in "fiu" and array.size else float("nan")
