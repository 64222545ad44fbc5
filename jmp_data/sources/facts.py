"""Where a data set comes from, as output manifests record it: of a published set, or of a user's own YAML."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from jmp_data.manifests import load_manifest, manifest_path
from jmp_data.trust.thresholds import TrustThresholds

OWN_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """Provenance of a source.

    Attributes:
        manifest: name of its manifest's file.
        manifest_sha256: digest of that file.
        licence: of the data.
        citation: paper to cite.
        level_of_theory: method and basis set or code.
        energy_kind: what energies are relative to; `auto` where a user left it open.
        published: constants and references that come with the source.
        trust: limits of the physical checks.
    """

    manifest: str
    manifest_sha256: str
    licence: str
    citation: str
    level_of_theory: str
    energy_kind: str
    published: Mapping[str, Any] = field(default_factory=dict)
    trust: TrustThresholds = field(default_factory=TrustThresholds)


def is_own_manifest(name: str) -> bool:
    """Whether a source on the command line is a user's YAML file rather than the name of a published set."""
    return name.lower().endswith(OWN_SUFFIXES)


def source_facts(name: str) -> SourceFacts:
    """The facts of a source, by its name on the command line.

    Raises:
        ManifestError: there is no such source, or its manifest is malformed.
    """
    if is_own_manifest(name):
        facts: SourceFacts = import_module("jmp_data.own_data.source").own_facts(Path(name))
        return facts
    source = name.partition(":")[0]
    manifest = load_manifest(source)
    path = manifest_path(source)
    return SourceFacts(
        manifest=path.name,
        manifest_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        licence=manifest.licence,
        citation=manifest.citation,
        level_of_theory=manifest.level_of_theory,
        energy_kind=manifest.units.energy_kind,
        published=manifest.published_constants(),
        trust=manifest.trust,
    )
