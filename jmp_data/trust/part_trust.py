"""The trust pass of a build: parts examine their blocks and keep what the split needs, which is judged last."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numcodecs import Zstd

from jmp_data.schema import Block
from jmp_data.schema.validate import Rejection
from jmp_data.trust.flags import Flag
from jmp_data.trust.records import Finding, check_records
from jmp_data.trust.row_facts import ROW_FACTS, row_facts
from jmp_data.trust.split_checks import check_split
from jmp_data.trust.thresholds import TrustThresholds

Array = npt.NDArray[Any]

TRUST_FILE: Final = "trust.npz"
"""Facts, source ids and findings of one part, beside its shards."""
_NAMES: Final = Zstd(level=1)


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
        ids = np.concatenate([np.zeros(0, "S1"), *self._ids])
        buffer = io.BytesIO()
        # Hashes do not shrink, and NumPy's own way to compress names takes as long as a molecule's whole encoding.
        np.savez(
            buffer,
            facts=np.concatenate([np.zeros(0, ROW_FACTS), *self._facts]),
            ids=np.frombuffer(_NAMES.encode(ids.view(np.uint8)) if len(ids) else b"", np.uint8),
            id_bytes=ids.itemsize,
            found=np.frombuffer(found, np.uint8),
        )
        return buffer.getvalue()


def judge_split(
    parts: Sequence[Path], thresholds: TrustThresholds, locate: Callable[[Array], Array] | None = None
) -> list[Flag]:
    """All flags of a split: what its records show by themselves, and what they show beside each other.

    Args:
        parts: archives of all parts, in their final order.
        thresholds: of the source.
        locate: (n,) source ids → where these structures stand in the finished split; by default they keep their order.

    Returns:
        Flags by index, then by reason.
    """
    # Beside the parts there was room for the data set; the system's temporary folder may be in memory.
    scratch = parts[0].parent if parts else None
    starts = np.cumsum([0, *map(_count_facts, parts)])
    loaders = [partial(_load_facts, path) for path in parts]
    by_split = check_split(loaders, thresholds, total=int(starts[-1]), scratch=scratch)
    remarks: list[tuple[int, str, str, int | None]] = []
    wanted = np.unique([index for each in by_split for index in (each.index, each.earlier) if index is not None])
    names: dict[int, bytes] = {}
    for path, start, stop in zip(parts, starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        mine = wanted[(wanted >= start) & (wanted < stop)].astype(np.int64)
        with np.load(path, allow_pickle=False) as archive:
            found = json.loads(archive["found"].tobytes())
            ids = _load_ids(archive) if found or len(mine) else np.zeros(0, "S1")
        rows = np.unique([*mine, *(start + row for row, _, _ in found)]).astype(np.int64)
        names |= {row: bytes(ids[row - start]) for row in rows.tolist()}
        remarks += [(start + row, reason, text, None) for row, reason, text in found]
    remarks += [(each.index, each.reason, each.message, each.earlier) for each in by_split]
    places = {row: row for row in names}
    if locate is not None and names:
        places = dict(zip(names, locate(np.array(list(names.values()))).tolist(), strict=True))
    flags = [
        Flag(places[row], _text(names[row]), reason, text if earlier is None else f"{text} {_text(names[earlier])}")
        for row, reason, text, earlier in remarks
    ]
    return sorted(flags, key=lambda flag: (flag.index, flag.reason))


def _text(source_id: bytes) -> str:
    return source_id.decode(errors="replace")


def _load_ids(archive: Mapping[str, Array]) -> Array:
    return np.frombuffer(_NAMES.decode(archive["ids"].tobytes()), f"S{archive['id_bytes']}")


def _count_facts(path: Path) -> int:
    """Structures of a part, from the header of the array alone."""
    with zipfile.ZipFile(path) as archive, archive.open("facts.npy") as member:
        np.lib.format.read_magic(member)
        (count,), _, _ = np.lib.format.read_array_header_1_0(member)
    return int(count)


def _load_facts(path: Path) -> Array:
    with np.load(path, allow_pickle=False) as archive:
        facts: Array = archive["facts"]
    return facts
