import itertools
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from jmp_data import open_dataset
from jmp_data.build import BuildSettings, choose_engine, plan_build, run_array_part, run_build, run_finalize, shuffle
from jmp_data.build.repair import repair_dataset
from jmp_data.errors import ManifestError
from jmp_data.graphs import PERIODIC
from jmp_data.shards.integrity import Damage, verify_dataset
from jmp_data.shards.layout import Layout
from tests import raw_archives
from tests.cli.run_cli import run
from tests.graph_structures import searched
from tests.jmp_data.build.test_build import tree
from tests.structures import assert_same_structure

SMALL = Layout(block_structures=4, block_atoms=64, blocks_per_shard=2)
SOURCES = ["oc20", "ani1x"]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return raw_archives.write_all(tmp_path_factory.mktemp("raw"))


@pytest.fixture(autouse=True)
def small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shuffle, "BUCKET_STRUCTURES", 20)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def planned(raw: Path, out: Path, seed=0, **options):
    settings = BuildSettings(layout=SMALL, shuffle=seed, **options)
    return plan_build(SOURCES, raw, out, settings=settings)


def build(raw: Path, out: Path, seed=0, workers=1, **options):
    done = []
    engine = choose_engine(workers=workers, scheduler=None)
    list(run_build(planned(raw, out, seed, **options), engine, done.append))
    return done


def ids(dataset) -> list[str]:
    return [structure.source_id for structure in dataset]


@pytest.mark.parametrize("format", ["zarr", "webdataset"])
def test_the_same_structures_in_another_order(raw: Path, tmp_path: Path, format: str) -> None:
    build(raw, tmp_path / "plain", seed=None, format=format)
    build(raw, tmp_path / "shuffled", format=format)
    for split in sorted((tmp_path / "plain").glob("*/*")):
        plain, mixed = open_dataset(split), open_dataset(tmp_path / "shuffled" / split.relative_to(tmp_path / "plain"))
        assert verify_dataset(mixed.path) == []
        assert Counter(ids(mixed)) == Counter(ids(plain))
        assert ids(mixed) != ids(plain) or len(plain) < 4
        by_id = {structure.source_id: structure for structure in plain}
        for structure in mixed:
            assert_same_structure(structure, by_id[structure.source_id])
        for fact in ("records_in", "quarantined", "statistics", "references", "raw_files"):
            assert getattr(mixed.manifest, fact) == getattr(plain.manifest, fact)


def test_the_order_is_that_of_the_keys(raw: Path, tmp_path: Path) -> None:
    """Worked out from the definition, for the whole split at once."""
    build(raw, tmp_path / "plain", seed=None)
    build(raw, tmp_path / "shuffled", seed=5)
    plain = open_dataset(tmp_path / "plain/ani1x/train")
    (job_of,) = [b.jobs for b in planned(raw, tmp_path / "shuffled", 5) if b.dataset.parts[-2:] == ("ani1x", "train")]
    keys = []
    for job, (_, shards) in zip(job_of, itertools.groupby(plain.manifest.shards, lambda s: s.part), strict=True):
        count = sum(shard.structures for shard in shards)
        keys.append(shuffle.structure_keys(5, shuffle.part_token(job), count))
    order = np.argsort(np.concatenate(keys), kind="stable")
    assert ids(open_dataset(tmp_path / "shuffled/ani1x/train")) == [ids(plain)[row] for row in order]


def test_bytes_depend_on_the_seed_alone(raw: Path, tmp_path: Path) -> None:
    build(raw, tmp_path / "one")
    build(raw, tmp_path / "two", workers=2)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    build(raw, tmp_path / "other", seed=1)
    assert ids(open_dataset(tmp_path / "other/ani1x/train")) != ids(open_dataset(tmp_path / "one/ani1x/train"))
    build(raw, tmp_path / "tar", format="webdataset")
    assert ids(open_dataset(tmp_path / "tar/ani1x/train")) == ids(open_dataset(tmp_path / "one/ani1x/train"))


def test_an_interrupted_shuffle_goes_on_and_a_finished_one_stays(raw: Path, tmp_path: Path, monkeypatch) -> None:
    build(raw, tmp_path / "whole")
    staged, real = [], shuffle._bucket

    def dies_at_the_third(ordered, job):
        if len(staged) == 2:
            raise KeyboardInterrupt
        staged.append(job.bucket)
        return real(ordered, job)

    monkeypatch.setattr(shuffle, "_bucket", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        build(raw, tmp_path / "broken")
    monkeypatch.setattr(shuffle, "_bucket", lambda ordered, job: staged.append(job.bucket) or real(ordered, job))
    assert any(part.reused for part in build(raw, tmp_path / "broken"))
    buckets = len(staged)
    assert tree(tmp_path / "broken") == tree(tmp_path / "whole")
    build(raw, tmp_path / "broken")
    assert len(staged) == buckets, "everything is there already"
    assert not list((tmp_path / "broken").glob("*/*/.build/ordered/*/c")), "the first pass is gone"


def test_a_job_array_gives_the_same(raw: Path, tmp_path: Path) -> None:
    build(raw, tmp_path / "whole")
    builds = planned(raw, tmp_path / "array")
    for number in (1, 2):
        run_array_part(builds, (number, 2), choose_engine(workers=1, scheduler=None), lambda done: None)
    list(run_finalize(builds))
    assert tree(tmp_path / "array") == tree(tmp_path / "whole")


def test_changed_raw_files_are_shuffled_again(raw: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(raw, tmp_path / "raw")
    build(copy, tmp_path / "out")
    victim = next(copy.rglob("0.txt.xz"))
    os.utime(victim, (1, 1))
    before = tree(tmp_path / "out")
    assert build(copy, tmp_path / "out") == []  # touched, but the same
    assert tree(tmp_path / "out") == before


def test_graphs_are_those_of_the_new_order(raw: Path, tmp_path: Path) -> None:
    build(raw, tmp_path, graphs="main")
    dataset = open_dataset(tmp_path / "oc20/train")
    for number in range(dataset.num_blocks):
        stored, expected = dataset.read_graphs(number)["main"], searched(dataset.read_block(number), PERIODIC)["main"]
        assert np.array_equal(stored.edge_index, expected.edge_index)


def test_repair_is_refused_in_one_line(raw: Path, tmp_path: Path) -> None:
    build(raw, tmp_path)
    with pytest.raises(ManifestError, match=r"--shuffle.*same bytes"):
        repair_dataset(tmp_path / "oc20/train", raw, [Damage("x", 0, "x")])


def test_on_the_command_line(raw: Path, tmp_path: Path) -> None:
    arguments = ["build", "ani1x", "--raw", raw, "--out", tmp_path, "--workers", 1, "--split", "train"]
    assert run("jmp-data", *arguments, "--shuffle", "--seed", 3).code == 0
    assert open_dataset(tmp_path / "ani1x/train").manifest.provenance["build"]["shuffle"] == 3
