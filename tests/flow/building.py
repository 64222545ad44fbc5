"""Build archives as `jmp-data build` does, in this process."""

from __future__ import annotations

from pathlib import Path

from jmp_data.build import BuildSettings, SplitDone, choose_engine, plan_build, run_build


def build(source: str, raw: Path, out: Path, **settings: object) -> dict[str, SplitDone]:
    """Split → what became of it; every split whose files are there."""
    builds = plan_build([source], raw, out, settings=BuildSettings(**settings))  # type: ignore[arg-type]
    done = run_build(builds, choose_engine(workers=1, scheduler=None), lambda part: None)
    return {entry.manifest.split: entry for entry in done}
