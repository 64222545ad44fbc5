"""A task for a data set of one's own: what it holds decides the targets, stated defaults decide the rest."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jmp_data import ShardDataset, open_dataset
from jmp_data.build import BuildSettings, choose_engine, plan_build, run_build
from jmp_data.build.lock import TargetLockedError
from jmp_data.errors import ManifestError, MissingFileError
from jmp_data.own_data import build_files
from jmp_model.finetune.tasks import Forces, TaskSpec

FORCE_COEFFICIENT = 10.0
"""Weight of forces against energies, both in units of their spread."""
PERIODIC_CUTOFF, MOLECULE_CUTOFF = 12.0, 8.0
"""Å, as in pre-training."""


def own_task(train: ShardDataset, *, forces: Forces = "gradient", targets: Sequence[str] | None = None) -> TaskSpec:
    """A task that learns what a data set holds.

    Energies are taken relative to element references fitted on the training split, in units of what then remains;
    forces in units of their RMS; other numbers per structure are averaged over atoms where the data set calls them
    intensive and summed where it calls them extensive.

    Args:
        train: training split.
        forces: how forces are made, if there are any.
        targets: columns to learn; energy and forces by default, or every number per structure where there is no energy.

    Raises:
        ManifestError: a column that is not there or cannot be learned, or nothing to learn.
    """
    columns = {field.name: field for field in train.schema.targets}
    if targets is None:
        targets = [name for name in ("energy", "forces") if name in columns]
        targets = targets or [name for name, field in columns.items() if field.level == "structure" and not field.shape]
    missing = [name for name in targets if name not in columns]
    if missing or not targets:
        what = f"no column {missing[0]}" if missing else "nothing to learn"
        raise ManifestError(f"{train.path}: {what}; it has {', '.join(columns) or 'no targets'}")
    if "forces" in targets and forces == "gradient" and "energy" not in targets:
        forces = "direct"
    specs = {name: _target(train, name, columns[name]) for name in targets}
    return TaskSpec.model_validate(
        {
            "name": train.name,
            "dataset": train.name,
            "targets": specs,
            "primary": "forces" if "forces" in targets else targets[0],
            "forces": forces if "forces" in targets else None,
            "graph": {"cutoff": PERIODIC_CUTOFF if np.any(train[0].pbc) else MOLECULE_CUTOFF},
            "batch_size": max(1, min(16, len(train) // 8)),
        }
    )


def _target(train: ShardDataset, name: str, field: Any) -> dict[str, Any]:
    if name == "energy":
        return {"kind": "energy", "references": "fit", "mean": "fit", "std": "fit", "unit": "eV", **_MILLI}
    if name == "forces":
        return {"kind": "forces", "std": "fit", "coefficient": FORCE_COEFFICIENT, "unit": "eV/Å", **_MILLI_FORCES}
    if field.level != "structure" or field.shape:
        raise ManifestError(
            f"{train.path}: column {name} has shape {field.shape} per {field.level}; only single numbers "
            "per structure, energy and forces can be learned"
        )
    if np.dtype(field.dtype).kind == "b":
        return {"kind": "class"}
    if field.kind == "extensive":
        return {"reduction": "sum", "references": "fit", "mean": "fit", "std": "fit", "unit": field.unit}
    return {"reduction": "mean", "mean": "fit", "std": "fit", "unit": field.unit}


_MILLI = {"report_unit": "meV", "report_scale": 1000}
_MILLI_FORCES = {"report_unit": "meV/Å", "report_scale": 1000}


def prepare_own_data(
    files: Sequence[Path],
    folder: Path,
    *,
    report: Callable[[str], None] | None = None,
    wanted: Sequence[str] = (),
    **declared: Any,
) -> dict[str, str]:
    """Files of one's own → checked data sets: train, val, test. Nothing is built twice.

    Args:
        files: anything that `jmp-data build` reads, or one manifest of `jmp-data init-manifest`.
        folder: where the data sets go.
        report: called with each guess about units, signs and splits, and with what was set aside.
        wanted: columns that will be learned, to be read where they are no energies or forces; a manifest names its own.
        declared: what is known, such as `units={"energy": "kcal/mol"}`.

    Returns:
        Split → folder, as `data.train` and so on of a fine-tuning configuration.

    Raises:
        MissingFileError: there is no such file.
        RawFileError: a file cannot be read.
        ManifestError: no validation split could be made, or something declared beside a manifest.
    """
    for file in files:
        if not file.exists():
            raise MissingFileError(f"{file}: no such file")
    built = _build_in_turn(files, folder, report, wanted, declared)
    splits = {path.name: str(path) for path in built}
    lacking = [name for name in ("train", "val") if name not in splits]
    if lacking:
        raise ManifestError(
            f"{files[0]}: too few structures for a {lacking[0]} split: {', '.join(splits) or 'none'} could be made"
        )
    if report is not None:
        _report_set_aside(built, report)
    return {name: path for name, path in splits.items() if name in ("train", "val", "test")}


def _build_in_turn(
    files: Sequence[Path],
    folder: Path,
    report: Callable[[str], None] | None,
    wanted: Sequence[str],
    declared: Mapping[str, Any],
) -> list[Path]:
    """Every rank of a run asks for the same data sets: the first builds them, the others find them built."""
    while True:
        try:
            return _build(files, folder, report, wanted, declared)
        except TargetLockedError:
            if int(os.environ.get("WORLD_SIZE", "1")) == 1:
                raise
            time.sleep(0.5)


def _build(
    files: Sequence[Path],
    folder: Path,
    report: Callable[[str], None] | None,
    wanted: Sequence[str],
    declared: Mapping[str, Any],
) -> list[Path]:
    manifests = [file for file in files if file.suffix in (".yaml", ".yml")]
    if not manifests:
        return build_files(files, folder, report=report, wanted=wanted, **declared)
    if len(files) > 1 or declared:
        raise ManifestError(f"{manifests[0]}: a manifest says all about its files; write the rest into it")
    builds = plan_build([str(manifests[0])], manifests[0].parent, folder, settings=BuildSettings())
    finished = {done.dataset for done in run_build(builds, choose_engine(workers=1, scheduler=None), lambda done: None)}
    return [build.dataset for build in builds if build.dataset in finished]


def _report_set_aside(built: Sequence[Path], report: Callable[[str], None]) -> None:
    for path in built:
        manifest = open_dataset(path).manifest
        if manifest.quarantined:
            reasons = ", ".join(f"{count} {reason}" for reason, count in manifest.quarantined.items())
            report(f"WARNING, {path.name}: set aside {reasons}; see {path / 'quarantine.jsonl'}")
