import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from jmp_cli.data_app import main
from jmp_data import Mixture, Structure, write_dataset
from jmp_data.schema import Schema
from tests.jmp_data.overlap.planting import disguised_molecule, random_molecule


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run `jmp-data` as the shell does."""
    monkeypatch.setattr("sys.argv", ["jmp-data", *map(str, arguments)])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two of thirty pre-training molecules are copies of test molecules."""
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    right = [random_molecule(rng, 9) for _ in range(10)]
    left = [random_molecule(rng, 9) for _ in range(28)]
    left += [disguised_molecule(rng, right[3]), disguised_molecule(rng, right[7], 0.05)]
    write_dataset(left, folder / "pre" / "train", schema=Schema(()))
    write_dataset(right, folder / "down" / "test", schema=Schema(()))
    write_dataset([random_molecule(rng, 4)], folder / "other" / "test", schema=Schema(()))
    return folder


def test_overlap_prints_a_table_and_writes_what_mix_takes(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "overlap"
    assert call(monkeypatch, "overlap", shards / "pre", "--with", shards / "down", shards / "other", "--out", out) == 0
    printed = capsys.readouterr().out
    assert "pre/train" in printed
    assert "pre/train: 2 to leave out" in printed
    assert (out / "matches.csv").read_text().count("\n") == 3
    assert call(monkeypatch, "mix", shards / "pre", "-o", tmp_path / "mix.yaml", "--exclude", out / "exclude.yaml") == 0
    mixture = Mixture.load(tmp_path / "mix.yaml")
    assert mixture.num_structures == 28
    assert mixture.members[0].selection.exclude is not None
    assert mixture.members[0].selection.exclude.tolist() == [28, 29]


def test_overlap_as_json(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--rmsd", "0.02", "--out", tmp_path, "--json"]
    assert call(monkeypatch, "overlap", shards / "pre", "--with", shards / "down", *arguments) == 0
    summary = json.loads(capsys.readouterr().out)
    (pair,) = summary["pairs"]
    assert (pair["left_exact"], pair["left_near"], pair["right_exact"], pair["right_near"]) == (1, 0, 1, 0)
    assert yaml.safe_load(Path(summary["files"]["exclusions"]).read_text()) == {"pre": "pre.exclude.npy"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pre", "--with", "pre"], "nothing but data sets of the other side"),
        (["nowhere", "--with", "down"], "nowhere"),
        (["pre", "--with", "down", "--rmsd", "3"], "cannot tell duplicates"),
    ],
)
def test_bad_input_is_one_clear_line(
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(shards)
    assert call(monkeypatch, "overlap", *arguments, "--out", tmp_path / "out") == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "out").exists()


def test_excluding_from_another_split_is_refused(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "overlap", shards / "pre", "--with", shards / "down", "--out", tmp_path) == 0
    rng = np.random.default_rng(1)
    structures = [Structure(atomic_numbers=[1], positions=rng.normal(size=(1, 3))) for _ in range(40)]
    write_dataset(structures, tmp_path / "pre" / "val", schema=Schema(()))
    mix = ["mix", tmp_path / "pre" / "val", "-o", tmp_path / "mix.yaml", "--exclude", tmp_path / "exclude.yaml"]
    assert call(monkeypatch, *mix) == 1
    assert "holds something else" in capsys.readouterr().err
    assert not (tmp_path / "mix.yaml").exists()
