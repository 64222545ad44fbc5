"""Source manifests: all load, agree with the code, and mistakes are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import jmp_data.manifests
from jmp_data.errors import ManifestError
from jmp_data.manifests import load_manifest, manifest_folder, manifest_path, parse_manifest
from jmp_data.raw.download_plan import RemoteFile
from jmp_data.sources import ani1x, get_source, oc20, oc22, transition1x

ROOT = Path(__file__).resolve().parents[2]
PRETRAINING = ["oc20", "oc22", "ani1x", "transition1x"]
MANIFESTS = sorted(path.stem for path in (manifest_folder() / "sources").glob("*.yaml"))


def content(name: str = "ani1x") -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(manifest_path(name).read_text(encoding="utf-8"))
    return loaded


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_manifest_loads_and_its_files_can_be_downloaded(name: str) -> None:
    manifest = load_manifest(name)
    assert manifest.splits[0].name.endswith("train")
    for entry in manifest.files:
        RemoteFile(entry.url, entry.name, entry.size, entry.md5, entry.sha256, entry.mirrors)


def test_the_pretraining_sources_have_manifests() -> None:
    assert set(PRETRAINING) <= set(MANIFESTS)


@pytest.mark.parametrize(
    ("name", "splits"),
    [
        ("oc20", ("train", *oc20.TRAIN_SETS, *oc20.VALIDATION_SETS)),
        ("oc22", oc22.SPLITS),
        ("ani1x", ("train", "val", "test")),
        ("transition1x", ("train", "val", "test")),
    ],
)
def test_splits_are_those_of_the_code(name: str, splits: tuple[str, ...]) -> None:
    assert tuple(split.name for split in load_manifest(name).splits) == splits


def test_file_names_are_those_of_the_code() -> None:
    assert load_manifest("ani1x").files[0].name == ani1x.FILE_NAME
    assert load_manifest("transition1x").files[0].name == transition1x.FILE_NAMES[0]
    names = {entry.name for entry in load_manifest("oc20").files}
    assert names == {f"s2ef_{split}.tar" for split in (*oc20.TRAIN_SETS, *oc20.VALIDATION_SETS)}


@pytest.mark.parametrize("name", PRETRAINING)
def test_published_constants_are_complete(name: str) -> None:
    constants = load_manifest(name).published_constants()
    assert set(constants) == {"energy_std", "energy_mean", "recorded_energy_mean", "force_std"}
    assert constants["energy_mean"] == 0.0
    assert get_source(name).schema["energy"].unit == "eV"


def test_files_for_a_split() -> None:
    manifest = load_manifest("oc20")
    assert [entry.name for entry in manifest.files_for()] == ["s2ef_train_2M.tar", "s2ef_val_id.tar"]
    assert [entry.name for entry in manifest.files_for(splits=["train_200K"])] == ["s2ef_train_200K.tar"]
    assert [entry.name for entry in manifest.files_for(splits=["train"])] == ["s2ef_train_all.tar"]
    assert len(load_manifest("oc22").files_for(splits=["val_ood"])) == 1
    with pytest.raises(ManifestError, match="no split val"):
        manifest.files_for(splits=["val"])
    with pytest.raises(ManifestError, match="no part 'a'"):
        manifest.files_for(part="a")


def test_files_for_a_part() -> None:
    raw = content()
    raw["parts"] = ["a", "b"]
    raw["files"] = [
        {"name": "a.h5", "url": "https://example.org/a", "parts": ["a"]},
        {"name": "b.h5", "url": "https://example.org/b", "parts": ["b"]},
        {"name": "both.txt", "url": "https://example.org/both"},
    ]
    manifest = parse_manifest(raw, "ani1x")
    assert [entry.name for entry in manifest.files_for(part="b")] == ["b.h5", "both.txt"]
    assert len(manifest.files_for()) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"licens": "MIT"}, "licens"),
        ({"licence": None}, "licence"),
        ({"name": "ani2x"}, "describes 'ani2x', expected 'ani1x'"),
        ({"units": {"positions": "Å", "energy": "furlong"}}, "unknown unit 'furlong'"),
        ({"units": {"positions": "eV"}}, "measure different things"),
        ({"files": []}, "files"),
        ({"files": [{"name": "../x", "url": "https://example.org"}]}, "below the raw folder"),
        ({"files": [{"name": "x", "url": "ftp://example.org"}]}, "http://"),
        ({"files": [{"name": "x", "url": "https://example.org", "md5": "abc"}]}, "32 lower-case"),
        ({"files": [{"name": "x", "url": "https://example.org", "md5": "0" * 32}]}, "digest_source"),
        ({"files": [{"name": "x", "url": "https://example.org", "splits": ["eval"]}]}, r"names split \['eval'\]"),
        ({"files": [{"name": "x", "url": "https://a.org"}] * 2}, "twice"),
    ],
)
def test_mistakes_are_named(change: dict[str, Any], message: str) -> None:
    raw = {key: value for key, value in {**content(), **change}.items() if value is not None}
    with pytest.raises(ManifestError, match=message):
        parse_manifest(raw, "ani1x")


def test_a_malformed_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / "broken.yaml").write_text("name: [")
    (tmp_path / "sources" / "empty.yaml").write_text("")
    monkeypatch.setattr(jmp_data.manifests, "manifest_folder", lambda: tmp_path)
    with pytest.raises(ManifestError, match=r"broken\.yaml: no valid YAML"):
        load_manifest("broken")
    with pytest.raises(ManifestError, match=r"empty\.yaml"):
        load_manifest("empty")
    with pytest.raises(ManifestError, match="there are broken, empty"):
        load_manifest("ani1x_")


def test_an_installed_package_finds_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = tmp_path / "jmp_data" / "_manifests"
    installed.mkdir(parents=True)
    monkeypatch.setattr(jmp_data, "__file__", str(tmp_path / "jmp_data" / "__init__.py"))
    assert manifest_folder() == installed
    installed.rmdir()
    assert manifest_folder() == tmp_path / "manifests"


@pytest.mark.parametrize("name", PRETRAINING)
def test_the_overview_repeats_the_manifests(name: str) -> None:
    manifest, overview = load_manifest(name), (ROOT / "docs" / "sources.md").read_text(encoding="utf-8")
    facts = [name, manifest.doi, manifest.licence, *(f"{entry.size:,}" for entry in manifest.files if entry.size)]
    facts += [f"{split.count:,}" for split in manifest.splits if split.count]
    assert not [fact for fact in facts if fact not in overview]
