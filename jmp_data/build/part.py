"""Convert one part: read, check, set bad records aside, write shards, declare it finished; the same on every engine."""

from __future__ import annotations

import fcntl
import json
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np

from jmp_data.build.settings import PartJob
from jmp_data.errors import RawFileError
from jmp_data.references import StatisticsAccumulator
from jmp_data.schema import Block
from jmp_data.schema.validate import Rejection, check_block
from jmp_data.shards.assemble import QUARANTINE_FILE
from jmp_data.shards.atomic import write_atomic
from jmp_data.shards.staging import PartRecord, finish_part, load_part, part_folder, stage_shards
from jmp_data.sources import Item, Quarantined, Skipped
from jmp_data.trust.part_trust import TRUST_FILE, PartTrust


def _plain(value: Any) -> Any:
    """Arrays as JSON lists; NaN and infinities as strings, which JSON has no numbers for."""
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _record_text(block: Block, row: int) -> str:
    one = block.take(np.array([row]))
    return json.dumps({name: _plain(column) for name, column in one.columns.items()}, separators=(",", ":"))


class _Intake:
    """Sorts a source's items into good blocks, quarantine lines and counts."""

    def __init__(self, job: PartJob, required: tuple[str, ...]) -> None:
        self._job, self._required = job, required
        self._left = job.limit
        self.statistics = StatisticsAccumulator()
        self.trust = PartTrust(job.trust)
        self.quarantined: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()
        self.damaged: list[str] = []
        self.lines: list[str] = []

    def _set_aside(self, record: Quarantined) -> None:
        if self._job.settings.on_error == "fail":
            raise RawFileError(record.message)
        self.quarantined[record.reason] += 1
        entry = {name: value for name, value in asdict(record).items() if name != "damaged_file"}
        self.lines.append(json.dumps(entry, separators=(",", ":")))
        if record.damaged_file and record.message not in self.damaged:
            self.damaged.append(record.message)

    def _accept(self, block: Block) -> Block:
        rejections = check_block(block, self._required)
        self._reject(block, rejections)
        if rejections:
            good = np.ones(len(block), bool)
            good[[rejection.row for rejection in rejections]] = False
            block = block.take(good)
        believed, broken = self.trust.examine(block)
        self._reject(block, broken)
        self.statistics.add(believed)
        return believed

    def _reject(self, block: Block, rejections: list[Rejection]) -> None:
        for rejection in rejections:
            source_id = block.source_ids[rejection.row].decode()
            text = _record_text(block, rejection.row)
            self._set_aside(Quarantined(source_id, rejection.reason, rejection.message, text))

    def _take(self, item: Item) -> Item | None:
        """The item, cut to what the limit leaves."""
        if self._left is None:
            return item
        if self._left <= 0:
            return None
        count = len(item) if isinstance(item, Block) else item.count if isinstance(item, Skipped) else 1
        if isinstance(item, Block) and count > self._left:
            item = item.take(slice(0, self._left))
        self._left -= count
        return item

    def blocks(self, items: Iterator[Item]) -> Iterator[Block]:
        for whole in items:
            item = self._take(whole)
            if item is None:
                return
            if isinstance(item, Block):
                yield self._accept(item)
            elif isinstance(item, Skipped):
                self.skipped[item.reason] += item.count
            else:
                self._set_aside(item)


@contextmanager
def _part_lock(job: PartJob, key: str) -> Iterator[None]:
    """One process at a time converts a part, also after an engine gave up on a worker that is still alive."""
    folder = part_folder(job.dataset, key)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def convert_part(job: PartJob) -> PartRecord:
    """Convert one part, or return its record if an earlier run finished it.

    Raises:
        RawFileError: the raw file cannot be read at all, or the first bad record with `on_error="fail"`.
    """
    key = job.key
    with _part_lock(job, key):
        finished = load_part(job.dataset, key)
        if finished is not None:
            return finished
        source = job.settings.open_source(job.source)
        schema = source.schema if job.schema is None else job.schema
        intake = _Intake(job, source.required if job.required is None else job.required)
        shards = stage_shards(
            job.dataset,
            key,
            intake.blocks(source.read(job.raw, job.part)),
            schema=schema,
            layout=job.settings.layout,
            format=job.settings.format,
            raw_files=job.part.files,
            graphs=job.graph_layer,
        )
        if intake.lines:
            text = "".join(line + "\n" for line in intake.lines)
            write_atomic(part_folder(job.dataset, key) / QUARANTINE_FILE, text.encode())
        write_atomic(part_folder(job.dataset, key) / TRUST_FILE, intake.trust.to_bytes())
        record = PartRecord(
            key=key,
            shards=shards,
            raw_files=job.part.files,
            quarantined=dict(sorted(intake.quarantined.items())),
            skipped=dict(sorted(intake.skipped.items())),
            damaged_files=tuple(intake.damaged),
            statistics=intake.statistics.to_json(),
        )
        finish_part(job.dataset, record)
        return record
