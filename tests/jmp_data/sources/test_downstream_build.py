"""Each downstream source from a miniature archive in its published layout to a verified data set, and its manifest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jmp_data import open_dataset
from jmp_data.build import BuildSettings, choose_engine, plan_build, run_build
from jmp_data.errors import MissingFileError
from jmp_data.manifests import load_manifest
from jmp_data.shards.integrity import verify_dataset
from jmp_data.sources import expand_source, get_source
from jmp_data.sources.md22 import MD22, TRAIN_AND_VAL
from jmp_data.sources.protocol import Source
from jmp_data.sources.spice import Spice
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

DOWNSTREAM = ("qm9", "rmd17", "matbench", "qmof", "spice", "md22")
BUILDS = ("qm9", "rmd17:ethanol", "matbench:mp_is_metal", "qmof", "spice:dipeptides", "md22:AT-AT")


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    texts = {index: xyz_text(index) for index in range(1, 31)}
    texts[17] = texts[17][:100]
    write_archive(folder, texts)
    write_uncharacterized(folder, [5, 6])
    write_rmd17(folder, "ethanol", 1200)
    write_index_lists(folder, 1200, 100)
    np.savez(folder / "md22_AT-AT.npz", **md22_arrays(3050, [7, 1, 1, 1]))
    write_spice(folder, {f"ala-{number}": (DIPEPTIDES, 5 + number) for number in range(12)})
    write_matbench(folder, "mp_is_metal", "is_metal", [(make_crystal(seed), seed % 2 == 0) for seed in range(31)])
    ids = [f"qmof-{number:07x}" for number in range(24)]
    write_qmof_json(
        folder,
        [qmof_properties(qmof_id, number) for number, qmof_id in enumerate(ids)],
        [qmof_structure(qmof_id, make_crystal(number)) for number, qmof_id in enumerate(ids)],
    )
    return folder


@pytest.mark.parametrize("name", BUILDS)
def test_raw_to_verified_shards_with_counts_that_close(raw: Path, tmp_path: Path, name: str) -> None:
    builds = plan_build([name], raw, tmp_path, settings=BuildSettings())
    done = {split.manifest.split: split for split in run_build(builds, choose_engine(workers=1, scheduler=None), print)}
    assert tuple(done) == get_source(name).splits(raw)
    for split in done.values():
        manifest = split.manifest
        assert verify_dataset(split.dataset) == []
        assert manifest.records_in == (
            manifest.num_structures + sum(manifest.quarantined.values()) + sum(manifest.skipped.values())
        )
        assert manifest.records_in == sum(
            job.part.num_records for build in builds if build.split == manifest.split for job in build.jobs
        )
        dataset = open_dataset(split.dataset)
        assert len(dataset) == manifest.num_structures
        structure = dataset[0]
        assert structure.source_id
        known = {"energy", "forces"} if structure.energy is not None else set()
        for target in get_source(name).required:
            assert target in known or target in structure.targets


@pytest.mark.parametrize(
    ("name", "present", "some_absent"),
    [
        ("rmd17", "rmd17:ethanol", "aspirin, azobenzene"),
        ("matbench", "matbench:mp_is_metal", "jdft2d, phonons"),
        ("spice", "spice:dipeptides", "solvated_amino_acids, pubchem"),
        ("md22", "md22:AT-AT", "Ac-Ala3-NHMe, DHA"),
    ],
)
def test_a_source_without_its_part_means_the_parts_that_are_there(
    raw: Path, tmp_path: Path, name: str, present: str, some_absent: str
) -> None:
    notes: list[str] = []
    builds = plan_build([name], raw, tmp_path, settings=BuildSettings(), note=notes.append)
    assert {build.name for build in builds} == {present}
    (note,) = notes
    assert note.startswith(f"{name}: no files of {some_absent}")
    left_out = note.removeprefix(f"{name}: no files of ").partition(" below ")[0].split(", ")
    assert [f"{name}:{part}" for part in left_out] == [each for each in expand_source(name) if each != present]
    with pytest.raises(MissingFileError, match=f"{name}: no files of any of its parts"):
        plan_build([name], tmp_path, tmp_path, settings=BuildSettings())
    missing = f"{name}:{some_absent.partition(',')[0]}"
    with pytest.raises(MissingFileError, match=missing):  # a part named by itself must be there
        plan_build([missing], raw, tmp_path, settings=BuildSettings())


def test_what_is_left_out_of_qm9_is_counted(raw: Path, tmp_path: Path) -> None:
    builds = plan_build(["qm9"], raw, tmp_path, settings=BuildSettings())
    done = list(run_build(builds, choose_engine(workers=1, scheduler=None), print))
    assert sum(split.manifest.records_in for split in done) == 30
    assert sum(split.manifest.num_structures for split in done) == 27
    assert {reason for split in done for reason in split.manifest.quarantined} == {"malformed_record"}
    assert [split.manifest.skipped for split in done] == [{"uncharacterized": 2}, {}, {}]


def test_two_workers_write_the_same_bytes(raw: Path, tmp_path: Path) -> None:
    digests = []
    for workers in (1, 2):
        out = tmp_path / str(workers)
        builds = plan_build(["matbench:mp_is_metal"], raw, out, splits=["fold0_train"], settings=BuildSettings())
        list(run_build(builds, choose_engine(workers=workers, scheduler=None), print))
        files = [path for path in sorted(out.rglob("*")) if path.is_file() and ".build" not in path.parts]
        digests.append({path.relative_to(out): path.read_bytes() for path in files})
    assert digests[0] == digests[1]
    assert len(digests[0]) > 1


@pytest.mark.parametrize("name", DOWNSTREAM)
def test_manifests_agree_with_the_code(name: str, raw: Path) -> None:
    manifest = load_manifest(name)
    names = expand_source(name)
    assert manifest.parts == tuple(each.partition(":")[2] for each in names if ":" in each)
    known = {split.name for split in manifest.splits}
    for each in names:
        source = get_source(each)
        assert isinstance(source, Source)
        assert source.name == each
        assert set(source.required) <= set(source.schema.names)
    built = next(each for each in BUILDS if each.partition(":")[0] == name)
    assert set(get_source(built).splits(raw)) <= known
    on_request = [split.name for split in manifest.splits if split.rule.startswith("on request")]
    for split in on_request:
        assert get_source(built).plan(raw, split).parts


def test_published_file_names_are_what_the_readers_look_for() -> None:
    assert [entry.name for entry in load_manifest("md22").files] == [f"md22_{part}.npz" for part in TRAIN_AND_VAL]
    for part in MD22.parts:
        assert [entry.name for entry in load_manifest("md22").files_for(part=part)] == [f"md22_{part}.npz"]
    assert [entry.name for entry in load_manifest("matbench").files_for(part="mp_gap")] == ["matbench_mp_gap.json.gz"]
    assert [entry.name for entry in load_manifest("spice").files_for(part=Spice.parts[0])] == ["SPICE-1.1.4.hdf5"]
    assert [entry.name for entry in load_manifest("qm9").files_for()] == [
        "dsgdb9nsd.xyz.tar.bz2",
        "uncharacterized.txt",
    ]
