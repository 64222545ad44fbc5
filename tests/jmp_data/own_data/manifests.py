"""Writes manifests of one split, in file order, and reads everything that they describe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from jmp_data.own_data import OwnData
from tests.jmp_data.sources.collecting import Collected, collect

WHOLE = {"by": "order", "fractions": {"train": 1.0}}


def write_manifest(path: Path, **entries: Any) -> Path:
    """A manifest with one split of everything, unless told otherwise."""
    content = {"name": "mine", "splits": WHOLE, **entries}
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return path


def read_all(folder: Path, *files: str | Path, **entries: Any) -> tuple[OwnData, Collected]:
    """The source and all its records; the counts are checked to close."""
    path = write_manifest(folder / "my.yaml", files=[str(file) for file in files], **entries)
    source = OwnData(path)
    return source, collect(source, folder, "train")


def notes_of(source: OwnData) -> str:
    """All statements of a plan."""
    return "\n".join(source.plan(source.home, source.splits(source.home)[0]).notes)
