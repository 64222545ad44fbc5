"""`jmp-data download`: miniature archives of all ten sources from a real server to data sets, and a server's faults."""

from __future__ import annotations

import hashlib
import json
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from jmp_cli.data_app import app
from jmp_data import open_dataset
from jmp_data.manifests import load_manifest
from jmp_data.shards.integrity import find_datasets, verify_dataset
from tests import raw_archives
from tests.cli.run_cli import run
from tests.jmp_data.raw.faulty_server import Fault, FaultyServer, serve
from tests.jmp_data.sources.miniatures_crystals import (
    make_crystal,
    qmof_properties,
    qmof_structure,
    write_matbench,
    write_qmof_json,
)
from tests.jmp_data.sources.miniatures_qm9 import write_archive, write_uncharacterized, xyz_text
from tests.jmp_data.sources.miniatures_rmd17 import md22_arrays, write_index_lists, write_rmd17
from tests.jmp_data.sources.miniatures_spice import DIPEPTIDES, write_spice

BUILDS = {
    "oc20": "oc20",
    "oc22": "oc22",
    "ani1x": "ani1x",
    "transition1x": "transition1x",
    "qm9": "qm9",
    "rmd17": "rmd17:ethanol",
    "matbench": "matbench:mp_is_metal",
    "qmof": "qmof",
    "spice": "spice:dipeptides",
    "md22": "md22:AT-AT",
}


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with serve() as running:
        yield running


def write_raw(name: str, folder: Path) -> None:
    """The files of one source as its reader wants them, unpacked."""
    if name in ("oc20", "oc22", "ani1x", "transition1x"):
        folder.mkdir(parents=True, exist_ok=True)
        getattr(raw_archives, f"write_{name}")(folder)
    elif name == "qm9":
        write_archive(folder, {index: xyz_text(index) for index in range(1, 31)})
        write_uncharacterized(folder, [5, 6])
    elif name == "rmd17":
        write_rmd17(folder, "ethanol", 1200)
        write_index_lists(folder, 1200, 100)
    elif name == "matbench":
        write_matbench(folder, "mp_is_metal", "is_metal", [(make_crystal(seed), seed % 2 == 0) for seed in range(31)])
    elif name == "qmof":
        ids = [f"qmof-{number:07x}" for number in range(24)]
        write_qmof_json(
            folder,
            [qmof_properties(qmof_id, number) for number, qmof_id in enumerate(ids)],
            [qmof_structure(qmof_id, make_crystal(number)) for number, qmof_id in enumerate(ids)],
        )
    elif name == "spice":
        write_spice(folder, {f"ala-{number}": (DIPEPTIDES, 5 + number) for number in range(12)})
    else:
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / "md22_AT-AT.npz", **md22_arrays(3050, [7, 1, 1, 1]))


def pack(name: str, folder: Path) -> dict[str, bytes]:
    """The published files: what must be unpacked is packed, the rest is as it is."""
    packed: dict[str, bytes] = {}
    for entry in load_manifest(name).files:
        target = folder.parent / entry.name
        if entry.unpack == "none":
            found = list(folder.rglob(entry.name))
            if found:
                packed[entry.name] = found[0].read_bytes()
            continue
        stem = entry.name.split(".")[0]
        # A set of OC20 is an archive of its own; the other archives hold everything.
        inside = folder / stem if name == "oc20" else folder
        if not inside.exists() or (name == "qm9"):
            continue
        if entry.unpack == "zip":
            with zipfile.ZipFile(target, "w") as archive:
                for path in sorted(inside.rglob("*")):
                    archive.write(path, path.relative_to(folder).as_posix())
        else:
            with tarfile.open(target, "w:" + {"tar": "", "tar.gz": "gz", "tar.bz2": "bz2"}[entry.unpack]) as archive:
                for path in [inside] if inside != folder else sorted(folder.iterdir()):
                    archive.add(path, path.relative_to(folder).as_posix())
        packed[entry.name] = target.read_bytes()
    return packed


def publish(server: FaultyServer, name: str, folder: Path) -> Path:
    """Serve the miniature of a source; returns a copy of its manifest with these addresses, sizes and digests."""
    write_raw(name, folder / "original")
    contents = pack(name, folder / "original")
    manifest = load_manifest(name).model_dump(mode="json", exclude_none=True)
    files = []
    for entry in manifest["files"]:
        if entry["name"] in contents:
            content = contents[entry["name"]]
            digests = {"sha256": hashlib.sha256(content).hexdigest(), "md5": hashlib.md5(content).hexdigest()}
            address = server.put(f"/{name}/{entry['name']}", content)
            known = {"size": len(content), **digests, "digest_source": "this test", "by_default": True}
            files.append({**entry, **known, "url": address, "mirrors": []})
    assert files
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**manifest, "files": files}, allow_unicode=True), encoding="utf-8")
    return path


def command(*arguments: object) -> None:
    """A command in this process: a new one takes seconds to start."""
    app([str(argument) for argument in arguments], prog_name="jmp-data", standalone_mode=False)


@pytest.mark.parametrize("name", BUILDS)
def test_from_the_server_to_a_data_set(server: FaultyServer, tmp_path: Path, capsys, name: str) -> None:
    manifest = publish(server, name, tmp_path)
    raw, shards = tmp_path / "raw", tmp_path / "shards"
    command("download", manifest, "--raw", raw, "--json")
    report = json.loads(capsys.readouterr().out)
    assert {entry["status"] for entry in report["files"]} == {"downloaded"}
    assert report["sources"][0]["licence"]
    command("build", BUILDS[name], "--raw", raw, "--out", shards, "--workers", 1, "--json")
    built = json.loads(capsys.readouterr().out)
    assert built
    for entry in built:
        kept = entry["structures"] + sum(entry["quarantined"].values()) + sum(entry["skipped"].values())
        assert kept == entry["records_in"] > 0
    command("verify", shards, "--json")
    assert json.loads(capsys.readouterr().out)["damage"] == []
    command("inspect", built[0]["path"], 0, "--json")
    assert json.loads(capsys.readouterr().out)["source_id"]
    command("report", shards, "--out", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert all(entry["dataset"] in page for entry in built)
    assert "does not close" not in page
    capsys.readouterr()
    # Again: nothing is fetched or unpacked a second time.
    asked = len(server.requests)
    command("download", manifest, "--raw", raw, "--json")
    assert {entry["status"] for entry in json.loads(capsys.readouterr().out)["files"]} == {"kept"}
    assert len(server.requests) == asked


def test_a_mirror_stands_in_for_the_published_addresses(server: FaultyServer, tmp_path: Path) -> None:
    write_raw("md22", tmp_path / "original")
    server.put("/copies/md22_AT-AT.npz", (tmp_path / "original/md22_AT-AT.npz").read_bytes(), Fault(drop_after=2000))
    outcome = run("jmp-data", "download", "md22:AT-AT", "--mirror", f"{server.url}/copies/", "--raw", tmp_path / "raw")
    assert outcome.code == 0, outcome.err
    assert "licence: CC-BY-4.0" in outcome.out
    assert "eadf0873" in outcome.out
    assert "recorded when it comes" in outcome.out
    assert "md22_AT-AT.npz: retrying" in outcome.err
    assert (tmp_path / "raw/md22_AT-AT.npz").read_bytes() == server.files["/copies/md22_AT-AT.npz"]
    assert server.ranges("/copies/md22_AT-AT.npz") == [None, "bytes=2000-"]
    # The digest of the first time is binding now.
    (tmp_path / "raw/md22_AT-AT.npz").unlink()
    server.files["/copies/md22_AT-AT.npz"] = b"something else"
    outcome = run("jmp-data", "download", "md22:AT-AT", "--mirror", f"{server.url}/copies", "--raw", tmp_path / "raw")
    (line,) = outcome.error_lines
    assert outcome.code != 0
    assert "md22_AT-AT.npz" in line
    assert not (tmp_path / "raw/md22_AT-AT.npz").exists()


def test_published_digests_hold_for_a_mirror_too(server: FaultyServer, tmp_path: Path) -> None:
    server.put("/uncharacterized.txt", b"x" * 486752)
    outcome = run("jmp-data", "download", "qm9", "--mirror", server.url, "--raw", tmp_path / "raw")
    (line,) = outcome.error_lines
    assert outcome.code != 0
    assert "uncharacterized.txt" in line
    assert "instead of a361887bacb427b8a0ce7903d92a53b4" in line
    assert "dsgdb9nsd.xyz.tar.bz2" in line
    assert "404" in line
    assert [path.name for path in (tmp_path / "raw").iterdir()] == [".download"]


def test_a_dry_run_says_what_would_come_and_does_nothing(server: FaultyServer, tmp_path: Path) -> None:
    manifest = publish(server, "oc20", tmp_path)
    outcome = run("jmp-data", "download", manifest, "--split", "val_id", "--dry-run", "--raw", tmp_path / "raw")
    assert outcome.code == 0, outcome.err
    for words in ("s2ef_val_id.tar", "fetch, unpack", "sha256", "licence: CC-BY-4.0", "ACS Catal.", "free"):
        assert words in outcome.out
    assert "train_200K" not in outcome.out
    assert server.requests == []
    assert not (tmp_path / "raw").exists()
    plan: dict[str, Any] = json.loads(run("jmp-data", "download", manifest, "--dry-run", "--json").out)
    sizes = {entry["name"]: entry["size"] for entry in plan["files"]}
    assert sizes == {path: len(server.files[f"/oc20/{path}"]) for path in sizes}
    assert plan["missing_bytes"] == sum(sizes.values())


def test_without_extraction_only_the_archive_comes(server: FaultyServer, tmp_path: Path) -> None:
    manifest = publish(server, "oc20", tmp_path)
    command("download", manifest, "--raw", tmp_path / "raw", "--no-extract", "--split", "val_id")
    assert [path.name for path in (tmp_path / "raw").iterdir() if path.name[0] not in ".d"] == ["s2ef_val_id.tar"]
    command("download", manifest, "--raw", tmp_path / "raw", "--split", "val_id")
    assert (tmp_path / "raw/s2ef_val_id").is_dir()


def test_a_damaged_archive_leaves_nothing_unpacked(server: FaultyServer, tmp_path: Path) -> None:
    manifest = publish(server, "oc22", tmp_path)
    content = yaml.safe_load(manifest.read_text())
    (entry,) = content["files"]
    cut = server.files[f"/oc22/{entry['name']}"][:-500]
    server.files[f"/oc22/{entry['name']}"] = cut
    for key in ("md5", "sha256", "digest_source", "size"):
        entry.pop(key)
    manifest.write_text(yaml.safe_dump(content))
    outcome = run("jmp-data", "download", manifest, "--raw", tmp_path / "raw")
    (line,) = outcome.error_lines
    assert outcome.code != 0
    assert entry["name"] in line
    assert not (tmp_path / "raw/s2ef_total_train_val_test_lmdbs").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["oc21"], ["oc21", "ani1x"]),
        (["oc20", "--split", "nothing"], ["nothing", "train_2M"]),
        (["rmd17:caffeine"], ["caffeine", "aspirin"]),
        (["nowhere.yaml"], ["nowhere.yaml", "no such source manifest"]),
    ],
)
def test_bad_requests_are_one_line(arguments: list[str], words: list[str]) -> None:
    outcome = run("jmp-data", "download", *arguments, "--dry-run")
    (line,) = outcome.error_lines
    assert outcome.code != 0
    assert all(word in line for word in words)
    assert "Traceback" not in outcome.err


def test_a_manifest_of_own_data_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("name: mine\nfiles: [a.xyz]\n")
    outcome = run("jmp-data", "download", tmp_path / "my.yaml", "--dry-run")
    (line,) = outcome.error_lines
    assert "a user's own data need no download" in line


def test_the_downloaded_data_are_the_served_ones(server: FaultyServer, tmp_path: Path) -> None:
    manifest = publish(server, "oc20", tmp_path)
    command("download", manifest, "--raw", tmp_path / "raw")
    command("build", "oc20", "--raw", tmp_path / "raw", "--out", tmp_path / "shards", "--workers", 1)
    for split, seed, count in (("train", 1, 23), ("val_id", 2, 7)):
        dataset = open_dataset(tmp_path / "shards/oc20" / split)
        energies = [structure.energy for structure in dataset]
        assert energies == [frame.energy for frame in raw_archives.random_frames(seed, count)]
    assert all(verify_dataset(path) == [] for path in find_datasets(tmp_path / "shards"))
