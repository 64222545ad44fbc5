"""Applies the manifest's split rule to the files; where it is left at `auto`, picks the one that leaks least."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from jmp_data.errors import ManifestError
from jmp_data.own_data.cif_folder import TargetTable
from jmp_data.own_data.force_sign import ForceSign
from jmp_data.own_data.formats import READERS
from jmp_data.own_data.inspection import DataFile, Inspection, join_table, match_files
from jmp_data.own_data.manifest import OwnManifest, OwnSplits
from jmp_data.own_data.records import Record, Rows, formula
from jmp_data.own_data.split_rules import Rows as RowNumbers
from jmp_data.own_data.split_rules import split_at_random, split_by_group, split_in_order
from jmp_data.own_data.statements import Statement
from jmp_data.own_data.survey import as_array

_HINTS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
_MIN_COMPOSITIONS = 20


@dataclass(frozen=True, slots=True, eq=False)
class Division:
    """Who goes where.

    Attributes:
        splits: split → rows over all files in order, ascending.
        rule: in words.
        chosen: the rule, with nothing left at `auto`.
        statements: guesses and warnings.
    """

    splits: dict[str, RowNumbers]
    rule: str
    chosen: OwnSplits
    statements: tuple[Statement, ...]


def divide(manifest: OwnManifest, inspection: Inspection, root: Path, sign: ForceSign | None) -> Division:
    """Divide all records among splits.

    Args:
        manifest: with the rule.
        inspection: of its files.
        root: folder that the files are relative to.
        sign: of the sampled frames; it tells whether some are near to others.

    Raises:
        ManifestError: the rule does not fit the files.
    """
    rule, statements = manifest.splits, []
    if rule.by == "auto":
        rule, statement = _choose(manifest, inspection)
        statements.append(statement)
    if rule.by == "structure" and sign is not None and sign.pairs:
        text = "some frames are small steps apart from others, so a random split leaks; consider "
        statements.append(Statement("warning", "splits", text + _other_rules(inspection)))
    return Division(*_apply(rule, inspection, root), rule, tuple(statements))


def guess_given_splits(names: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Split → files, where every file's name or folder says which split it is; empty otherwise."""
    found: dict[str, list[str]] = {}
    for name in names:
        words = set(re.split(r"[^a-z]+", "/".join(PurePosixPath(name).parts[-2:]).lower()))
        hits = [split for split, hints in _HINTS.items() if words & set(hints)]
        if len(hits) != 1:
            return {}
        found.setdefault(hits[0], []).append(name)
    ordered = {split: tuple(found[split]) for split in _HINTS if split in found}
    return ordered if "train" in ordered and len(ordered) > 1 else {}


def _choose(manifest: OwnManifest, inspection: Inspection) -> tuple[OwnSplits, Statement]:
    given = manifest.splits.files or guess_given_splits(tuple(file.name for file in inspection.files))
    if given:
        shown = "; ".join(f"{split} = {', '.join(names)}" for split, names in given.items())
        return _with(manifest.splits, by="given", files=given), Statement("guess", "splits", f"by file names: {shown}")
    compositions = _compositions(inspection)
    if len(compositions) >= _MIN_COMPOSITIONS:
        text = f"by composition: {len(compositions)} different ones in the sample, and none shall be in two splits"
        return _with(manifest.splits, by="composition"), Statement("guess", "splits", text)
    text = f"by structure, at random: only {len(compositions)} composition{'s' * (len(compositions) > 1)} in the sample"
    return _with(manifest.splits, by="structure"), Statement("guess", "splits", text)


def _compositions(inspection: Inspection) -> set[str]:
    return {formula(record.atomic_numbers) for record in inspection.records}


def _other_rules(inspection: Inspection) -> str:
    """Rules that leak less; a single file or composition cannot be divided by itself."""
    rules = ["by: order"]
    rules += ["by: file"] if len(inspection.files) > 1 else []
    rules += ["by: composition"] if len(_compositions(inspection)) > 1 else []
    return " or ".join(rules)


def _with(splits: OwnSplits, **changes: object) -> OwnSplits:
    return OwnSplits.model_validate({**splits.model_dump(), **changes})


def _apply(rule: OwnSplits, inspection: Inspection, root: Path) -> tuple[dict[str, RowNumbers], str]:
    fractions, seed = rule.fractions, rule.seed
    shares = ", ".join(f"{name} {fraction:g}" for name, fraction in fractions.items())
    if rule.by == "given":
        return _as_given(rule, inspection, root), "as given by files"
    if rule.by == "structure":
        return split_at_random(inspection.count, fractions, seed), f"by structure, seed {seed}, {shares}"
    if rule.by == "order":
        return split_in_order(inspection.count, fractions), f"by the order of the files, {shares}"
    groups = list(_groups(rule, inspection))
    what = f"key {rule.key}" if rule.by == "key" else rule.by
    return split_by_group(groups, fractions, seed), f"by {what}, seed {seed}, {shares}"


def _as_given(rule: OwnSplits, inspection: Inspection, root: Path) -> dict[str, RowNumbers]:
    split_of: dict[str, str] = {}
    for split, patterns in rule.files.items():
        for name in (name for pattern in patterns for name in match_files(pattern, root)):
            if split_of.setdefault(name, split) != split:
                raise ManifestError(f"splits.files: {name} is in {split_of[name]} and in {split}")
    left = [file.name for file in inspection.files if file.name not in split_of]
    if left:
        raise ManifestError(f"splits.files: {left[0]} is in no split ({len(left)} such files)")
    owner = [split_of[file.name] for file in inspection.files]
    splits = np.repeat(np.array(owner), [file.index.count for file in inspection.files])
    return {split: np.flatnonzero(splits == split) for split in rule.files}


def _groups(rule: OwnSplits, inspection: Inspection) -> Iterator[str]:
    """The group of every record, in order; reads all files where the group is not the file itself."""
    for file in inspection.files:
        if rule.by == "file":
            yield from [file.name] * file.index.count
        elif rule.by == "composition":
            yield from READERS[file.format].formulas(file.path)
        else:
            yield from _key_values(rule.key, file, inspection.table)


def _key_values(key: str, file: DataFile, table: TargetTable | None) -> Iterator[str]:
    missing = 0
    for found in READERS[file.format].read(file.path, Rows(0, 0, np.ones(file.index.count, bool))):
        outcome = join_table(found, file.path, table)
        # What cannot be read is set aside later, in whichever split it falls.
        value = outcome.values.get(key) if isinstance(outcome, Record) else ""
        missing += value is None
        yield "" if value is None else str(as_array(value))
    if missing:
        raise ManifestError(f"splits.key: {missing} structures of {file.name} have no {key!r}")
