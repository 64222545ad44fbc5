"""What a user is told about guesses, doubts and facts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

StatementKind = Literal["guess", "warning", "note"]
_LABELS = {"guess": "GUESSED ", "warning": "WARNING, ", "note": ""}


@dataclass(frozen=True, slots=True)
class Statement:
    """Something that the user should know.

    Attributes:
        kind: a `guess` of ours, a `warning` that something looks wrong, or a plain `note`.
        about: which entry of the manifest it concerns.
        text: with the evidence.
    """

    kind: StatementKind
    about: str
    text: str

    def __str__(self) -> str:
        return f"{_LABELS[self.kind]}{self.about}: {self.text}"
