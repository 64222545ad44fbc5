"""The table of split digests in `docs/downstream-sources.md`, worked out again with NumPy alone."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest

TEXT = (Path(__file__).resolve().parents[3] / "docs/downstream-sources.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(\S+)` \| ([\d,]+) \| `(\w{16})` \| `(\w{16})` \| `(\w{16})` \|$", TEXT, re.MULTILINE)
MD22 = {
    "Ac-Ala3-NHMe": 6000, "DHA": 8000, "stachyose": 8000, "AT-AT": 3000, "AT-AT-CG-CG": 2000,
    "buckyball-catcher": 600, "double-walled_nanotube": 800,
}  # fmt: skip


def digest(rows: np.ndarray) -> str:
    return hashlib.sha256(np.asarray(rows, "<i8").tobytes()).hexdigest()[:16]


def expected(name: str, count: int) -> tuple[str, str, str]:
    """Digests of train, val and test by the rules in words above the table."""
    source, _, part = name.partition(":")
    rows = np.arange(count)
    np.random.RandomState(42).shuffle(rows)
    if source == "matbench":
        # Fold 0 of scikit-learn's KFold(5, shuffle=True): the first rows of its own shuffle, one more than a fifth
        # where rows are left over.
        own = np.arange(count)
        np.random.RandomState(18012019).shuffle(own)
        test = np.sort(own[: count // 5 + (count % 5 > 0)])
        train_val = np.setdiff1d(rows, test)
        order = np.arange(len(train_val))
        np.random.RandomState(42).shuffle(order)
        size = int(0.9 * len(order))
        splits = [np.sort(train_val[order[:size]]), np.sort(train_val[order[size:]]), test]
    elif source == "rmd17":
        splits = [rows[:950], rows[950:1000], rows[1000:]]
    elif source == "md22":
        train = MD22[part] - MD22[part] * 5 // 100
        splits = [rows[:train], rows[train : MD22[part]], rows[MD22[part] :]]
    else:
        if source == "qm9":
            train, val = count - 20_000, 10_000
        elif source == "spice":
            train, val = int(0.8 * count), int(0.1 * count)
        else:  # qmof gives a tenth to test and the rest to val
            train, val = int(0.8 * count), count - int(0.8 * count) - int(0.1 * count)
        splits = [np.sort(rows[:train]), np.sort(rows[train : train + val]), np.sort(rows[train + val :])]
    return digest(splits[0]), digest(splits[1]), digest(splits[2])


def test_the_table_names_every_source_with_such_a_split() -> None:
    assert {name.partition(":")[0] for name, *_ in ROWS} == {"qm9", "rmd17", "md22", "spice", "matbench", "qmof"}
    assert {f"md22:{part}" for part in MD22} <= {name for name, *_ in ROWS}


@pytest.mark.parametrize(("name", "count", "train", "val", "test"), ROWS)
def test_digests_are_those_of_the_rule(name: str, count: str, train: str, val: str, test: str) -> None:
    assert expected(name, int(count.replace(",", ""))) == (train, val, test)
