"""Two builds of one target at once: the second one is refused, with a line that says why; parts have locks too."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from jmp_data.errors import JmpDataError
from jmp_data.shards.staging import BUILD_FOLDER, part_folder


class TargetLockedError(JmpDataError, RuntimeError):
    """Another build is at work on the same output folder."""


@contextmanager
def lock_targets(datasets: list[Path], *, shared: bool = False) -> Iterator[None]:
    """Hold the locks of all output folders.

    Args:
        datasets: output folders.
        shared: several jobs of one array work side by side; a whole build or a finalise excludes everything else.

    Raises:
        TargetLockedError: another build holds one of them.
    """
    with ExitStack() as stack:
        for dataset in datasets:
            path = dataset / BUILD_FOLDER / "lock"
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(path.open("w"))
            try:
                fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError:
                raise TargetLockedError(
                    f"{dataset}: another build is at work on this folder; wait for it or choose another --out"
                ) from None
        yield


@contextmanager
def lock_part(dataset: Path, key: str) -> Iterator[None]:
    """One process at a time makes a part, also after an engine gave up on a worker that is still alive."""
    folder = part_folder(dataset, key)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
