from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jmp_data.sources import matbench_folds
from jmp_data.sources.matbench_folds import NUM_FOLDS, SEED, fold_splits, plain_folds, stratified_folds
from tests.shared import SHARED, needs_shared

COUNTS = {
    "jdft2d": 636,
    "phonons": 1265,
    "dielectric": 4764,
    "log_gvrh": 10987,
    "log_kvrh": 10987,
    "perovskites": 18928,
    "mp_gap": 106113,
    "mp_e_form": 132752,
}
RESULTS = "samples/matbench/matbench_v0.1_dummy_results.json.gz"
METADATA = "samples/matbench/matbench_v0.1_dataset_metadata.json"


@pytest.fixture(scope="module")
def published() -> dict[str, np.ndarray]:
    """Task → fold in which each row is tested, from the ids of a published result."""
    assert SHARED is not None
    with gzip.open(SHARED / RESULTS) as file:
        tasks = json.load(file)["tasks"]
    folds = {}
    for name, task in tasks.items():
        members = [[int(record.rpartition("-")[2]) - 1 for record in fold["data"]] for fold in task["results"].values()]
        folds[name.removeprefix("matbench_")] = of_rows = np.full(sum(map(len, members)), -1)
        for number, rows in enumerate(members):
            of_rows[rows] = number
    return folds


@needs_shared
@pytest.mark.parametrize("task", COUNTS)
def test_folds_are_the_published_ones(task: str, published: dict[str, np.ndarray]) -> None:
    assert len(published[task]) == COUNTS[task]
    np.testing.assert_array_equal(plain_folds(COUNTS[task]), published[task])


@needs_shared
@pytest.mark.parametrize("task", ["mp_is_metal", "expt_is_metal", "glass"])
def test_stratified_folds_are_the_published_ones(task: str, published: dict[str, np.ndarray]) -> None:
    """The published folds, without the labels: they must interleave the two shuffled classes.

    Only the share of metals is published, not which rows they are. The rule gives each class a fixed sequence of folds,
    so the published sequence must be one of the ways to merge the two, in either order of the classes. A wrong shuffle,
    a wrong count or one class too many makes that impossible within a few rows.
    """
    assert SHARED is not None
    share = json.loads((SHARED / METADATA).read_text())[f"matbench_{task}"]["frac_true"]
    total = len(published[task])
    num_true = round(total * share)
    for num_first in (num_true, total - num_true):
        labels = np.repeat([0, 1], [num_first, total - num_first])
        folds = stratified_folds(labels)
        if _interleaves(published[task], folds[:num_first], folds[num_first:]):
            return
    pytest.fail("the published folds are no merge of the two classes' sequences")


def _interleaves(merged: np.ndarray, first: np.ndarray, second: np.ndarray) -> bool:
    """Whether `merged` is made of `first` and `second`, each in its order.

    The bits of one integer say which lengths of `first` may be used up; a row moves on the bits whose next one fits.
    """
    fits_first = [_bits(first == fold) for fold in range(NUM_FOLDS)]
    reachable, width = 1, len(first) + 1
    mask = (1 << width) - 1
    # Whether second[row - used] is a fold, for all `used` at once, is a shifted window of its reversed bits.
    reversed_second = [_bits(second[::-1] == fold) for fold in range(NUM_FOLDS)]
    for row, fold in enumerate(merged.tolist()):
        shift = len(second) - 1 - row
        window = reversed_second[fold]
        window = window >> shift if shift >= 0 else window << -shift
        reachable = ((reachable & fits_first[fold]) << 1 | (reachable & window)) & mask
        if not reachable:
            return False
    return bool(reachable >> len(first) & 1)


def _bits(flags: np.ndarray) -> int:
    return int.from_bytes(np.packbits(flags, bitorder="little").tobytes(), "little")


@needs_shared
def test_another_seed_is_told_apart(published: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matbench_folds, "SEED", SEED + 1)
    folds = stratified_folds(np.repeat([0, 1], [1643, 4037]))
    assert not _interleaves(published["glass"], folds[:1643], folds[1643:])
    assert not _interleaves(published["glass"], folds[1643:], folds[:1643])


def test_the_check_of_interleaving_itself() -> None:
    assert _interleaves(np.array([0, 2, 1]), np.array([0, 1]), np.array([2]))
    assert _interleaves(np.array([2, 0, 1]), np.array([0, 1]), np.array([2]))
    assert not _interleaves(np.array([1, 0, 2]), np.array([0, 1]), np.array([2]))


@given(st.lists(st.booleans(), min_size=1, max_size=300))
def test_every_class_is_spread_evenly(labels: list[bool]) -> None:
    folds = stratified_folds(np.array(labels))
    for label in set(labels):
        counts = np.bincount(folds[np.array(labels) == label], minlength=NUM_FOLDS)
        assert counts.max() - counts.min() <= 1
    sizes = np.bincount(folds, minlength=NUM_FOLDS)
    assert sizes.max() - sizes.min() <= 1


def test_classes_count_by_first_appearance() -> None:
    """By hand: five of the first class, five of the other, so each fold gets one of each, in two shuffles of 0..4."""
    random = np.random.RandomState(SEED)
    orders = [np.arange(NUM_FOLDS), np.arange(NUM_FOLDS)]
    for order in orders:
        random.shuffle(order)
    labels = np.array([True, False] * 5)
    folds = stratified_folds(labels)
    np.testing.assert_array_equal(folds[labels], orders[0])
    np.testing.assert_array_equal(folds[~labels], orders[1])


@given(st.integers(1, 400))
def test_fold_leakage(count: int) -> None:
    """No row is tested twice or not at all, and no tested row is trained or validated on in its fold."""
    splits = fold_splits(plain_folds(count))
    tested = np.concatenate([splits[f"fold{fold}_test"] for fold in range(NUM_FOLDS)])
    assert sorted(tested.tolist()) == list(range(count))
    for fold in range(NUM_FOLDS):
        members = [splits[f"fold{fold}_{name}"] for name in ("train", "val", "test")]
        assert sorted(np.concatenate(members).tolist()) == list(range(count))


def test_sizes_are_the_references() -> None:
    for count, sizes in ((636, (457, 51, 128)), (106113, (76401, 8489, 21223))):
        splits = fold_splits(plain_folds(count))
        assert tuple(len(splits[f"fold0_{name}"]) for name in ("train", "val", "test")) == sizes
