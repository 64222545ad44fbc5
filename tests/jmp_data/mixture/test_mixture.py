import numpy as np
import pytest
import yaml

from jmp_data.errors import ManifestError
from jmp_data.mixture import Mixture, Subset
from jmp_data.schema import Structure
from jmp_data.shards.write_dataset import write_dataset
from tests.jmp_data.stream.memory_dataset import make_dataset


def structures(count, seed=0, elements=(1, 6, 8)):
    rng = np.random.default_rng(seed)
    for i in range(count):
        n = int(rng.integers(1, 6))
        yield Structure(
            atomic_numbers=rng.choice(elements, n),
            positions=rng.normal(size=(n, 3)),
            energy=float(i),
            forces=rng.normal(size=(n, 3)),
            source_id=str(i),
        )


@pytest.fixture
def shards(tmp_path):
    for name, count in (("small", 30), ("large", 120)):
        write_dataset(structures(count), tmp_path / "shards" / name / "train")
    return tmp_path / "shards"


def paths(shards):
    return {name: shards / name / "train" for name in ("small", "large")}


def test_public_numbers(shards):
    mixture = Mixture.from_datasets(paths(shards), temperature=2.0)
    assert mixture.names == ("small", "large")
    assert mixture.probabilities == pytest.approx({"small": 1 / 3, "large": 2 / 3})
    assert mixture.repeats == pytest.approx({"small": 2.0, "large": 1.0})
    assert mixture.samples_per_epoch == {"small": 60, "large": 120}
    assert mixture.epoch_size == 180
    assert mixture.table()[0] == {
        "dataset": "small",
        "structures": 30,
        "share": pytest.approx(0.2),
        "probability": pytest.approx(1 / 3),
        "repeats": pytest.approx(2.0),
        "samples": 60,
    }


def test_temperature_is_two_by_default(shards):
    assert Mixture.from_datasets(paths(shards)).rule.temperature == 2.0


@pytest.mark.parametrize(
    "rule", [{"temperature": 2.0}, {"weights": {"small": 1.0, "large": 3.0}}, {"repeats": {"small": 4.0, "large": 1.5}}]
)
def test_saved_and_loaded_again_it_is_the_same(shards, tmp_path, rule):
    mixture = Mixture.from_datasets(
        paths(shards),
        **rule,
        subsets={"small": Subset(first=20, fraction=0.5, seed=3)},
        exclusions={"large": [5, 3, 119]},
    )
    loaded = Mixture.load(mixture.save(tmp_path / "mixes" / "mix.yaml"))
    assert loaded.fingerprint == mixture.fingerprint
    assert loaded.table() == mixture.table()
    assert loaded.rule == mixture.rule


def test_paths_are_relative_to_the_file_so_that_both_can_move(shards, tmp_path):
    Mixture.from_datasets(paths(shards)).save(tmp_path / "mix.yaml")
    assert yaml.safe_load((tmp_path / "mix.yaml").read_text())["datasets"]["small"]["path"] == "shards/small/train"
    moved = tmp_path.parent / f"{tmp_path.name}-moved"
    tmp_path.rename(moved)
    assert Mixture.load(moved / "mix.yaml").epoch_size == 180


def test_a_missing_data_set_is_named(shards, tmp_path):
    path = Mixture.from_datasets(paths(shards)).save(tmp_path / "mix.yaml")
    (shards / "small").rename(shards / "gone")
    with pytest.raises(ManifestError, match=r"mix\.yaml: data set small is missing.*small/train"):
        Mixture.load(path)
    with pytest.raises(ManifestError, match="data set small"):
        Mixture.from_datasets(paths(shards))


def test_changed_data_is_refused_with_what_changed(shards, tmp_path):
    path = Mixture.from_datasets(paths(shards)).save(tmp_path / "mix.yaml")
    (shards / "small").rename(shards / "old")
    write_dataset(structures(31, seed=1), shards / "small" / "train")
    with pytest.raises(ManifestError, match=r"data set small .* has changed .* 30 structures .* now 31"):
        Mixture.load(path)


def test_a_changed_exclusion_list_is_refused(shards, tmp_path):
    path = Mixture.from_datasets(paths(shards), exclusions={"small": [1]}).save(tmp_path / "mix.yaml")
    np.save(tmp_path / "mix.small.exclude.npy", np.array([2]))
    with pytest.raises(ManifestError, match="index lists of data set small"):
        Mixture.load(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("datasets: [", "not a YAML file"),
        ("version: 1", "not a mixture file"),
        ("version: 99\ndatasets: {}", "newer"),
        ("version: 1\ntemperature: 2\ndatasets: {a: {path: x}}", "datasets.a.structures"),
        ("version: 1\ntemperature: 2\nsurprise: 1\ndatasets: {}", "surprise"),
    ],
)
def test_malformed_files_give_one_line(tmp_path, text, words):
    (tmp_path / "mix.yaml").write_text(text)
    with pytest.raises(ManifestError, match=words) as caught:
        Mixture.load(tmp_path / "mix.yaml")
    assert "\n" not in str(caught.value)
    assert "mix.yaml" in str(caught.value)


def test_no_file_is_told(tmp_path):
    with pytest.raises(ManifestError, match="no such mixture file"):
        Mixture.load(tmp_path / "mix.yaml")


def test_exclusion_files_of_every_kind(shards, tmp_path):
    np.save(tmp_path / "rows.npy", np.array([1, 2]))
    (tmp_path / "rows.txt").write_text("1\n2\n")
    (tmp_path / "all.yaml").write_text("small: [1, 2]\nlarge: rows.npy\n")
    expected = Mixture.from_datasets(paths(shards), exclusions={"small": [2, 1, 1]}).members[0].selection.fingerprint
    for source in (tmp_path / "rows.npy", str(tmp_path / "rows.txt"), np.array([1, 2])):
        mixture = Mixture.from_datasets(paths(shards), exclusions={"small": source})
        assert mixture.members[0].selection.fingerprint == expected
    both = Mixture.from_datasets(paths(shards), exclusions=tmp_path / "all.yaml")
    assert [member.size for member in both] == [28, 118]


@pytest.mark.parametrize(
    ("exclusions", "words"),
    [
        ({"small": [30]}, "structure 30, but there are only 30"),
        ({"nowhere": [1]}, "exclusions name nowhere"),
        ({"small": "missing.npy"}, r"missing\.npy"),
        ({"small": [0.5]}, "plain list"),
    ],
)
def test_wrong_exclusions_are_refused(shards, exclusions, words):
    with pytest.raises(ManifestError, match=words):
        Mixture.from_datasets(paths(shards), exclusions=exclusions)


def test_element_filter_reads_the_atomic_numbers(tmp_path):
    mixed = [*structures(40, elements=(1, 6)), *structures(40, seed=1, elements=(1, 26))]
    dataset = write_dataset(mixed, tmp_path / "metals" / "train")
    mixture = Mixture.from_datasets({"metals": dataset}, subsets={"metals": Subset(elements=frozenset({1, 6}))})
    expected = [i for i, structure in enumerate(mixed) if set(structure.atomic_numbers) <= {1, 6}]
    assert mixture.members[0].selection.include.tolist() == expected
    loaded = Mixture.load(mixture.save(tmp_path / "mix.yaml"))
    assert loaded.fingerprint == mixture.fingerprint


def test_in_memory_data_sets_mix_but_cannot_be_saved(tmp_path):
    mixture = Mixture.from_datasets({"a": make_dataset("a")})
    with pytest.raises(ManifestError, match="data set a has no path"):
        mixture.save(tmp_path / "mix.yaml")


def test_an_empty_mixture_is_refused():
    with pytest.raises(ManifestError, match="at least one"):
        Mixture.from_datasets({})
