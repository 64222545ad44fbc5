import json
import lzma
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from ase.io import read

from jmp_data import open_dataset
from jmp_data.demo import DemoSummary, write_lmdb
from jmp_data.demo.generate import Progress
from tests import raw_archives
from tests.cli.run_cli import run, run_here

SOURCES = ["oc20", "oc22", "ani1x", "transition1x"]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return raw_archives.write_all(tmp_path_factory.mktemp("raw"))


@pytest.fixture(scope="module")
def shards(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards")
    outcome = run("jmp-data", "build", *SOURCES, "--raw", raw, "--out", out, "--workers", 1, "--json")
    assert outcome.code == 0, outcome.err
    built = json.loads(outcome.out)
    assert {entry["dataset"] for entry in built} == set(SOURCES)
    for entry in built:
        kept = entry["structures"] + sum(entry["quarantined"].values()) + sum(entry["skipped"].values())
        assert kept == entry["records_in"]
    return out


def test_verify_inspect_export(shards: Path, tmp_path: Path) -> None:
    assert run("jmp-data", "verify", shards).code == 0
    overview = json.loads(run("jmp-data", "inspect", shards / "oc20/train", "--json").out)
    assert overview["structures"] == 23
    structure = json.loads(run("jmp-data", "inspect", shards / "oc20/train", 7, "--json").out)
    expected = raw_archives.random_frames(1, 23)[7]
    assert structure["energy"] == expected.energy
    np.testing.assert_allclose(structure["forces"], expected.forces, rtol=1e-6)
    target = tmp_path / "some.extxyz"
    assert run("jmp-data", "export", shards / "oc20/train", target, "--stop", 5).code == 0
    exported = read(target, ":")
    assert [atoms.get_potential_energy() for atoms in exported] == [s.energy for s in raw_archives.random_frames(1, 5)]
    assert "exists" in run("jmp-data", "export", shards / "oc20/train", target).error_lines[0]
    assert run("jmp-data", "inspect", shards / "oc20/train", 10_000).code != 0


def test_mix_prints_the_rule_and_writes_a_file(shards: Path, tmp_path: Path) -> None:
    target = tmp_path / "mix.yaml"
    folders = [shards / name / "train" for name in SOURCES]
    outcome = run("jmp-data", "mix", *folders, "--temperature", 2, "--out", target, "--json")
    assert outcome.code == 0, outcome.err
    mixture = json.loads(outcome.out)
    sizes = np.array([len(open_dataset(folder)) for folder in folders])
    expected = np.sqrt(sizes / sizes.sum())
    found = [entry["probability"] for entry in mixture["datasets"]]
    np.testing.assert_allclose(found, expected / expected.sum(), rtol=1e-9)
    assert target.exists()


def test_list_and_info() -> None:
    names = [entry["name"] for entry in json.loads(run("jmp-data", "list", "--json").out)]
    assert names[:4] == SOURCES
    info = json.loads(run("jmp-data", "info", "ani1x", "--json").out)
    assert info["licence"]
    assert info["citation"]
    assert "nothing" in run("jmp-data", "info", "nothing").error_lines[0]


def test_demo_raw_counts_the_structures_of_all_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(directory: Path, *, seed: int, scale: float, progress: Progress) -> DemoSummary:
        for event in (("oc20", 40, 80), ("rmd17", 30, 30), ("oc20", 80, 80)):
            progress(*event)
        return DemoSummary(directory, (), 0.0)

    monkeypatch.setattr("jmp_data.demo.write_demo_raw", write)
    monkeypatch.setattr("jmp_cli.console._LOG_INTERVAL", 0.0)
    lines = [line.split(" after ")[0] for line in run_here("jmp-data", "demo-raw", tmp_path).err.splitlines()]
    assert lines[:3] == [f"demo data: {count} structures" for count in (40, 70, 110)]


@pytest.mark.parametrize("command", ["list", "info", "demo-raw", "build", "verify", "inspect", "mix", "export"])
def test_every_command_shows_an_example(command: str) -> None:
    outcome = run("jmp-data", command, "--help")
    assert outcome.code == 0
    assert f"jmp-data {command}" in outcome.out.split("Example:")[1]


def expect_refusal(outcome, *words: str) -> None:
    """Non-zero exit code, exactly one error line naming the words, no traceback."""
    assert outcome.code != 0
    assert "Traceback" not in outcome.err
    (line,) = outcome.error_lines
    for word in words:
        assert word in line, line


def build(raw: Path, out: Path, *sources: str, **options: object):
    extra = [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", value)]
    return run("jmp-data", "build", *sources, "--raw", raw, "--out", out, "--workers", 1, *extra)


def test_truncated_xz_keeps_what_is_readable_and_says_so(raw: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(raw / "s2ef_val_id", tmp_path / "raw" / "s2ef_val_id").parent
    victim = sorted(copy.rglob("0.extxyz.xz"))[0]
    content = lzma.decompress(victim.read_bytes())
    victim.write_bytes(lzma.compress(content)[: len(lzma.compress(content)) * 3 // 4])
    outcome = build(copy, tmp_path / "out", "oc20", format="zarr")
    expect_refusal(outcome, "0.extxyz.xz")
    manifest = open_dataset(tmp_path / "out/oc20/val_id").manifest
    assert manifest.num_structures + sum(manifest.quarantined.values()) == manifest.records_in == 7


def test_missing_txt(raw: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(raw / "s2ef_val_id", tmp_path / "raw" / "s2ef_val_id").parent
    sorted(copy.rglob("1.txt.xz"))[0].unlink()
    expect_refusal(build(copy, tmp_path / "out", "oc20"), "1.txt.xz")
    assert not (tmp_path / "out/oc20/val_id/manifest.json").exists()


def test_hdf5_without_the_needed_key(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    raw_archives.write_ani1x(tmp_path / "raw")
    with h5py.File(tmp_path / "raw/ani1x-release.h5", "r+") as file:
        name = sorted(file)[3]
        del file[name]["wb97x_dz.forces"]
    expect_refusal(build(tmp_path / "raw", tmp_path / "out", "ani1x"), "ani1x-release.h5", name)


def test_an_lmdb_record_of_an_unknown_class_is_set_aside_unexecuted(raw: Path, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    hostile = b"cos\nsystem\n(S'touch %s'\ntR." % str(marker).encode()
    folder = tmp_path / "raw/s2ef_total_train_val_test_lmdbs/data/oc22/s2ef-total/train"
    folder.mkdir(parents=True)
    frames = [raw_archives.demo.pickle_record(frame) for frame in raw_archives.random_frames(3, 4)]
    write_lmdb(folder / "data.0000.lmdb", [*frames[:2], hostile, *frames[2:]])
    outcome = build(tmp_path / "raw", tmp_path / "out", "oc22")
    assert outcome.code == 0, outcome.err
    assert "quarantined" in outcome.err
    manifest = open_dataset(tmp_path / "out/oc22/train").manifest
    assert manifest.num_structures == 4
    assert sum(manifest.quarantined.values()) == 1
    assert "data.0000.lmdb" in (tmp_path / "out/oc22/train/quarantine.jsonl").read_text()
    assert not marker.exists()


def test_nan_forces_are_quarantined_or_refused(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    raw_archives.write_ani1x(tmp_path / "raw", groups=1)
    with h5py.File(tmp_path / "raw/ani1x-release.h5", "r+") as file:
        group = next(iter(file.values()))
        forces = group["wb97x_dz.forces"][:]
        forces[4] = np.nan
        group["wb97x_dz.forces"][:] = forces
        name = group.name.strip("/")
    outcome = build(tmp_path / "raw", tmp_path / "out", "ani1x")
    assert outcome.code == 0
    assert "1 x" in outcome.err
    expect_refusal(build(tmp_path / "raw", tmp_path / "strict", "ani1x", on_error="fail"), "ani1x-release.h5", name)


def test_other_bad_input(raw: Path, shards: Path, tmp_path: Path) -> None:
    expect_refusal(build(tmp_path, tmp_path / "out", "ani1x"), "ani1x-release.h5")
    expect_refusal(build(raw, tmp_path / "out", "nosuch"), "nosuch")
    expect_refusal(build(raw, tmp_path / "out", "ani1x", part="5/3"), "5/3")
    expect_refusal(run("jmp-data", "verify", tmp_path), "no finished data set")
    expect_refusal(run("jmp-data", "mix", tmp_path / "nowhere"), "nowhere")
    content = bytearray((shards / "ani1x/train/forces/c/0/0/0").read_bytes())
    copy = shutil.copytree(shards / "ani1x/train", tmp_path / "damaged")
    content[len(content) // 3] ^= 1
    (copy / "forces/c/0/0/0").write_bytes(content)
    expect_refusal(run("jmp-data", "verify", copy), "shard 0", "forces")


def test_a_mixture_file_that_names_a_missing_data_set(shards: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(shards / "ani1x/train", tmp_path / "ani1x/train")
    assert run("jmp-data", "mix", copy, "--out", tmp_path / "mix.yaml").code == 0
    shutil.rmtree(copy)
    outcome = run(
        "jmp", "train", "pretrain", "--mix", tmp_path / "mix.yaml", "--model", "tiny", "--out", tmp_path / "run"
    )
    expect_refusal(outcome, "ani1x")
