"""`summary.json`: what reading needs of the manifest, without its lists of shards and raw files, which grow.

It is used where it belongs to the manifest beside it, and only spares reading that; data sets of earlier versions have
none. The manifest remains what counts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jmp_data.schema import Schema
from jmp_data.shards.formats import digest_file
from jmp_data.shards.layout import FORMAT_VERSION, Format, Layout
from jmp_data.shards.manifest import DatasetManifest, FileDigest, parse_signed, sign, signature

SUMMARY_FILE = "summary.json"
_HASHED = 1 << 20
"""Bytes up to which a manifest is hashed at opening, so that this takes no longer for larger data sets."""
_BEGINNING = 1 << 16
"""Bytes of a manifest that hold its signature, unless many raw files were damaged: they are listed before it."""


@dataclass(frozen=True, slots=True)
class DatasetSummary:
    """What reading a split needs to know, see `DatasetManifest`.

    Attributes:
        name: data set name.
        split: split name.
        format: zarr or webdataset.
        schema: target fields.
        layout: block and shard capacities.
        num_structures: structures in all shards.
        num_atoms: atoms in all shards.
        num_blocks: blocks in all shards.
        manifest: size and digest of `manifest.json`.
        files: files that belong to no shard, with digests.
        references: fitted and published energy references and normalisers.
        graphs: facts about the stored radius graphs; empty without any.
        format_version: version of the layout.
        content_sha256: equal digests mean equal data.
        manifest_signature: the digest that the manifest carries of itself; "" in summaries of earlier versions.
    """

    name: str
    split: str
    format: Format
    schema: Schema
    layout: Layout
    num_structures: int
    num_atoms: int
    num_blocks: int
    manifest: FileDigest
    files: Mapping[str, FileDigest] = field(default_factory=dict)
    references: Mapping[str, Any] = field(default_factory=dict)
    graphs: Mapping[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION
    content_sha256: str = ""
    manifest_signature: str = ""

    @classmethod
    def of(cls, manifest: DatasetManifest, payload: bytes) -> DatasetSummary:
        """The summary of a manifest that is stored as `payload`."""
        values = {name: getattr(manifest, name) for name in cls.__slots__ if not name.startswith("manifest")}
        whole = FileDigest(len(payload), hashlib.sha256(payload).hexdigest())
        return cls(**values, manifest=whole, manifest_signature=signature(payload))

    def describes(self, manifest: Path) -> bool:
        """Whether a file is the manifest of this summary: by its content, or if it is long, by its size and signature.

        Damage further on in a long one is found where it is parsed.
        """
        size = manifest.stat().st_size
        if size != self.manifest.bytes:
            return False
        if size > _HASHED and self.manifest_signature:
            with manifest.open("rb") as file:
                found = signature(file.read(_BEGINNING))
            if found:
                return found == self.manifest_signature
        return digest_file(manifest) == self.manifest

    def to_bytes(self) -> bytes:
        """Canonical JSON with a digest of itself."""
        entry = {name: getattr(self, name) for name in self.__slots__}
        if not self.manifest_signature:
            del entry["manifest_signature"]
        return sign({**entry, "schema": self.schema.to_json(), "layout": self.layout.to_json()})

    @classmethod
    def from_bytes(cls, payload: bytes, *, where: str) -> DatasetSummary:
        """Parse a summary.

        Raises:
            ManifestError: not a summary, damaged, or of a newer format than this code reads.
        """
        with parse_signed(payload, where=where) as entry:
            known = {name: entry[name] for name in cls.__slots__ if name != "manifest_signature"}
            known |= {
                "schema": Schema.from_json(entry["schema"]),
                "layout": Layout.from_json(entry["layout"]),
                "manifest": FileDigest(*entry["manifest"]),
                "files": {name: FileDigest(*digest) for name, digest in entry["files"].items()},
                "manifest_signature": entry.get("manifest_signature", ""),
            }
            return cls(**known)
