"""Source manifests: the facts about a published data set, one YAML file each, checked when loaded.

A manifest holds what is known about files, units, splits and provenance, and says how well it is known; code holds how
to read them. Numbers that nobody could verify are marked, and no build fails because of one.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

import jmp_data
from jmp_data.errors import ManifestError
from jmp_data.schema.units import CODATA_2014, convert
from jmp_data.trust.thresholds import TrustThresholds

EnergyKind = Literal["total", "adsorption", "formation", "atomization", "none"]
Verification = Literal["real file", "real extract", "miniature"]

_DIGEST_LENGTHS = {"md5": 32, "sha256": 64}


class _Entry(BaseModel):
    """A part of a manifest: unknown keys are mistakes, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class FileEntry(_Entry):
    """One published file."""

    name: str
    """Where it goes below the raw folder, with forward slashes; the published name."""
    url: str
    """Preferred address."""
    mirrors: tuple[str, ...] = ()
    """Further addresses of the same bytes."""
    size: int | None = Field(default=None, gt=0)
    """Exact number of bytes, where known."""
    size_text: str = ""
    """The publisher's rounded size, packed and unpacked, where no exact one is known."""
    md5: str | None = None
    """Lower-case hexadecimal digest, where known."""
    sha256: str | None = None
    """Lower-case hexadecimal digest, where known."""
    digest_source: str = ""
    """Where the digest was read; third parties' digests have been wrong before."""
    unpack: Literal["none", "tar", "tar.gz", "tar.bz2", "zip"] = "none"
    """How the file is packed; it unpacks below the folder that holds it."""
    splits: tuple[str, ...] = ()
    """Splits that this file serves; empty for all."""
    parts: tuple[str, ...] = ()
    """Parts of the source (molecules, tasks, subsets) that this file serves; empty for all."""
    by_default: bool = True
    """Whether `jmp-data download SOURCE` fetches it when no split is named."""
    note: str = ""
    """What a user should know about this file."""

    @field_validator("url", "mirrors")
    @classmethod
    def _check_address(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for address in (value,) if isinstance(value, str) else value:
            if not address.startswith(("http://", "https://")):
                raise ValueError(f"{address!r} is no address; write http:// or https:// in full")
        return value

    @field_validator("name")
    @classmethod
    def _check_name(cls, value: str) -> str:
        path = PurePosixPath(value)
        if not value or path.is_absolute() or ".." in path.parts or "\\" in value:
            raise ValueError(f"{value!r} must be a path below the raw folder, with forward slashes")
        return value

    @model_validator(mode="after")
    def _check_digests(self) -> FileEntry:
        for kind, length in _DIGEST_LENGTHS.items():
            digest = getattr(self, kind)
            if digest is not None and not re.fullmatch(rf"[0-9a-f]{{{length}}}", digest):
                raise ValueError(f"{self.name}: {kind} must be {length} lower-case hexadecimal digits, got {digest!r}")
        if (self.md5 or self.sha256) and not self.digest_source:
            raise ValueError(f"{self.name}: say in digest_source where the digest was read")
        return self


class UnitsEntry(_Entry):
    """Units as published; on disk everything is in eV and Å."""

    positions: str
    """Unit of lengths."""
    energy: str = ""
    """Unit of energies; empty where there are none."""
    forces: str = ""
    """Unit of forces; empty where there are none."""
    force_sign: Literal["force", "gradient", "none"] = "force"
    """Whether the file holds forces or gradients, which are minus the forces."""
    energy_kind: EnergyKind = "total"
    """What the energy is relative to."""
    others: dict[str, str] = Field(default_factory=dict)
    """Units of further targets by their published names."""

    @model_validator(mode="after")
    def _check_units(self) -> UnitsEntry:
        for published, stored in ((self.positions, "Å"), (self.energy, "eV"), (self.forces, "eV/Å")):
            if published:
                convert(1.0, published, stored, CODATA_2014)
        return self


class SplitEntry(_Entry):
    """One output split."""

    name: str
    """Name of the output split."""
    rule: str
    """Where it comes from: `published`, or the rule that makes it."""
    count: int | None = Field(default=None, ge=0)
    """Structures in it, where known."""
    verified: bool = False
    """Whether the count is the publisher's own; an unverified one is only ever a warning."""


class RecordsEntry(_Entry):
    """How many structures the published files hold."""

    count: int = Field(gt=0)
    """In all files together."""
    verified: bool = False
    """Whether the count is the publisher's own."""
    note: str = ""
    """What is counted, and where the number comes from."""


class AtomsEntry(_Entry):
    """What structures hold."""

    elements: tuple[str, ...] = ()
    """Symbols, where the list is known."""
    smallest: int | None = Field(default=None, ge=1)
    """Atoms in the smallest structure."""
    largest: int | None = Field(default=None, ge=1)
    """Atoms in the largest structure."""
    mean: float | None = Field(default=None, gt=0)
    """Mean number of atoms."""
    verified: bool = False
    """Whether these figures are the publisher's own."""


class PublishedConstants(_Entry):
    """Normalisation of the JMP paper. Its linear element references were not published."""

    energy_std: float = Field(gt=0)
    """eV, of the energy that remains after the linear reference."""
    energy_mean: float = 0.0
    """eV, as applied: zero."""
    recorded_energy_mean: float | None = None
    """eV, as recorded by the authors and not applied."""
    force_std: float | None = Field(default=None, gt=0)
    """eV/Å, an RMS over components with mean zero; none where there are no forces."""


class GraphsEntry(_Entry):
    """Radius graphs that models are trained on with this set."""

    cutoff: float = Field(gt=0)
    """Å."""
    max_neighbors: int = Field(default=30, ge=4)
    """Of the main graph; the others follow as 20/30, 8/30 and 1000/30 of it."""


class SourceManifest(_Entry):
    """The facts about one published data set."""

    name: str
    """Name on the command line."""
    title: str
    """One line for people."""
    home: str
    """Where the publisher presents it."""
    licence: str
    """Licence of the data, as an SPDX identifier where there is one."""
    licence_note: str = ""
    """How the licence is known, where it is not stated by the publisher itself."""
    citation: str
    """Paper to cite."""
    doi: str
    """Of that paper."""
    level_of_theory: str
    """Method and basis set or code."""
    level_of_theory_note: str = ""
    """Which part of it is not confirmed."""
    layout: str
    """What the files hold, in a few sentences."""
    files: tuple[FileEntry, ...] = Field(min_length=1)
    """The published files."""
    units: UnitsEntry
    """Units and signs as published."""
    splits: tuple[SplitEntry, ...] = Field(min_length=1)
    """Output splits, train first."""
    parts: tuple[str, ...] = ()
    """Molecules, tasks or subsets, for a source that has several."""
    records: RecordsEntry | None = None
    """How many structures there are, where a number is known."""
    atoms: AtomsEntry = AtomsEntry()
    """What the structures hold."""
    jmp: PublishedConstants | None = None
    """Constants of the JMP paper, for its pre-training sets."""
    graphs: GraphsEntry | None = None
    """What `jmp-data build --graphs` stores; 12 Å where anything is periodic and 8 Å elsewhere if nothing is said."""
    trust: TrustThresholds = TrustThresholds()
    """Limits of the physical checks; the usual ones if nothing is said."""
    known_problems: tuple[str, ...] = ()
    """What goes wrong with these files, and what this project does about it."""
    verified_against: Verification
    """The best evidence that the reader was tried on."""
    verification_note: str = ""
    """What exactly was compared."""

    @model_validator(mode="after")
    def _check_names(self) -> SourceManifest:
        for what, names in (("split", [s.name for s in self.splits]), ("file", [f.name for f in self.files])):
            repeated = {name for name in names if names.count(name) > 1}
            if repeated:
                raise ValueError(f"{what} {sorted(repeated)} occurs twice; names must be unique")
        for entry in self.files:
            for what, given, known in (
                ("split", entry.splits, {split.name for split in self.splits}),
                ("part", entry.parts, set(self.parts)),
            ):
                if not set(given) <= known:
                    unknown = sorted(set(given) - known)
                    raise ValueError(f"file {entry.name} names {what} {unknown}; the manifest has {sorted(known)}")
        return self

    def files_for(self, *, splits: Collection[str] = (), part: str = "") -> tuple[FileEntry, ...]:
        """Files that some splits of a part need.

        Args:
            splits: names of splits; none for the files that are fetched by default.
            part: molecule, task or subset; empty for all of them.

        Raises:
            ManifestError: there is no such split or part.
        """
        unknown = sorted(set(splits) - {split.name for split in self.splits})
        if unknown:
            known = ", ".join(split.name for split in self.splits)
            raise ManifestError(f"{self.name} has no split {', '.join(unknown)}; choose from {known}")
        if part and part not in self.parts:
            raise ManifestError(f"{self.name} has no part {part!r}; choose from {', '.join(self.parts) or 'none'}")
        return tuple(
            entry
            for entry in self.files
            if (not part or not entry.parts or part in entry.parts)
            and (not entry.splits or bool(set(splits) & set(entry.splits)) if splits else entry.by_default)
        )

    def published_constants(self) -> dict[str, float]:
        """Normalisation of the paper as plain numbers; empty where there is none."""
        return {} if self.jmp is None else self.jmp.model_dump(exclude_none=True)


def manifest_folder() -> Path:
    """Where the manifests lie: package data in an installation, the top-level folder in a checkout."""
    package = Path(jmp_data.__file__).parent
    installed = package / "_manifests"
    return installed if installed.is_dir() else package.parent / "manifests"


def manifest_path(name: str) -> Path:
    """File of the manifest of a source.

    Raises:
        ManifestError: there is none.
    """
    path = manifest_folder() / "sources" / f"{name}.yaml"
    if not re.fullmatch(r"[a-z0-9_]+", name) or not path.is_file():
        known = ", ".join(sorted(entry.stem for entry in path.parent.glob("*.yaml")))
        raise ManifestError(f"no manifest for source {name!r}; there are {known}")
    return path


@lru_cache
def load_manifest(name: str) -> SourceManifest:
    """The manifest of a source.

    Raises:
        ManifestError: there is none, or it is malformed; the message names the file and the entry.
    """
    path = manifest_path(name)
    try:
        return parse_manifest(yaml.safe_load(path.read_text(encoding="utf-8")), name)
    except yaml.YAMLError as error:
        raise ManifestError(f"{path}: no valid YAML: {' '.join(str(error).split())}") from error
    except ManifestError as error:
        raise ManifestError(f"{path}: {error}") from error


def parse_manifest(content: Any, name: str) -> SourceManifest:
    """Check the content of a manifest.

    Args:
        content: what the YAML file holds.
        name: source that it should describe.

    Raises:
        ManifestError: an entry is missing, unknown or wrong.
    """
    try:
        manifest = SourceManifest.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the manifest"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise ManifestError(f"{where}: {first['msg'].removeprefix('Value error, ')}{more}") from error
    if manifest.name != name:
        raise ManifestError(f"name: it describes {manifest.name!r}, expected {name!r}")
    return manifest
