"""`my.yaml`: what a user declares about files of their own; what is left at `auto` is guessed, and the guess stated."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from jmp_data.errors import ManifestError, MissingFileError
from jmp_data.manifests import EnergyKind
from jmp_data.own_data.formats import Format
from jmp_data.own_data.units import normalise_unit, stored_unit
from jmp_data.schema.fields import GEOMETRY_FIELDS, STANDARD_TARGETS, Kind, Level
from jmp_data.sources import source_names
from jmp_data.trust.thresholds import TrustThresholds

Auto = Literal["auto"]
SplitRule = Literal["auto", "structure", "composition", "file", "order", "key", "given"]
TagsRule = Literal["auto", "given", "all 2", "constraint", "layers"]
PbcRule = Literal["given", "true", "false"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_TARGET_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_RESERVED = {"natoms", "source_id", "pos", "batch", "ptr", "dataset_index", "structure_index", *STANDARD_TARGETS} | {
    field.name for field in GEOMETRY_FIELDS
}


class _Entry(BaseModel):
    """A part of the manifest: unknown keys are mistakes, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def _split_rank(name: str) -> tuple[int, str]:
    usual = ("train", "val", "test")
    return (usual.index(name) if name in usual else len(usual), name)


class OwnUnits(_Entry):
    """Units as they are in the files; on disk everything becomes eV and Å."""

    positions: str = "auto"
    """Unit of positions and cells."""
    energy: str = "auto"
    """Unit of energies; `eV/atom` where they are per atom."""
    forces: str = "auto"
    """Unit of forces."""
    stress: str = "auto"
    """Unit of stresses (eV/Å³, GPa, kbar), or of virials (eV)."""

    @model_validator(mode="after")
    def _check_units(self) -> OwnUnits:
        expected = {"positions": ("Å",), "energy": ("eV",), "forces": ("eV/Å",), "stress": ("eV/Å³", "eV")}
        for name, stored in expected.items():
            unit = getattr(self, name)
            plain = unit.removesuffix("/atom") if name == "energy" else unit
            if unit != "auto" and stored_unit(normalise_unit(plain)) not in stored:
                raise ValueError(f"{unit!r} is no known unit of {name}; write for instance {stored[0]} or auto")
        return self


class OwnKeys(_Entry):
    """Under which keys the files hold the labels; `none` where there are none."""

    energy: str = "auto"
    """Key of the energy."""
    forces: str = "auto"
    """Key of the forces, or of the gradient."""
    stress: str = "auto"
    """Key of the stress, or of the virial."""


class OwnTarget(_Entry):
    """A further target."""

    key: str = ""
    """Its key in the files; the target's own name by default."""
    unit: str = ""
    """Its unit; energies, lengths, charges and their products are converted to eV, Å and e, others are kept."""
    level: Level | Auto = "auto"
    """One value per structure or per atom."""
    kind: Kind = "intensive"
    """Whether it grows with the size of the system."""


class OwnTable(_Entry):
    """A CSV table with targets of structures that are one file each."""

    file: str
    """The table, relative to the manifest."""
    id: str = ""
    """Column with the names of the files; found by itself by default."""


class OwnSplits(_Entry):
    """How structures are divided among splits."""

    by: SplitRule = "auto"
    """`structure` at random, whole `composition`s, whole `file`s, whole groups with one value of a `key`, in the
    `order` of the files, or as `given` under `files`."""
    key: str = ""
    """For `by: key`."""
    fractions: dict[str, float] = Field(default={"train": 0.8, "val": 0.1, "test": 0.1})
    """Split → share of the structures."""
    seed: int = 0
    """Of the random choice."""
    files: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """For `by: given`: split → files, with `*` and `**`."""

    @model_validator(mode="after")
    def _check(self) -> OwnSplits:
        if (self.by == "given") != bool(self.files) and not (self.by == "auto" and self.files):
            raise ValueError("by: given and files: belong together")
        if (self.by == "key") != bool(self.key):
            raise ValueError("by: key and key: NAME belong together")
        for name in (*self.fractions, *self.files):
            if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
                raise ValueError(f"split {name!r}: use lower-case letters, digits and underscores")
        if not self.fractions or min(self.fractions.values()) <= 0 or abs(sum(self.fractions.values()) - 1) > 1e-6:
            raise ValueError(f"fractions must be positive and add up to 1, got {self.fractions}")
        return self

    @field_validator("fractions", "files")
    @classmethod
    def _order(cls, value: dict[str, Any]) -> dict[str, Any]:
        """The order in the YAML does not change who goes where."""
        return {name: value[name] for name in sorted(value, key=_split_rank)}


class OwnManifest(_Entry):
    """A user's own data set."""

    name: str
    """Name of the data set; output goes to OUT/NAME/SPLIT."""
    files: tuple[str, ...] = ()
    """Files, with `*` and `**`, relative to the manifest (or to --raw); a folder means all files in it."""
    format: Format | Auto = "auto"
    """Format of the files; `auto` looks at each."""
    table: OwnTable | None = None
    """Table of targets for structures that are one file each."""
    units: OwnUnits = OwnUnits()
    """Units as they are in the files."""
    keys: OwnKeys = OwnKeys()
    """Where the labels are."""
    force_sign: Literal["auto", "force", "gradient"] = "auto"
    """Whether the files hold forces, or gradients, which are minus the forces."""
    stress_sign: Literal["auto", "tension", "compression", "virial"] = "auto"
    """`tension` is ASE's sign, `compression` VASP's output; a `virial` is minus stress times volume."""
    voigt: Literal["ase", "vasp"] = "ase"
    """Order of six stress components: xx yy zz yz xz xy (ase) or xx yy zz xy yz zx (vasp)."""
    energy_kind: EnergyKind | Auto = "auto"
    """What the energy is relative to; never mix kinds under one name."""
    targets: dict[str, OwnTarget] = Field(default_factory=dict)
    """Further targets by the names they get."""
    required: tuple[str, ...] | Auto = "auto"
    """Labels without which a structure is set aside; `auto` takes those that all sampled structures have."""
    pbc: PbcRule = "given"
    """Periodicity; `given` takes a structure with a cell as periodic where its file does not say."""
    tags: TagsRule = "auto"
    """0 bulk, 1 surface, 2 adsorbate: as `given`, `all 2`, by `constraint` (fixed 0, free 1), or by `layers` (the
    topmost layer is 1, below it 0)."""
    adsorbate_elements: tuple[str, ...] = ()
    """With `constraint` and `layers`: elements whose free atoms are the adsorbate, tag 2."""
    splits: OwnSplits = OwnSplits()
    """How structures are divided."""
    trust: TrustThresholds = TrustThresholds()
    """Limits of the physical checks."""
    references: dict[str, float] = Field(default_factory=dict)
    """Energies of the elements (symbol → energy per atom, unit of the energy), recorded beside the fitted ones."""
    licence: str = "not stated"
    """Licence of the data."""
    citation: str = ""
    """What to cite."""
    level_of_theory: str = ""
    """Method and basis set or code."""

    @field_validator("files", mode="before")
    @classmethod
    def _accept_one_file(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("pbc", mode="before")
    @classmethod
    def _accept_flags(cls, value: Any) -> Any:
        return str(value).lower() if isinstance(value, bool) else value

    @field_validator("name")
    @classmethod
    def _check_name(cls, value: str) -> str:
        if not _NAME.fullmatch(value):
            raise ValueError(f"{value!r}: use letters, digits, dots, dashes and underscores")
        if value in source_names():
            raise ValueError(f"{value!r} is a published data set; choose another name")
        return value

    @model_validator(mode="after")
    def _check(self) -> OwnManifest:
        if not self.files and not self.splits.files:
            raise ValueError("files: names no files")
        for name in self.targets:
            if not _TARGET_NAME.fullmatch(name) or name in _RESERVED:
                raise ValueError(f"target {name!r}: use letters, digits and underscores, and no name of another column")
        known = {"energy", "forces", "stress", *self.targets}
        if self.required != "auto" and not set(self.required) <= known:
            raise ValueError(f"required names {sorted(set(self.required) - known)}; there are {sorted(known)}")
        _check_elements((*self.references, *self.adsorbate_elements))
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of what is declared; comments and layout of the YAML do not count."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def _check_elements(symbols: tuple[str, ...]) -> None:
    from ase.data import atomic_numbers

    unknown = [symbol for symbol in symbols if atomic_numbers.get(symbol, 0) < 1]
    if unknown:
        raise ValueError(f"no such element: {', '.join(unknown)}")


@dataclass(frozen=True, slots=True)
class LoadedManifest:
    """A manifest and its file.

    Attributes:
        path: the YAML file.
        manifest: what it declares.
        sha256: of the file.
    """

    path: Path
    manifest: OwnManifest
    sha256: str


def load_own_manifest(path: Path) -> LoadedManifest:
    """Read and check a manifest.

    Raises:
        MissingFileError: there is no such file.
        ManifestError: it is malformed; the message names the file and the entry.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        hint = "`jmp-data init-manifest FILES...` writes one"
        raise MissingFileError(f"{path}: cannot be read ({error.strerror}); {hint}") from error
    try:
        parsed = yaml.safe_load(content)
    except yaml.YAMLError as error:
        raise ManifestError(f"{path}: no valid YAML: {' '.join(str(error).split())}") from error
    try:
        return LoadedManifest(path, parse_own_manifest(parsed), hashlib.sha256(content).hexdigest())
    except ManifestError as error:
        raise ManifestError(f"{path}: {error}") from error


def parse_own_manifest(content: Any) -> OwnManifest:
    """Check the content of a manifest.

    Raises:
        ManifestError: an entry is missing, unknown or wrong.
    """
    if not isinstance(content, Mapping):
        raise ManifestError("holds no entries such as name: and files:")
    try:
        return OwnManifest.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        # A choice of several types appends the type that it tried.
        places = [str(place) for place in first["loc"] if "[" not in str(place)]
        where = ".".join(places) or "the manifest"
        entries = {entry["loc"][0] for entry in error.errors(include_url=False) if entry["loc"]}
        more = f" (and mistakes in {len(entries) - 1} more entries)" if len(entries) > 1 else ""
        raise ManifestError(f"{where}: {first['msg'].removeprefix('Value error, ')}{more}") from error
