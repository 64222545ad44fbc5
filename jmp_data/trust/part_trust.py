"""The trust pass of a build: parts examine their blocks and keep what the split needs, which is judged last."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from jmp_data.schema import Block
from jmp_data.schema.validate import Rejection
from jmp_data.trust.flags import Flag
from jmp_data.trust.records import Finding, check_records
from jmp_data.trust.row_facts import ROW_FACTS, row_facts
from jmp_data.trust.split_checks import SplitFinding, check_split
from jmp_data.trust.thresholds import TrustThresholds

Array = npt.NDArray[Any]
PlacesOf = Callable[[Array], npt.NDArray[np.int64]]
"""(n,) source ids → (n,) places of these structures in the split."""

TRUST_FILE: Final = "trust.npz"
"""Facts, source ids and findings of one part, beside its shards."""


class PartTrust:
    """Examines the blocks of one part, in order."""

    def __init__(self, thresholds: TrustThresholds) -> None:
        self.thresholds = thresholds
        self._stored = 0
        self._facts: list[Array] = []
        self._ids: list[Array] = []
        self._found: list[Finding] = []

    def examine(self, block: Block) -> tuple[Block, list[Rejection]]:
        """The structures to store, and why the others are set aside.

        Args:
            block: structures that obey the hard rules, with source ids.
        """
        findings = check_records(block, self.thresholds)
        rejected: dict[int, Rejection] = {}
        for each in findings:
            if each.reason in self.thresholds.quarantine:
                name = block.source_ids[each.row].decode(errors="replace")
                rejected.setdefault(each.row, Rejection(each.row, each.reason, f"{name}: {each.message}"))
        place = np.arange(len(block))
        if rejected:
            good = np.ones(len(block), bool)
            good[list(rejected)] = False
            place = np.cumsum(good) - 1
            block = block.take(good)
        self._found += [
            Finding(self._stored + int(place[each.row]), each.reason, each.message)
            for each in findings
            if each.row not in rejected
        ]
        self._facts.append(row_facts(block))
        self._ids.append(block.source_ids)
        self._stored += len(block)
        return block, list(rejected.values())

    def to_bytes(self) -> bytes:
        """An archive for `judge_split`."""
        found = json.dumps([[each.row, each.reason, each.message] for each in self._found]).encode()
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            facts=np.concatenate([np.zeros(0, ROW_FACTS), *self._facts]),
            ids=np.concatenate([np.zeros(0, "S1"), *self._ids]),
            found=np.frombuffer(found, np.uint8),
        )
        return buffer.getvalue()


def judge_split(parts: Sequence[Path], thresholds: TrustThresholds, places: PlacesOf | None = None) -> list[Flag]:
    """All flags of a split: what its records show by themselves, and what they show beside each other.

    Args:
        parts: archives of all parts, in order.
        thresholds: of the source.
        places: where structures stand in the split, if not in the order of the parts.

    Returns:
        Flags by index, then by reason.
    """
    by_split = check_split([partial(_load_facts, path) for path in parts], thresholds)
    found: list[tuple[int, str, str]] = []
    names: dict[int, bytes] = {}
    starts = np.cumsum([0, *(len(_load_facts(path)) for path in parts)])
    wanted = np.unique([index for each in by_split for index in (each.index, each.earlier) if index is not None])
    for path, start, stop in zip(parts, starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        mine = wanted[(wanted >= start) & (wanted < stop)].astype(np.int64).tolist()
        with np.load(path, allow_pickle=False) as archive:
            by_itself = json.loads(archive["found"].tobytes())
            ids = archive["ids"] if by_itself or mine else np.zeros(0, "S1")
        found += [(start + row, reason, text) for row, reason, text in by_itself]
        rows = {*mine, *(start + row for row, _, _ in by_itself)}
        names |= {index: ids[index - start] for index in rows}
    place = _places_of(names, places)
    found += [(each.index, each.reason, _describe(each, names, place)) for each in by_split]
    flags = [Flag(place[index], _text(names[index]), reason, text) for index, reason, text in found]
    return sorted(flags, key=lambda flag: (flag.index, flag.reason))


def _places_of(names: Mapping[int, bytes], places: PlacesOf | None) -> dict[int, int]:
    if places is None or not names:
        return {index: index for index in names}
    return dict(zip(names, places(np.array(list(names.values()))).tolist(), strict=True))


def _describe(finding: SplitFinding, names: Mapping[int, bytes], place: Mapping[int, int]) -> str:
    if finding.earlier is None:
        return finding.message
    return f"{finding.message} structure {place[finding.earlier]}, {_text(names[finding.earlier])}"


def _text(source_id: bytes) -> str:
    return source_id.decode(errors="replace")


def _load_facts(path: Path) -> Array:
    with np.load(path, allow_pickle=False) as archive:
        facts: Array = archive["facts"]
    return facts
