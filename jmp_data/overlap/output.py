"""What a search leaves behind: a summary, the list of matches, and the exclusion file."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np

from jmp_data.errors import ManifestError, MissingFileError
from jmp_data.overlap.exclusions import SUMMARY_FILE, write_exclusions
from jmp_data.overlap.run import EXACT_MARK, NEAR_MARK, Overlap, PairResult
from jmp_data.shards import ShardDataset
from jmp_data.shards.atomic import write_atomic
from jmp_data.shards.layout import SOURCE_ID

MATCHES_FILE: Final = "matches.csv"
COLUMNS: Final = (
    *("dataset", "split", "index", "source_id", "formula", "natoms", "match", "rmsd"),
    *("partner_dataset", "partner_split", "partner_index", "partner_source_id"),
)

_THRESHOLDS = ("near", "exact", "strain")
_PAIR_KEYS = ("left", "right", "left_exact", "left_near", "right_exact", "right_near", "verified", "unresolved")
_CHUNK = 50_000


def write_overlap(overlap: Overlap, folder: Path) -> dict[str, Path]:
    """Write `overlap.json`, `matches.csv`, `exclude.yaml` and its index lists.

    Returns:
        What → file: summary, matches, exclusions.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SUMMARY_FILE).unlink(missing_ok=True)
    _write_matches(overlap, folder / MATCHES_FILE)
    exclusions = write_exclusions(overlap, folder)
    # Last: with a summary in place, everything else is from the same search.
    text = json.dumps(summarize(overlap), indent=1, ensure_ascii=False) + "\n"
    write_atomic(folder / SUMMARY_FILE, text.encode())
    return {"summary": folder / SUMMARY_FILE, "matches": folder / MATCHES_FILE, "exclusions": exclusions}


def summarize(overlap: Overlap) -> dict[str, Any]:
    """The counts of every pair of data sets, with the thresholds, as plain JSON."""
    return {
        "thresholds": {name: value for name, value in asdict(overlap.settings).items() if name in _THRESHOLDS},
        "left": [
            _describe(dataset) | {"excluded": len(overlap.rows_with_partner(number))}
            for number, dataset in enumerate(overlap.left)
        ],
        "right": [_describe(dataset) for dataset in overlap.right],
        "pairs": [_pair_row(overlap, pair) for pair in overlap.pairs],
    }


def read_summary(folder: Path) -> dict[str, Any]:
    """The summary that `write_overlap` left in a folder.

    Raises:
        MissingFileError: there is none.
        ManifestError: it is something else.
    """
    path = folder / SUMMARY_FILE
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file; jmp-data overlap --out {folder} writes it")
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        complete = all(set(pair) == set(_PAIR_KEYS) for pair in summary["pairs"])
        known = {f"{e['dataset']}/{e['split']}": int(e["structures"]) for e in summary["left"] + summary["right"]}
        complete = complete and all({pair["left"], pair["right"]} <= known.keys() for pair in summary["pairs"])
        complete = complete and set(summary["thresholds"]) == set(_THRESHOLDS)
    except (ValueError, KeyError, TypeError) as error:
        raise ManifestError(f"{path}: not a summary of jmp-data overlap ({error})") from error
    if not complete:
        raise ManifestError(f"{path}: written by another version; run jmp-data overlap again")
    return dict(summary)


def _describe(dataset: ShardDataset) -> dict[str, Any]:
    return {
        "dataset": dataset.name,
        "split": dataset.split,
        "path": dataset.path,
        "structures": len(dataset),
        "fingerprint": dataset.fingerprint,
    }


def _pair_row(overlap: Overlap, pair: PairResult) -> dict[str, Any]:
    left, right = overlap.left[pair.left], overlap.right[pair.right]
    return {
        "left": f"{left.name}/{left.split}",
        "right": f"{right.name}/{right.split}",
        "left_exact": pair.exact,
        "left_near": pair.near,
        "right_exact": int((pair.touched == EXACT_MARK).sum()),
        "right_near": int((pair.touched == NEAR_MARK).sum()),
        "verified": pair.verified,
        "unresolved": len(pair.unresolved),
    }


def _write_matches(overlap: Overlap, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for pair in overlap.pairs:
            for begin in range(0, len(pair.matches), _CHUNK):
                writer.writerows(_match_rows(overlap, pair, pair.matches[begin : begin + _CHUNK]))
    temporary.replace(path)


def _match_rows(overlap: Overlap, pair: PairResult, matches: Any) -> Iterator[tuple[Any, ...]]:
    left, right = overlap.left[pair.left], overlap.right[pair.right]
    identity = _identities(left, matches["row"])
    partner = _identities(right, matches["partner"])
    for match in matches:
        row, other = int(match["row"]), int(match["partner"])
        kind, rmsd = "exact" if match["exact"] else "near", f"{match['rmsd']:.6g}"
        described = (left.name, left.split, row, *identity[row], kind, rmsd)
        yield (*described, right.name, right.split, other, partner[other][0])


def _identities(dataset: ShardDataset, rows: Any) -> dict[int, tuple[str, str, int]]:
    """Row → source id, formula and number of atoms; each block is read once."""
    from ase.formula import Formula
    from ase.symbols import Symbols

    rows = np.unique(rows)
    found = {}
    blocks = np.searchsorted(dataset.block_ptr, rows, "right") - 1
    for number in np.unique(blocks):
        first = int(dataset.block_ptr[number])
        block = dataset.read_block(int(number), ["atomic_numbers", SOURCE_ID])
        ptr = block.ptr
        for row in rows[blocks == number]:
            place = int(row) - first
            numbers = block.atomic_numbers[ptr[place] : ptr[place + 1]]
            formula = Formula.from_dict(Symbols(numbers).formula.count()).format("metal")
            found[int(row)] = (block.source_ids[place].decode(errors="replace"), str(formula), len(numbers))
    return found
