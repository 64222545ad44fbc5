"""Find every damaged byte of a data set, and name it: shard, array, block.

Each file of a data set has a size and a SHA-256 in the manifest. A file that differs is then read chunk by chunk, so
the finding says which blocks are hit; bytes that no chunk covers (an index, padding) are reported with the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from jmp_data.errors import JmpDataError, MissingFileError, ShardError
from jmp_data.shards.dataset import BLOCKS_FILE, SHARDS_FILE, ShardDataset, open_dataset
from jmp_data.shards.formats import digest, digest_file
from jmp_data.shards.graph_layer.layout import BLOCKS_FILE as LAYER_BLOCKS_FILE
from jmp_data.shards.graph_layer.layout import is_layer_file
from jmp_data.shards.manifest import MANIFEST_NAME, DatasetManifest, FileDigest
from jmp_data.shards.staging import BUILD_FOLDER
from jmp_data.shards.summary import SUMMARY_FILE, DatasetSummary


@dataclass(frozen=True, slots=True)
class Damage:
    """One finding.

    Attributes:
        file: file name relative to the data set folder.
        shard: shard number, None for a file that belongs to no shard.
        message: what is wrong, naming array and block where known.
    """

    file: str
    shard: int | None
    message: str


def _compare(path: Path, expected: FileDigest) -> str | None:
    if not path.is_file():
        return "file is missing"
    size = path.stat().st_size
    if size != expected.bytes:
        return f"file has {size} bytes, expected {expected.bytes}"
    if digest_file(path).sha256 != expected.sha256:
        return "content does not match its digest"
    return None


def _damaged_blocks(dataset: ShardDataset, shard: int, file: str) -> list[str]:
    """Messages of all blocks of a shard that do not decode, for the array that a file holds (all arrays of a tar)."""
    first = sum(record.blocks for record in dataset.manifest.shards[:shard])
    blocks = range(first, first + dataset.manifest.shards[shard].blocks)
    if dataset.graph_layer is not None and is_layer_file(file):
        return dataset.graph_layer.damaged_blocks(blocks, file)
    if dataset.manifest.format == "webdataset":
        return [message for block in blocks for message in dataset.damaged_members(block)]
    columns = [name for name in [file.split("/")[0]] if name != "natoms"]
    return [str(error) for block in blocks if (error := _read_error(dataset, block, columns)) is not None]


def _read_error(dataset: ShardDataset, block: int, columns: list[str]) -> ShardError | None:
    try:
        dataset.read_block(block, columns)
    except ShardError as error:
        return error
    return None


def _check_shard(dataset: ShardDataset, root: Path, number: int) -> Iterator[Damage]:
    for name, expected in dataset.manifest.shards[number].files.items():
        problem = _compare(root / name, expected)
        if problem is None:
            continue
        messages = _damaged_blocks(dataset, number, name) if (root / name).is_file() else []
        array = "/".join(name.split("/")[: 2 if is_layer_file(name) else 1])
        blocks = f"blocks 0 to {dataset.manifest.shards[number].blocks - 1}"
        located = messages or [f"{root}: shard {number}, array {array}, {blocks}, file {name}: {problem}"]
        for message in located:
            yield Damage(name, number, message)


def verify_dataset(path: str | Path, progress: Callable[[int, int], None] = lambda done, total: None) -> list[Damage]:
    """Check every file of a local data set.

    Args:
        path: folder of one split.
        progress: called with (shards checked, shards).

    Returns:
        Findings, empty for a sound data set.

    Raises:
        MissingFileError: no data set there.
        ManifestError: the manifest itself is damaged.
    """
    root = Path(path)
    dataset = open_dataset(root)
    manifest = dataset.manifest
    findings = _check_manifest(root, manifest)
    for name, expected in manifest.files.items():
        problem = _compare(root / name, expected)
        if problem is not None:
            findings.append(Damage(name, None, f"{root}: file {name}: {problem}"))
    if not any(finding.file in (BLOCKS_FILE, LAYER_BLOCKS_FILE) for finding in findings):
        for number in range(len(manifest.shards)):
            findings += _check_shard(dataset, root, number)
            progress(number + 1, len(manifest.shards))
    return findings + _unknown_files(root, manifest)


def _check_manifest(root: Path, manifest: DatasetManifest) -> list[Damage]:
    payload = (root / MANIFEST_NAME).read_bytes()
    if payload != manifest.to_bytes():
        return [Damage(MANIFEST_NAME, None, f"{root}: {MANIFEST_NAME} was changed by hand or damaged")]
    summary = DatasetSummary.of(manifest, payload)
    # Earlier versions wrote no signature, and the first ones no summary either.
    problems = [
        _compare(root / SUMMARY_FILE, digest(form.to_bytes()))
        for form in (replace(summary, manifest_signature=""), summary)
    ]
    if None in problems or SHARDS_FILE not in manifest.files:
        return []
    problem = problems[-1]
    return [Damage(SUMMARY_FILE, None, f"{root}: file {SUMMARY_FILE}: {problem}")]


def _unknown_files(root: Path, manifest: DatasetManifest) -> list[Damage]:
    known = {MANIFEST_NAME, SUMMARY_FILE, *manifest.files, *(name for shard in manifest.shards for name in shard.files)}
    found = {
        file.relative_to(root).as_posix()
        for file in root.rglob("*")
        if file.is_file() and BUILD_FOLDER not in file.relative_to(root).parts
    }
    return [Damage(name, None, f"{root}: file {name} belongs to no shard") for name in sorted(found - known)]


def find_datasets(path: str | Path) -> list[Path]:
    """All finished data sets at or below a folder.

    Raises:
        MissingFileError: there are none.
    """
    root = Path(path)
    found = sorted(manifest.parent for manifest in root.rglob(MANIFEST_NAME) if BUILD_FOLDER not in manifest.parts)
    if not found:
        raise MissingFileError(f"{root}: no finished data set at or below this folder")
    return found


def damage_error(findings: list[Damage]) -> JmpDataError:
    """The findings as one error."""
    return ShardError(f"{len(findings)} damaged or missing: {findings[0].message}")
