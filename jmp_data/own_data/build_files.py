"""From files to data sets in one call: look, guess, write the manifest beside the output, build."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jmp_data.build import BuildSettings, choose_engine, plan_build, run_build
from jmp_data.own_data.manifest_text import manifest_text
from jmp_data.own_data.propose import propose_manifest
from jmp_data.shards.atomic import write_atomic


def build_files(
    files: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    name: str = "",
    settings: BuildSettings | None = None,
    workers: int = 1,
    report: Callable[[str], None] | None = None,
    wanted: Sequence[str] = (),
    **declared: Any,
) -> list[Path]:
    """Build data sets from files of a user's own.

    What is not declared is guessed as `jmp-data init-manifest` guesses it: by default 80 % train, 10 % val, 10 % test,
    whole compositions together where there are many, seed 0. The manifest with all choices is kept as OUT/NAME.yaml.

    Args:
        files: data files, folders of them, and at most one CSV table of targets.
        out: folder for the data sets.
        name: of the data set; made from the first file's name by default.
        settings: storage format, graphs, constants.
        workers: local processes.
        report: called with each guess, warning and note.
        wanted: names of further targets to take; none beside energies and forces by default, else all.
        declared: entries of the manifest that are known, such as `units={"energy": "kcal/mol"}`.

    Returns:
        Folder of each split, train first.

    Raises:
        RawFileError: a file cannot be read.
        ManifestError: a declared entry is wrong.
    """
    given = [files] if isinstance(files, str | Path) else list(files)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    proposal = propose_manifest([Path(file) for file in given], folder, name=name, wanted=wanted, **declared)
    manifest = folder / f"{proposal.manifest.name}.yaml"
    write_atomic(manifest, manifest_text(proposal, manifest.name).encode())
    if report is not None:
        for statement in (*proposal.choices.statements, *proposal.division.statements):
            report(str(statement))
    builds = plan_build([str(manifest)], folder, folder, settings=settings or BuildSettings())
    engine = choose_engine(workers=workers, scheduler=None)
    finished = {done.dataset for done in run_build(builds, engine, lambda done: None)}
    return [build.dataset for build in builds if build.dataset in finished]
