"""Somewhere for Numba to keep compiled kernels, where neither the package nor the user's cache folder can be written.

Numba refuses to import a cached function it has no folder for, as in a read-only installation without a home. Such a
process, and the workers that it starts, then share a private folder that ends with it.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

_VARIABLE = "NUMBA_CACHE_DIR"


def ensure_kernel_cache() -> None:
    """Choose the folder by environment variable; does nothing where one is chosen or Numba finds one by itself."""
    if os.environ.get(_VARIABLE) or _can_write(Path(__file__).parent / "graphs") or _can_write(_user_cache()):
        return
    try:
        folder = tempfile.mkdtemp(prefix="jmp-data-kernels-")
    except OSError:
        return
    atexit.register(_remove, folder, os.getpid())
    os.environ[_VARIABLE] = folder
    if "numba" in sys.modules:  # it read its environment when it was imported
        sys.modules["numba"].config.CACHE_DIR = folder


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:  # and not a fork of it
        shutil.rmtree(folder, ignore_errors=True)


def _user_cache() -> Path:
    """The folder that Numba tries after that of the package."""
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 - Path.home() raises where there is none
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "numba"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home) / "numba"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "numba"


def _can_write(folder: Path) -> bool:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return os.access(folder, os.W_OK | os.X_OK)
