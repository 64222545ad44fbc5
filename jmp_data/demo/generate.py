"""Make the demo archives: compute on all cores, write each archive whole or not at all, reuse what is there.

An archive is written into a hidden folder and renamed when it is complete, its description (``demo.json``) included. A
folder of that name without such a description is somebody's data and is never touched.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

from jmp_data.demo.archives import ArchivePlan, plan_archives
from jmp_data.demo.calculators import make_xtb
from jmp_data.errors import RawFileError

Progress = Callable[[str, int, int], None]
DESCRIPTION = "demo.json"
_FORMAT = 2  # raise it when the same seed and scale would give other structures
_NOTE = "Synthetic demo data in the published layout of this data set. It holds no structure of the data set itself."
_MOST_WORKERS = 8
# Workers already fill the cores. NumPy reads these when it is loaded, before an initializer could set them, and a
# worker of two threads diagonalises the small matrices of an optimiser thirty times slower.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass(frozen=True)
class ArchiveSummary:
    """One archive of the demo data.

    Attributes:
        name: data set, and folder below the demo folder.
        labels: where energies and forces come from.
        structures: number of structures by published split.
        files: size in bytes of each file, by path relative to the archive's folder.
        reused: whether it was there already.
    """

    name: str
    labels: str
    structures: dict[str, int]
    files: dict[str, int]
    reused: bool


@dataclass(frozen=True)
class DemoSummary:
    """What `write_demo_raw` made or found, and how long it took.

    Attributes:
        directory: the demo folder.
        archives: the five archives.
        seconds: wall time.
    """

    directory: Path
    archives: tuple[ArchiveSummary, ...]
    seconds: float


def write_demo_raw(
    directory: Path, *, seed: int = 0, scale: float = 1.0, progress: Progress | None = None
) -> DemoSummary:
    """Write miniatures of OC20, OC22, ANI-1x, Transition-1x and rMD17, with labels from real physics.

    Each lies in its own folder (``oc20``, ``oc22``, ``ani1x``, ``transition1x``, ``rmd17``) in its published layout.
    Archives that are complete and were made with the same parameters are reused. Worker processes are spawned, so a
    script that calls this needs the usual ``if __name__ == "__main__":`` guard.

    Args:
        directory: the demo folder; made if missing.
        seed: of every random choice.
        scale: share of the usual 5,100 structures; the systems themselves stay the same size.
        progress: called with archive, structures done and structures in all, whenever some are finished.

    Returns:
        What lies in the folder now.

    Raises:
        MissingExtraError: if ``tblite`` is needed and not installed.
        RawFileError: if the folder of an archive exists and was not made by this function.
    """
    started = time.perf_counter()
    plans = plan_archives(seed, scale)
    parameters = {"format": _FORMAT, "seed": seed, "scale": scale}
    found = {plan.name: _find_archive(directory / plan.name, parameters) for plan in plans}
    missing = [plan for plan in plans if found[plan.name] is None]
    if any(plan.needs_xtb for plan in missing):
        make_xtb()
    directory.mkdir(parents=True, exist_ok=True)
    made = _make_archives(directory, missing, parameters, progress or (lambda *_: None))
    archives = [made.get(plan.name) or found[plan.name] for plan in plans]
    return DemoSummary(
        directory,
        tuple(sorted((archive for archive in archives if archive), key=lambda archive: archive.name)),
        time.perf_counter() - started,
    )


def _find_archive(folder: Path, parameters: dict[str, Any]) -> ArchiveSummary | None:
    """Find a complete archive of the same parameters; one of other parameters counts as missing."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        summary = ArchiveSummary(**description["summary"], reused=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RawFileError(
            f"{folder} exists and was not made by demo-raw (no readable {DESCRIPTION}); choose another folder"
        ) from error
    same = description.get("parameters") == parameters and _list_files(folder) == summary.files
    return summary if same else None


def _make_archives(
    directory: Path, plans: Sequence[ArchivePlan], parameters: dict[str, Any], progress: Progress
) -> dict[str, ArchiveSummary]:
    if not plans:
        return {}
    made: dict[str, ArchiveSummary] = {}
    done = dict.fromkeys((plan.name for plan in plans), 0)
    totals = {plan.name: sum(item.structures for item in plan.calculations) for plan in plans}
    pool = ProcessPoolExecutor(_count_workers(), get_context("spawn"), _end_with_parent)
    try:
        with _environment(_ONE_THREAD):  # the first submission starts all workers
            futures = {plan.name: [pool.submit(item) for item in plan.calculations] for plan in plans}
        origins = {future: (plan, index) for plan in plans for index, future in enumerate(futures[plan.name])}
        for future in as_completed(origins):
            plan, index = origins[future]
            future.result()
            done[plan.name] += plan.calculations[index].structures
            progress(plan.name, done[plan.name], totals[plan.name])
            if done[plan.name] == totals[plan.name]:
                made[plan.name] = _write_archive(directory / plan.name, plan, futures[plan.name], parameters)
    finally:
        pool.shutdown(cancel_futures=True)
    return made


def _write_archive(
    folder: Path, plan: ArchivePlan, futures: Sequence[Future[Any]], parameters: dict[str, Any]
) -> ArchiveSummary:
    """Write an archive under a hidden name and give it its own name when it is complete."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    structures = plan.write(partial, [future.result() for future in futures])
    summary: dict[str, Any] = {
        "name": plan.name,
        "labels": plan.labels,
        "structures": structures,
        "files": _list_files(partial),
    }
    description = {"note": _NOTE, "parameters": parameters, "made_with": _versions(), "summary": summary}
    text = json.dumps(description, indent=1, ensure_ascii=False)
    (partial / DESCRIPTION).write_text(text, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return ArchiveSummary(**summary, reused=False)


def _list_files(folder: Path) -> dict[str, int]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / DESCRIPTION)
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("ase", "numpy", "tblite")}


def _count_workers() -> int:
    if hasattr(os, "sched_getaffinity"):
        return min(len(os.sched_getaffinity(0)), _MOST_WORKERS)
    return min(os.cpu_count() or 1, _MOST_WORKERS)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the processes that start meanwhile."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _end_with_parent() -> None:
    """Keep a worker from outliving its parent, which may be killed."""
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
