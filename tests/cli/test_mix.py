"""`jmp-data mix` as a user runs it; what it must say is worked out by hand from the sizes."""

import json
from pathlib import Path

import numpy as np
import pytest

from jmp_data import Mixture, Structure, write_dataset
from jmp_data.stream import BatchLimits, StreamLoader, simulate
from tests.cli.run_cli import run
from tests.jmp_data.shards.loopback import serve

SIZES = {"small/train": 30, "small/val": 10, "large/train": 120}


def structures(count, seed):
    rng = np.random.default_rng(seed)
    for number in range(count):
        natoms = int(rng.integers(1, 9))
        yield Structure(
            atomic_numbers=np.where(rng.random(natoms) < 0.1, 26, 6) if number % 2 else np.full(natoms, 8),
            positions=rng.normal(size=(natoms, 3)) * 5,
            energy=float(number),
            forces=rng.normal(size=(natoms, 3)),
        )


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    for seed, (name, size) in enumerate(SIZES.items()):
        write_dataset(structures(size, seed), root / name)
    return root


def mixed(*arguments: object):
    """The JSON report of a run that works."""
    outcome = run("jmp-data", "mix", *arguments, "--json")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    return report, {row["dataset"]: row for row in report["datasets"]}


def refused(*arguments: object) -> str:
    """The one error line of a run that does not."""
    outcome = run("jmp-data", "mix", *arguments)
    assert outcome.code != 0
    assert "Traceback" not in outcome.err
    (line,) = outcome.error_lines
    return line


def test_a_folder_of_data_sets_means_the_train_split_of_each(shards: Path, tmp_path: Path) -> None:
    report, rows = mixed(shards, "--out", tmp_path / "mix.yaml")
    assert {name: row["structures"] for name, row in rows.items()} == {"large": 120, "small": 30}
    assert rows["small"]["repeats"] == pytest.approx(2.0)  # (120 / 30)^(1 - 1/2)
    assert report["epoch_size"] == Mixture.load(tmp_path / "mix.yaml").epoch_size == 180


def test_weights_and_repeats(shards: Path, tmp_path: Path) -> None:
    places = [shards / "small", shards / "large"]
    report, rows = mixed(*places, "--weights", "small=1,large=3", "--out", tmp_path / "mix.yaml")
    # 1/4 against 30 of 150, 3/4 against 120 of 150: factors 5/4 and 15/16, hence 4/3 visits of a small one.
    assert [rows[name]["probability"] for name in ("small", "large")] == [0.25, 0.75]
    assert (rows["small"]["samples"], rows["large"]["samples"], report["epoch_size"]) == (40, 120, 160)
    assert Mixture.load(tmp_path / "mix.yaml").rule.weights == {"small": 1.0, "large": 3.0}
    _, rows = mixed(*places, "--repeats", "1", "--repeats", "small=2.5", "--out", tmp_path / "mix.yaml")
    assert (rows["small"]["samples"], rows["large"]["samples"]) == (75, 120)


def test_two_splits_of_one_data_set_and_given_names(shards: Path, tmp_path: Path) -> None:
    places = [shards / "small/train", shards / "small/val", f"big={shards / 'large'}"]
    _, rows = mixed(*places, "--repeats", "small/train=1,small/val=3,big=1", "--out", tmp_path / "mix.yaml")
    assert {name: row["samples"] for name, row in rows.items()} == {"small/train": 30, "small/val": 30, "big": 120}
    assert Mixture.load(tmp_path / "mix.yaml").names == ("small/train", "small/val", "big")


def test_subsets_and_exclusions_survive_the_file(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "exclude.yaml").write_text("large: [1, 3, 5]\n")
    subsets = ["--first", "small=20", "--fraction", "large=0.5", "--elements", "large=C, O", "--seed", 4]
    places = [shards / "small", shards / "large"]
    _, rows = mixed(*places, *subsets, "--exclude", tmp_path / "exclude.yaml", "--out", tmp_path / "mix.yaml")
    kept = [n for n, s in enumerate(structures(120, 2)) if 26 not in s.atomic_numbers and n not in (1, 3, 5)]
    assert (rows["small"]["structures"], rows["large"]["structures"]) == (20, len(kept) // 2)
    seen = {(int(d), int(s)) for b in StreamLoader(Mixture.load(tmp_path / "mix.yaml"))
            for d, s in zip(b.dataset_index, b.structure_index, strict=True)}  # fmt: skip
    assert {s for d, s in seen if d == 0} == set(range(20))
    assert {s for d, s in seen if d == 1} < set(kept)


def test_simulate_says_what_the_stream_does_and_writes_nothing(shards: Path, tmp_path: Path) -> None:
    report, _ = mixed(shards, "--simulate", "--ranks", 3, "--max-atoms", 40)
    mixture = Mixture.from_datasets({name: shards / name / "train" for name in ("large", "small")})
    assert report["mixture"] is None
    assert report["simulation"] == simulate(mixture, BatchLimits(max_atoms=40, world_size=3))
    ranks = [[int(b.natoms.sum()) for b in StreamLoader(mixture, max_atoms=40, rank=r, world_size=3)] for r in range(3)]
    assert report["simulation"]["steps"] == len(ranks[0])
    assert report["simulation"]["atoms_per_rank"]["largest"] == max(map(max, ranks))
    shown = run("jmp-data", "mix", shards, "--simulate", "--ranks", 2, "--batch-size", 4, "--out", tmp_path / "m.yaml")
    assert shown.code == 0
    assert "steps an epoch" in shown.out
    assert "23" in shown.out.split("steps an epoch")[1].splitlines()[0]  # ceil(180 / 8)
    assert (tmp_path / "m.yaml").exists()


def test_data_sets_behind_a_url(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JMP_DATA_CACHE", str(tmp_path / "cache"))
    with serve(shards) as (url, _):
        _, rows = mixed(f"{url}/small/train", f"web={url}/large/train", "--out", tmp_path / "mix.yaml")
        assert {name: row["structures"] for name, row in rows.items()} == {"small": 30, "web": 120}
        assert "nowhere" in refused(f"{url}/nowhere/train")
        assert len(list(StreamLoader(Mixture.load(tmp_path / "mix.yaml")))) == 6


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{shards}/nowhere"], ["nowhere", "no finished data set"]),
        (["{shards}", "{shards}/large"], ["both be called large/train"]),
        (["x={shards}"], ["holds 2 data sets", "called x"]),
        (["{shards}", "--weights", "small=1"], ["weights name ['small']"]),
        (["{shards}", "--weights", "tiny=1,small=2"], ["--weights tiny=1", "no data set tiny", "large, small"]),
        (["{shards}", "--weights", "small=0"], ["--weights small=0", "'0'"]),
        (["{shards}", "--weights", "1", "--temperature", "2"], ["exactly one", "temperature and weights"]),
        (["{shards}", "--elements", "small=C,Xy"], ["--elements small=C,Xy"]),
        (["{shards}", "--elements", "Fe"], ["has no structures left"]),
        (["{shards}", "--ranks", "4"], ["--simulate"]),
        (["{shards}", "--simulate", "--ranks", "1000"], ["180 structures", "1000 ranks"]),
        (["nosuch://x/y"], ["nosuch://x/y", "Protocol not known"]),
    ],
)
def test_mistakes_give_one_line(shards: Path, tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    line = refused(*[text.format(shards=shards) for text in arguments], "--out", tmp_path / "mix.yaml")
    assert all(word in line for word in words), line
