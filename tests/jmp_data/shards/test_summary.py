"""Opening parses the summary instead of the manifest's long lists, wherever the two belong together."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from jmp_data.errors import ManifestError
from jmp_data.shards.dataset import SHARDS_FILE, open_dataset
from jmp_data.shards.integrity import verify_dataset
from jmp_data.shards.layout import FORMAT_VERSION
from jmp_data.shards.manifest import MANIFEST_NAME, DatasetManifest
from jmp_data.shards.summary import SUMMARY_FILE
from jmp_data.shards.write_dataset import write_dataset
from tests.structures import assert_same_structure, random_structures


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_dataset(random_structures(3, 50), tmp_path / "some" / "train")
    return tmp_path / "some" / "train"


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Manifests that were parsed."""
    seen: list[str] = []
    original = DatasetManifest.from_bytes.__func__  # type: ignore[attr-defined]

    def parse(cls: type[DatasetManifest], payload: bytes, *, where: str) -> DatasetManifest:
        seen.append(where)
        return original(cls, payload, where=where)

    monkeypatch.setattr(DatasetManifest, "from_bytes", classmethod(parse))
    return seen


def test_reading_parses_no_manifest(folder: Path, parsed: list[str]) -> None:
    dataset = pickle.loads(pickle.dumps(open_dataset(folder)))
    assert len(list(dataset)) == len(dataset) == 50
    assert dataset.num_blocks == 1
    assert parsed == []
    assert dataset.manifest.num_structures == 50
    assert len(parsed) == 1


def test_data_sets_of_earlier_versions_are_read_and_verified(folder: Path) -> None:
    good = list(open_dataset(folder))
    manifest = open_dataset(folder).manifest
    older = {name: digest for name, digest in manifest.files.items() if name != SHARDS_FILE}
    (folder / MANIFEST_NAME).write_bytes(replace(manifest, files=older).to_bytes())
    (folder / SHARDS_FILE).unlink()
    (folder / SUMMARY_FILE).unlink()
    for left, right in zip(open_dataset(folder), good, strict=True):
        assert_same_structure(left, right)
    assert verify_dataset(folder) == []


@pytest.mark.parametrize("change", ["flip", "truncate", "delete"])
def test_a_damaged_summary_is_found_and_not_believed(folder: Path, change: str) -> None:
    path, size = folder / SUMMARY_FILE, len(open_dataset(folder))
    payload = path.read_bytes()
    if change == "delete":
        path.unlink()
    else:
        count = b'"num_structures": 50'
        assert count in payload
        path.write_bytes(payload[:-9] if change == "truncate" else payload.replace(count, b'"num_structures": 51'))
    assert len(open_dataset(folder)) == size
    (finding,) = verify_dataset(folder)
    assert finding.file == SUMMARY_FILE


def test_the_summary_of_another_manifest_is_not_believed(folder: Path, parsed: list[str]) -> None:
    manifest = open_dataset(folder).manifest
    parsed.clear()
    (folder / MANIFEST_NAME).write_bytes(replace(manifest, name="other").to_bytes())
    assert open_dataset(folder).name == "other"
    assert len(parsed) == 1


def test_a_newer_manifest_is_refused_beside_a_summary(folder: Path) -> None:
    manifest = open_dataset(folder).manifest
    (folder / MANIFEST_NAME).write_bytes(replace(manifest, format_version=FORMAT_VERSION + 1).to_bytes())
    with pytest.raises(ManifestError, match="upgrade jmp-data"):
        open_dataset(folder)


def test_a_manifest_that_changes_under_an_open_data_set_is_refused(folder: Path) -> None:
    dataset = open_dataset(folder)
    (folder / MANIFEST_NAME).write_bytes(replace(open_dataset(folder).manifest, name="other").to_bytes())
    with pytest.raises(ManifestError, match="changed since"):
        _ = dataset.manifest


def test_damage_far_inside_of_a_long_manifest_is_found_where_it_is_parsed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jmp_data.shards.summary._HASHED", 0)
    path = folder / MANIFEST_NAME
    payload = path.read_bytes()
    assert payload.count(b'"shards": [') == 1
    path.write_bytes(payload.replace(b'"shards": [', b'"shardz": ['))
    dataset = open_dataset(folder)
    assert len(list(dataset)) == 50
    with pytest.raises(ManifestError, match="its own digest does not match"):
        _ = dataset.manifest


def test_a_summary_without_the_signature_of_its_manifest_is_used_and_sound(folder: Path, parsed: list[str]) -> None:
    older = replace(open_dataset(folder).summary, manifest_signature="")
    (folder / SUMMARY_FILE).write_bytes(older.to_bytes())
    assert b"signature" not in (folder / SUMMARY_FILE).read_bytes()
    assert open_dataset(folder).summary == older
    assert parsed == []
    assert verify_dataset(folder) == []


@pytest.mark.parametrize("hashed", [0, 1 << 20])
def test_a_manifest_of_the_same_size_but_another_content_is_not_taken_for_the_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, hashed: int
) -> None:
    monkeypatch.setattr("jmp_data.shards.summary._HASHED", hashed)
    manifest = open_dataset(folder).manifest
    other = replace(manifest, name="sane")
    (folder / MANIFEST_NAME).write_bytes(other.to_bytes())
    assert len(other.to_bytes()) == len(manifest.to_bytes())
    assert open_dataset(folder).name == "sane"
