"""A lock between processes that the operating system releases when its holder dies."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from jmp_data.errors import DownloadError

_POLL_SECONDS = 0.1


@contextmanager
def exclusive_lock(path: Path, *, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Holds the lock ``path`` while the block runs; waits for whoever holds it.

    Args:
        path: an empty file, created where needed and left behind, since removing it would let two processes lock
            different files.
        on_wait: called again and again while another holds the lock; may raise to give up.

    Raises:
        DownloadError: the file system cannot lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if on_wait is not None:
                    on_wait()
                time.sleep(_POLL_SECONDS)
            except OSError as error:
                raise DownloadError(
                    f"{path}: this file system does not support locks ({error}); use another"
                ) from error
        yield
