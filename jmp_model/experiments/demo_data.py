"""Demo data for experiments: made and built where it is missing, so that an experiment runs without any download."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from jmp_data.build import BuildSettings, choose_engine, plan_build, run_build
from jmp_data.demo import write_demo_raw
from jmp_data.shards.manifest import MANIFEST_NAME

PRETRAINING_SOURCES = ("oc20", "oc22", "ani1x", "transition1x")
HELD_OUT = "rmd17:ethanol"
HELD_OUT_SPLITS = ("train", "val", "test")


def prepare_demo_data(folder: Path, *, message: Callable[[str], None] = lambda text: None) -> Path:
    """Make the demo archives in `folder/raw` and their data sets in `folder/shards`; what is there is reused.

    Returns:
        `folder/shards`.

    Raises:
        MissingExtraError: `tblite` is needed and not installed.
    """
    raw, shards = folder / "raw", folder / "shards"
    folders = [shards / name / "train" for name in (*PRETRAINING_SOURCES, HELD_OUT.replace(":", "/"))]
    if all((path / MANIFEST_NAME).exists() for path in folders):
        return shards
    message(f"no data given: making demo data in {folder} (two minutes)")
    write_demo_raw(raw)
    settings = BuildSettings()
    builds = [
        *plan_build(PRETRAINING_SOURCES, raw, shards, settings=settings),
        *plan_build([HELD_OUT], raw, shards, splits=HELD_OUT_SPLITS, settings=settings),
    ]
    for done in run_build(builds, choose_engine(workers=_cores(), scheduler=None), lambda part: None):
        message(f"built {done.manifest.name}/{done.manifest.split}: {done.manifest.num_structures:,} structures")
    return shards


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
