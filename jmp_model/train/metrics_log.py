"""What a run logs: `metrics.jsonl`, the same as `training.csv` and `validation.csv`, and TensorBoard events."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch.utils.tensorboard import SummaryWriter

Kind = Literal["training", "validation"]
Row = dict[str, Any]

JSONL_FILE = "metrics.jsonl"


class MetricsLog:
    """Appends rows; a resumed run drops what lies after its checkpoint, so that no step is logged twice.

    Args:
        folder: run folder.
        start: step that the run starts or goes on from.
    """

    def __init__(self, folder: Path, start: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        kept = [row for row in read_rows(folder) if row["step"] <= start] if start else []
        self._write_all(kept)
        self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1 if start else None)

    def add(self, kind: Kind, step: int, values: Mapping[str, float]) -> None:
        """Append one row.

        Args:
            kind: which table.
            step: optimiser steps done.
            values: column → number; the first row of a table fixes its columns.
        """
        row: Row = {"kind": kind, "step": step, **values}
        with (self._folder / JSONL_FILE).open("a") as stream:
            stream.write(json.dumps({key: _plain(value) for key, value in row.items()}) + "\n")
        self._append_csv(row)
        for name, value in values.items():
            if math.isfinite(value):
                self._events.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Flush the TensorBoard events."""
        self._events.close()

    def _append_csv(self, row: Row) -> None:
        path = self._folder / f"{row['kind']}.csv"
        columns = [key for key in row if key != "kind"]
        is_new = not path.exists()
        with path.open("a", newline="") as stream:
            writer = csv.DictWriter(stream, columns, extrasaction="ignore")
            if is_new:
                writer.writeheader()
            writer.writerow(row)

    def _write_all(self, rows: list[Row]) -> None:
        (self._folder / JSONL_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
        for kind in ("training", "validation"):
            (self._folder / f"{kind}.csv").unlink(missing_ok=True)
        for row in rows:
            self._append_csv({key: math.nan if value is None else value for key, value in row.items()})


def read_rows(folder: Path, kind: Kind | None = None) -> list[Row]:
    """Rows of a run, in order; a last line that was cut off by a crash is left out."""
    path = folder / JSONL_FILE
    rows: list[Row] = []
    if not path.exists():
        return rows
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            break
        if kind is None or row["kind"] == kind:
            rows.append(row)
    return rows


def _plain(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
