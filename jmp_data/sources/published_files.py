"""Which published files a source needs, where they come from, and which of them must be unpacked before they are read.

Readers take most files as they are published; an archive whose manifest entry says `unpack` is unpacked beside itself,
which gives the layout that the reader looks for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import yaml

from jmp_data.errors import ManifestError, MissingFileError
from jmp_data.manifests import FileEntry, SourceManifest, load_manifest, parse_manifest
from jmp_data.raw.download_plan import RemoteFile
from jmp_data.raw.safe_archive import ArchiveMember, extract
from jmp_data.sources.facts import is_own_manifest


@dataclass(frozen=True, slots=True)
class WantedFiles:
    """The files of one source.

    Attributes:
        manifest: its manifest.
        files: those that are wanted, in the manifest's order.
    """

    manifest: SourceManifest
    files: tuple[FileEntry, ...]


def choose_files(names: Sequence[str], splits: Sequence[str] = ()) -> list[WantedFiles]:
    """The published files of some sources, each file once.

    Args:
        names: sources, `source:part` for the files of one part, or paths of source manifests (a copy of a packaged
            one with other addresses, sizes and digests).
        splits: splits whose files are wanted; those that each manifest fetches by default otherwise. With several
            sources, each needs to have only some of them.

    Raises:
        ManifestError: no such source, part or split, or no file serves it.
        MissingFileError: no such manifest file.
    """
    asked = [_open(name) for name in names]
    known = {split.name for manifest, _ in asked for split in manifest.splits}
    unknown = [split for split in splits if split not in known]
    if unknown:
        raise ManifestError(
            f"no split {', '.join(unknown)} in {', '.join(manifest.name for manifest, _ in asked)}; "
            f"choose from {', '.join(sorted(known))}"
        )
    chosen: dict[str, WantedFiles] = {}
    for manifest, part in asked:
        mine = [split for split in splits if split in {entry.name for entry in manifest.splits}]
        if splits and not mine:
            continue
        before = chosen[manifest.name].files if manifest.name in chosen else ()
        files = tuple(dict.fromkeys((*before, *manifest.files_for(splits=mine, part=part))))
        if not files:
            raise ManifestError(f"{manifest.name}: no published file serves {part or ', '.join(mine)}")
        chosen[manifest.name] = WantedFiles(manifest, files)
    return list(chosen.values())


def _open(name: str) -> tuple[SourceManifest, str]:
    """A manifest, and the part that is asked for."""
    if not is_own_manifest(name):
        source, _, part = name.partition(":")
        return load_manifest(source), part
    path = Path(name)
    if not path.is_file():
        raise MissingFileError(f"{path}: no such source manifest")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        stated = content.get("name", "") if isinstance(content, dict) else ""
        return parse_manifest(content, str(stated)), ""
    except (yaml.YAMLError, ManifestError) as error:
        hint = "a manifest of published files is needed; a user's own data need no download"
        raise ManifestError(f"{path}: {' '.join(str(error).split())}; {hint}") from error


def remote_file(entry: FileEntry, mirror: str = "") -> RemoteFile:
    """What a download is told about a file.

    Args:
        entry: from the manifest.
        mirror: address of a folder that holds the same bytes under the same names; then nothing else is asked. Size and
            digest of the manifest hold there too.
    """
    urls = (f"{mirror.rstrip('/')}/{quote(entry.name)}",) if mirror else (entry.url, *entry.mirrors)
    return RemoteFile(urls[0], entry.name, entry.size, entry.md5, entry.sha256, tuple(urls[1:]))


def unpack_files(
    files: Sequence[FileEntry], raw: Path, progress: Callable[[str, ArchiveMember], None] | None = None
) -> dict[str, list[Path]]:
    """Unpack those files that must be unpacked, each into the folder that it lies in.

    Args:
        files: entries of a manifest; all are there.
        raw: folder of the files.
        progress: called with the archive's name before each member.

    Returns:
        Archive name → what it unpacked to. What was unpacked before is not unpacked again.

    Raises:
        RawFileError: an archive is damaged or hostile; nothing of it is left then.
    """
    unpacked: dict[str, list[Path]] = {}
    for entry in files:
        if entry.unpack == "none":
            continue
        name, archive = entry.name, raw / entry.name
        report = None if progress is None else lambda member, name=name: progress(name, member)
        unpacked[name] = extract(archive, archive.parent, progress=report)
    return unpacked
