"""The five official folds of MatBench v0.1 as rules: scikit-learn's KFold and StratifiedKFold, seed 18012019.

Written out here because the folds are facts of the benchmark: they must not change with the installed scikit-learn.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from jmp_data.sources.splits import shuffled

Array = npt.NDArray[Any]

NUM_FOLDS = 5
SEED = 18012019


def plain_folds(count: int) -> Array:
    """Fold in which each row is tested: rows shuffled, then cut into five stretches, the first ones longer by one.

    Args:
        count: number of rows.

    Returns:
        (count,) from 0 to 4.
    """
    sizes = np.full(NUM_FOLDS, count // NUM_FOLDS)
    sizes[: count % NUM_FOLDS] += 1
    folds = np.empty(count, np.int64)
    folds[shuffled(count, SEED)] = np.repeat(np.arange(NUM_FOLDS), sizes)
    return folds


def stratified_folds(labels: Array) -> Array:
    """Fold in which each row is tested, every class spread evenly over the folds.

    Classes count in the order in which they first appear. How many rows of a class a fold gets follows from dealing out
    the sorted labels one by one; which rows follows from one shuffle a class with one generator.

    Args:
        labels: (n,) class of each row.

    Returns:
        (n,) from 0 to 4.
    """
    _, first, classes = np.unique(labels, return_index=True, return_inverse=True)
    classes = np.argsort(np.argsort(first))[classes]
    dealt = np.sort(classes)
    random = np.random.RandomState(SEED)
    folds = np.empty(len(labels), np.int64)
    for label in range(len(first)):
        counts = [int((dealt[fold::NUM_FOLDS] == label).sum()) for fold in range(NUM_FOLDS)]
        members = np.repeat(np.arange(NUM_FOLDS), counts)
        random.shuffle(members)
        folds[classes == label] = members
    return folds


def fold_splits(folds: Array) -> dict[str, Array]:
    """Rows of `fold0_train`, `fold0_val`, `fold0_test` and so on, ascending.

    Test rows are the official ones. The rest is shuffled as the reference did, with `RandomState(42)`: nine tenths to
    train, a tenth to val.
    """
    splits: dict[str, Array] = {}
    for fold in range(NUM_FOLDS):
        rest = np.flatnonzero(folds != fold)
        mixed = rest[shuffled(len(rest))]
        num_train = int(0.9 * len(rest))
        splits[f"fold{fold}_train"] = np.sort(mixed[:num_train])
        splits[f"fold{fold}_val"] = np.sort(mixed[num_train:])
        splits[f"fold{fold}_test"] = np.flatnonzero(folds == fold)
    return splits
