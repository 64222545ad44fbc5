"""The tables of sources in `docs/` leave out nothing that the manifests know."""

from __future__ import annotations

from pathlib import Path

import pytest

from jmp_data.manifests import load_manifest
from jmp_data.sources import get_source, source_names

ROOT = Path(__file__).resolve().parents[3]
TEXT = "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("sources.md", "downstream-sources.md"))
EVIDENCE = {"real file": "real", "real extract": "real", "miniature": "iniature"}


@pytest.mark.parametrize("name", source_names())
def test_every_fact_of_the_manifest_is_in_the_tables(name: str) -> None:
    manifest = load_manifest(name)
    assert f"https://doi.org/{manifest.doi}" in TEXT
    assert manifest.licence.split()[0].removesuffix("-1.0") in TEXT
    for entry in manifest.files:
        assert entry.size is None or f"{entry.size:,}" in TEXT, entry.name
        for digest in ("md5", "sha256"):
            assert getattr(entry, digest) is None or digest in TEXT
    for split in manifest.splits:
        assert split.count is None or split.count <= 1000 or f"{split.count:,}" in TEXT, split.name
    if manifest.records is not None:
        assert f"{manifest.records.count:,}" in TEXT
    for part in manifest.parts:
        assert part in TEXT, part
    assert EVIDENCE[manifest.verified_against] in TEXT


@pytest.mark.parametrize("name", [name for name in source_names() if not load_manifest(name).parts])
def test_every_target_is_in_the_tables(name: str) -> None:
    named = [field.name for field in get_source(name).schema.targets if "_" not in field.name]
    assert [target for target in named if target not in TEXT] == []
