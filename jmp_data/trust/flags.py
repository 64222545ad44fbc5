"""`flags.jsonl`: stored structures that look wrong, each with its place, its raw record, a reason and the evidence."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

FLAGS_FILE: Final = "flags.jsonl"


@dataclass(frozen=True, slots=True)
class Flag:
    """One remark about one stored structure.

    Attributes:
        index: of the structure in its split.
        source_id: raw file and record.
        reason: code, for counting.
        message: evidence in words.
    """

    index: int
    source_id: str
    reason: str
    message: str


def count_flags(flags: Iterable[Flag]) -> dict[str, int]:
    """Reason → flags, in alphabetic order."""
    return dict(sorted(Counter(flag.reason for flag in flags).items()))


def flags_to_bytes(flags: Iterable[Flag]) -> bytes:
    """One line of JSON a flag."""
    return b"".join(json.dumps(asdict(flag), separators=(",", ":")).encode() + b"\n" for flag in flags)


def read_flags(dataset: str | Path) -> list[Flag]:
    """The flags of a built split.

    Args:
        dataset: its folder. A split without flags has none of these files.
    """
    path = Path(dataset) / FLAGS_FILE
    if not path.exists():
        return []
    return [Flag(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def flagged_rows(flags: Sequence[Flag], reasons: Collection[str] = ()) -> npt.NDArray[Any]:
    """Indices of flagged structures, ascending, each once: an exclusion list for a mixture.

    Args:
        flags: of one split.
        reasons: which to take; all by default.
    """
    return np.unique(np.array([flag.index for flag in flags if not reasons or flag.reason in reasons], np.int64))
