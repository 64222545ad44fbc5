"""Sources by name, and that nothing heavy is loaded before one is asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from jmp_data.errors import ManifestError, MissingFileError
from jmp_data.sources import Source, expand_source, get_source, source_names
from tests.raw_archives import write_all

PRETRAINING = ("oc20", "oc22", "ani1x", "transition1x")


@pytest.mark.parametrize("name", PRETRAINING)
def test_every_source_keeps_the_protocol(name: str) -> None:
    source = get_source(name)
    assert isinstance(source, Source)
    assert source.name == name
    assert set(source.required) <= set(source.schema.names)


@pytest.mark.parametrize("name", PRETRAINING)
def test_no_source_takes_files_of_another(tmp_path: Path, name: str) -> None:
    raw = write_all(tmp_path / "raw")
    alone = get_source(name).splits(raw)
    assert alone[0] == "train"
    for path in sorted(raw.rglob("*"), reverse=True):
        mine = {"oc20": "s2ef_", "oc22": "s2ef_total", "ani1x": "ani1x", "transition1x": "Transition1x"}[name]
        top = path.relative_to(raw).parts[0]
        if path.is_file() and top.startswith(mine) and (name != "oc20" or "total" not in top):
            path.unlink()
    with pytest.raises(MissingFileError, match=name):
        get_source(name).splits(raw)


def test_pretraining_sources_come_first() -> None:
    assert source_names()[:4] == PRETRAINING


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ManifestError, match="oc20, oc22, ani1x, transition1x"):
        get_source("oc21")
    with pytest.raises(ManifestError, match="ani1x has no part 'dz'; it has no parts"):
        get_source("ani1x:dz")


def test_a_source_without_parts_stands_for_itself() -> None:
    assert expand_source("oc20") == ("oc20",)


def test_listing_loads_no_reader() -> None:
    code = (
        "import sys; from jmp_data.sources import source_names; source_names();"
        "print([m for m in ('h5py', 'numba', 'lmdb', 'torch') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
