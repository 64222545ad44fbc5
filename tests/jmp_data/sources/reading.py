"""Read a split of a source by name; every record comes out exactly once."""

from __future__ import annotations

from pathlib import Path

from jmp_data.schema.units import CODATA_2014, ConstantSet
from jmp_data.sources import get_source
from tests.jmp_data.sources.collecting import Collected, collect


def read_split(name: str, raw: Path, split: str, *, constants: ConstantSet = CODATA_2014) -> Collected:
    """`collect`, and a check that no identity occurs twice."""
    outcome = collect(get_source(name, constants=constants), raw, split)
    identities = [*outcome.ids, *(item.source_id for item in outcome.quarantined)]
    assert len(set(identities)) == len(identities)
    return outcome
