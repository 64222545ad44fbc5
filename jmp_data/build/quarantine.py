"""What stands in a finished split's `quarantine.jsonl`, as far as a person needs it at the end of a build."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from jmp_data.shards.assemble import QUARANTINE_FILE


def first_messages(dataset: Path, reasons: Collection[str]) -> dict[str, str]:
    """Reason → message of the first record that was set aside for it, which names its raw file and place.

    Args:
        dataset: folder of the split.
        reasons: those that its manifest counts; reading ends when each has been met.
    """
    messages: dict[str, str] = {}
    path = dataset / QUARANTINE_FILE
    if not reasons or not path.exists():
        return messages
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            entry = json.loads(line)
            messages.setdefault(entry["reason"], entry["message"])
            if len(messages) == len(reasons):
                break
    return messages
