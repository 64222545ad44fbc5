"""`manifest.json`: all about one split that is not an array. Written last; without it a folder is no data set."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import orjson

from jmp_data.errors import ManifestError
from jmp_data.schema import Schema
from jmp_data.shards.layout import FORMAT_VERSION, Format, Layout

MANIFEST_NAME = "manifest.json"
_SELF_DIGEST = "manifest_sha256"
_BLANK = "0" * 64


def _dump(entry: Mapping[str, Any]) -> bytes:
    # orjson: the manifest of 134 million structures lists 40,000 files, and opening may take a second.
    options = orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE
    return orjson.dumps(entry, default=tuple, option=options)


def _line(digest: str) -> bytes:
    return f'"{_SELF_DIGEST}": "{digest}"'.encode()


def sign(entry: Mapping[str, Any]) -> bytes:
    """Canonical JSON that carries the digest of itself, computed with the digest's own place blank."""
    blank = _dump({**entry, _SELF_DIGEST: _BLANK})
    return blank.replace(_line(_BLANK), _line(hashlib.sha256(blank).hexdigest()), 1)


def signature(payload: bytes) -> str:
    """The digest that signed JSON, or the beginning of it, carries of itself; "" where it is not in there."""
    _, name, after = payload.partition(f'"{_SELF_DIGEST}": "'.encode())
    return after[: len(_BLANK)].decode("ascii", "replace") if name else ""


def _is_intact(payload: bytes, digest: str) -> bool:
    blank = payload.replace(_line(digest), _line(_BLANK), 1)
    return hashlib.sha256(blank).hexdigest() == digest


@contextmanager
def parse_signed(payload: bytes, *, where: str) -> Iterator[dict[str, Any]]:
    """The entries of signed JSON; what goes wrong with them inside is said in one line as well.

    Raises:
        ManifestError: not what it should be, damaged, or of a newer format than this code reads.
    """
    try:
        entry = orjson.loads(payload)
        version = int(entry["format_version"])
        if version > FORMAT_VERSION:
            raise ManifestError(
                f"{where}: written in format version {version}, this code reads up to {FORMAT_VERSION}; "
                "upgrade jmp-data"
            )
        if not _is_intact(payload, str(entry[_SELF_DIGEST])):
            raise ManifestError(f"{where}: its own digest does not match; the file was edited or is damaged")
        yield entry
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, ManifestError):
            raise
        raise ManifestError(f"{where}: not a data set manifest ({type(error).__name__}: {error})") from error


class FileDigest(NamedTuple):
    """Size and SHA-256 of a stored or raw file; `[bytes, sha256]` in JSON."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """One shard: how much it holds, its files with digests, the raw files and the part it came from."""

    blocks: int
    structures: int
    atoms: int
    files: Mapping[str, FileDigest]
    part: str = ""
    raw_files: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> ShardRecord:
        """Inverse of `dataclasses.asdict`."""
        files = {name: FileDigest(*digest) for name, digest in entry["files"].items()}
        return cls(**{**entry, "files": files, "raw_files": tuple(entry["raw_files"])})


@dataclass(frozen=True, slots=True)
class DatasetManifest:
    """The manifest of one split.

    Attributes:
        name: data set name, for instance ani1x or rmd17:aspirin.
        split: split name.
        format: zarr or webdataset.
        schema: target fields.
        layout: block and shard capacities.
        shards: in order; block numbers run through them.
        files: the other files of the folder (natoms.npy, zarr.json, quarantine.jsonl ...) with digests.
        records_in: records that the raw files hold for this split: structures + quarantined + skipped.
        quarantined: reason → count.
        skipped: reason → count, records left out by a stated rule.
        flagged: reason → count, stored structures that look wrong; `flags.jsonl` lists them.
        raw_files: raw file → size and SHA-256.
        units: constant set used and the units on disk.
        references: fitted and published energy references and normalisers.
        statistics: counts per element, sizes, moments.
        provenance: source manifest digest, code version, licence, citation, split rule.
        graphs: settings of the stored radius graphs, how many edges there are, and their digest; empty without any.
        format_version: version of this layout.
        content_sha256: digest of schema and shard contents, graphs aside; equal digests mean equal data.
    """

    name: str
    split: str
    format: Format
    schema: Schema
    layout: Layout
    shards: tuple[ShardRecord, ...]
    files: Mapping[str, FileDigest] = field(default_factory=dict)
    records_in: int = 0
    quarantined: Mapping[str, int] = field(default_factory=dict)
    skipped: Mapping[str, int] = field(default_factory=dict)
    flagged: Mapping[str, int] = field(default_factory=dict)
    raw_files: Mapping[str, FileDigest] = field(default_factory=dict)
    units: Mapping[str, Any] = field(default_factory=dict)
    references: Mapping[str, Any] = field(default_factory=dict)
    statistics: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    graphs: Mapping[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION
    content_sha256: str = ""

    @property
    def num_structures(self) -> int:
        """Structures in all shards."""
        return sum(shard.structures for shard in self.shards)

    @property
    def num_atoms(self) -> int:
        """Atoms in all shards."""
        return sum(shard.atoms for shard in self.shards)

    @property
    def num_blocks(self) -> int:
        """Blocks in all shards."""
        return sum(shard.blocks for shard in self.shards)

    def to_bytes(self) -> bytes:
        """Canonical JSON with a digest of itself: the same manifest gives the same bytes."""
        entry = {name: getattr(self, name) for name in self.__slots__}
        entry |= {
            "schema": self.schema.to_json(),
            "layout": self.layout.to_json(),
            "shards": [asdict(shard) for shard in self.shards],
            "num_structures": self.num_structures,
            "num_atoms": self.num_atoms,
        }
        return sign(entry)

    @classmethod
    def from_bytes(cls, payload: bytes, *, where: str) -> DatasetManifest:
        """Parse a manifest.

        Raises:
            ManifestError: not a manifest, or a newer format than this code reads.
        """
        with parse_signed(payload, where=where) as entry:
            known = {name: entry[name] for name in cls.__slots__ if name in entry}
            known |= {
                "schema": Schema.from_json(entry["schema"]),
                "layout": Layout.from_json(entry["layout"]),
                "shards": tuple(ShardRecord.from_json(shard) for shard in entry["shards"]),
                "files": {name: FileDigest(*digest) for name, digest in entry["files"].items()},
                "raw_files": {name: FileDigest(*digest) for name, digest in entry["raw_files"].items()},
            }
            return cls(**known)
