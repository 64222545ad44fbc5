import csv
import json
from pathlib import Path

import numpy as np
import pytest

from jmp_data import Mixture, Structure, open_dataset, write_dataset
from jmp_data.errors import ManifestError
from jmp_data.overlap import (
    Overlap,
    OverlapSettings,
    check_exclusions,
    find_overlap,
    open_sides,
    summarize,
    verified_rmsd,
    write_overlap,
)
from jmp_data.overlap.output import COLUMNS
from jmp_data.schema import Schema
from jmp_data.shards import ShardDataset
from tests.jmp_data.overlap.planting import (
    disguised_crystal,
    disguised_molecule,
    geometry,
    prototypes,
    random_crystal,
    random_molecule,
)


def named(structure: Structure, name: str) -> Structure:
    values = {field: getattr(structure, field) for field in ("atomic_numbers", "positions", "cell", "pbc")}
    return Structure(**values, source_id=name)


def dataset(folder: Path, structures: list[Structure]) -> ShardDataset:
    ready = [named(structure, f"{folder.name}#{number}") for number, structure in enumerate(structures)]
    return write_dataset(ready, folder, schema=Schema(()))


class Planted:
    """Two sides of molecules and crystals; some of the left are copies of some of the right."""

    def __init__(self, folder: Path, *, molecules: int = 60, crystals: int = 25) -> None:
        rng = np.random.default_rng(7)
        right = [random_molecule(rng, int(rng.integers(1, 16))) for _ in range(molecules)]
        atoms = prototypes() + [random_crystal(rng, int(rng.integers(2, 9))) for _ in range(crystals)]
        right += [Structure.from_ase(a) for a in atoms]
        left = [random_molecule(rng, int(rng.integers(1, 16))) for _ in range(molecules)]
        self.expected: dict[int, tuple[int, bool]] = {}
        for number in range(0, len(right), 3):
            exact = number % 2 == 0
            rmsd = 0.0 if exact else 0.06
            self.expected[len(left)] = (number, exact)
            if right[number].pbc.any():
                crystal = disguised_crystal(rng, right[number].to_ase(), rmsd, supercell=number % 4 == 0)
                left.append(Structure.from_ase(crystal))
            else:
                left.append(disguised_molecule(rng, right[number], rmsd))
        order = rng.permutation(len(left))
        self.expected = {int(np.flatnonzero(order == row)[0]): found for row, found in self.expected.items()}
        self.left = dataset(folder / "pre" / "train", [left[i] for i in order])
        self.right = dataset(folder / "down" / "test", right)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return Planted(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="module")
def found(planted: Planted) -> Overlap:
    return find_overlap([planted.left], [planted.right])


def test_every_planted_copy_is_found_and_told_exact_or_near(planted: Planted, found: Overlap) -> None:
    (pair,) = found.pairs
    by_row = {int(match["row"]): match for match in pair.matches}
    for row, (partner, exact) in planted.expected.items():
        assert row in by_row, planted.left[row]
        match = by_row[row]
        if len(planted.left[row].atomic_numbers) > 2:
            assert match["partner"] == partner
            assert match["exact"] == exact or match["rmsd"] <= 1e-3
    assert pair.exact + pair.near == len(pair.matches)
    assert len(pair.unresolved) == 0


def test_what_is_found_beyond_the_planted_is_true(planted: Planted, found: Overlap) -> None:
    (pair,) = found.pairs
    settings = OverlapSettings()
    for match in pair.matches:
        one, other = planted.left[int(match["row"])], planted.right[int(match["partner"])]
        assert verified_rmsd(geometry(other), geometry(one), settings) == pytest.approx(match["rmsd"], abs=5e-3)
    assert set(np.flatnonzero(pair.touched)) >= set(pair.matches["partner"].tolist())


def test_it_finds_what_comparing_all_with_all_finds(planted: Planted, found: Overlap) -> None:
    settings = OverlapSettings()
    left = [geometry(structure) for structure in planted.left]
    right = [geometry(structure) for structure in planted.right]
    expected = set()
    for row, one in enumerate(left):
        for other in right:
            same_kind = one.pbc.any() == other.pbc.any()
            counts = [np.bincount(g.atomic_numbers, minlength=119) for g in (one, other)]
            reduced = [c // np.gcd.reduce(c) if one.pbc.any() else c for c in counts]
            if same_kind and (reduced[0] == reduced[1]).all() and verified_rmsd(one, other, settings) <= settings.near:
                expected.add(row)
    assert set(found.rows_with_partner(0).tolist()) == expected


@pytest.mark.parametrize("limits", [{"slab_structures": 7}, {"slab_atoms": 40}, {"nearest": 1}])
def test_slabs_and_limits_change_the_work_and_not_the_result(
    planted: Planted, found: Overlap, limits: dict[str, int]
) -> None:
    (pair,) = find_overlap([planted.left], [planted.right], OverlapSettings(**limits)).pairs
    np.testing.assert_array_equal(pair.matches["row"], found.pairs[0].matches["row"])
    np.testing.assert_array_equal(pair.matches["exact"], found.pairs[0].matches["exact"])


def test_progress_counts_every_structure(planted: Planted) -> None:
    counts: list[int] = []
    find_overlap([planted.left], [planted.right], progress=lambda count, note: counts.append(count))
    assert sum(counts) == len(planted.left) + len(planted.right)


def crowd(rng: np.random.Generator, size: int) -> list[Structure]:
    """Mirror images have the fingerprint of the original and never match it."""
    one = random_molecule(rng, 9, (1, 6, 7, 8, 9))
    mirrored = Structure(atomic_numbers=one.atomic_numbers, positions=one.positions * [1, 1, -1])
    return [disguised_molecule(rng, mirrored, 1e-4) for _ in range(size)] + [one]


def test_a_match_behind_a_crowd_of_look_alikes_is_found_or_the_structure_is_reported(tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    structures = crowd(rng, 30)
    right = dataset(tmp_path / "down" / "test", [*structures[:30], disguised_molecule(rng, structures[-1], 0.05)])
    left = dataset(tmp_path / "pre" / "train", [structures[-1]])
    (pair,) = find_overlap([left], [right]).pairs
    assert pair.matches["partner"].tolist() == [30]
    (pair,) = find_overlap([left], [right], OverlapSettings(molecule_limit=12)).pairs
    assert len(pair.matches) == 0
    assert pair.unresolved.tolist() == [0]


def test_damage_is_reported_and_not_skipped(tmp_path: Path, planted: Planted) -> None:
    rng = np.random.default_rng(12)
    folder = tmp_path / "pre" / "train"
    dataset(folder, [random_molecule(rng, 5) for _ in range(20)])
    shard = next(path for path in (folder / "positions").rglob("*") if path.is_file() and path.name != "zarr.json")
    payload = bytearray(shard.read_bytes())
    payload[len(payload) // 3] ^= 0xFF
    shard.write_bytes(payload)
    with pytest.raises(OSError, match="positions"):
        find_overlap([planted.left], [open_dataset(folder)])


def test_a_data_set_on_both_sides_is_refused(planted: Planted) -> None:
    with pytest.raises(ManifestError, match="both sides"):
        find_overlap([planted.left], [planted.left])
    with pytest.raises(ManifestError, match="at least one"):
        find_overlap([planted.left], [])


def test_the_list_names_both_partners_by_their_sources(planted: Planted, found: Overlap, tmp_path: Path) -> None:
    files = write_overlap(found, tmp_path)
    with files["matches"].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == len(found.pairs[0].matches)
    for row in rows:
        one, other = planted.left[int(row["index"])], planted.right[int(row["partner_index"])]
        assert (row["source_id"], row["partner_source_id"]) == (one.source_id, other.source_id)
        assert (row["dataset"], row["split"], row["partner_dataset"]) == ("pre", "train", "down")
        assert int(row["natoms"]) == one.natoms
        assert row["match"] == ("exact" if float(row["rmsd"]) <= 1e-3 else "near")
    summary = json.loads(files["summary"].read_text())
    assert summary == json.loads(json.dumps(summarize(found)))
    assert summary["left"][0]["excluded"] == len(found.rows_with_partner(0))


def test_a_mixture_takes_the_exclusion_file(planted: Planted, found: Overlap, tmp_path: Path) -> None:
    files = write_overlap(found, tmp_path)
    mixture = Mixture.from_datasets({"pre": planted.left}, exclusions=files["exclusions"])
    kept = np.concatenate(
        [mixture.members[0].selection.rows(b) + planted.left.block_ptr[b] for b in range(planted.left.num_blocks)]
    )
    assert set(kept) == set(range(len(planted.left))) - set(found.rows_with_partner(0).tolist())
    assert not set(kept) & set(planted.expected)


def test_exclusions_of_another_split_are_refused(planted: Planted, found: Overlap, tmp_path: Path) -> None:
    files = write_overlap(found, tmp_path)
    check_exclusions(files["exclusions"], {"pre": planted.left, "more": planted.right})
    with pytest.raises(ManifestError, match="holds something else"):
        check_exclusions(files["exclusions"], {"pre": planted.right})
    files["summary"].write_text("[]")
    with pytest.raises(ManifestError, match="not a summary"):
        check_exclusions(files["exclusions"], {"pre": planted.left})
    files["summary"].unlink()
    check_exclusions(files["exclusions"], {"pre": planted.right})


def test_folders_mean_train_on_the_left_and_all_splits_on_the_right(tmp_path: Path) -> None:
    rng = np.random.default_rng(13)
    for place in ("a/train", "a/val", "b/train", "b/test", "c/test"):
        dataset(tmp_path / place, [random_molecule(rng, 4)])
    left, right, dropped = open_sides([str(tmp_path)], [str(tmp_path / "a"), str(tmp_path / "b" / "test")])
    assert [f"{d.name}/{d.split}" for d in left] == ["a/train", "b/train", "c/test"]
    assert [f"{d.name}/{d.split}" for d in right] == ["a/val", "b/test"]
    assert [f"{d.name}/{d.split}" for d in dropped] == ["a/train"]
    with pytest.raises(ManifestError, match="one split at a time"):
        open_sides([str(tmp_path / "a" / "train"), str(tmp_path / "a" / "val")], [str(tmp_path / "b")])
