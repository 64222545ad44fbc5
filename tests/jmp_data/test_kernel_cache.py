"""Compiled kernels work wherever the package is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import os, sys
if "numba first" in sys.argv:
    import numba
import jmp_data
from numba import config, njit
from jmp_data.graphs import kernel, lattice
print(jmp_data.__file__)
print(config.CACHE_DIR)
print(lattice._dot._cache.cache_path)
"""


def install(folder: Path, *, read_only: bool) -> Path:
    """A copy of the package without caches, as a wheel leaves it."""
    shutil.copytree(ROOT / "jmp_data", folder / "site/jmp_data", ignore=shutil.ignore_patterns("__pycache__"))
    if read_only:
        for path in sorted((folder / "site").rglob("*"), reverse=True):
            path.chmod(0o555 if path.is_dir() else 0o444)
    return folder / "site"


def run(site: Path, home: Path, *words: str) -> list[str]:
    inherited = {name: value for name, value in os.environ.items() if name not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    environment = {**inherited, "PYTHONPATH": str(site), "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", CODE, *words]
    if os.getuid() == 0:  # to whom every folder can be written
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *command]
    done = subprocess.run(command, env=environment, cwd=site, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user may enter; those of pytest are private."""
    if os.getuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("root can write everywhere, and there is no setpriv to become somebody else")
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    for path in folder.rglob("*"):
        if path.is_dir():
            path.chmod(0o755)
    shutil.rmtree(folder)


@pytest.mark.parametrize("words", [(), ("numba first",)])
def test_read_only_installation_without_a_home(open_folder: Path, words: tuple[str, ...]) -> None:
    site = install(open_folder, read_only=True)
    module, chosen, used = run(site, Path("/nonexistent"), *words)
    assert module.startswith(str(site))
    assert "jmp-data-kernels-" in chosen
    assert used.startswith(chosen)
    assert not Path(chosen).exists(), "the folder outlived its process"


def test_read_only_installation_with_a_home(open_folder: Path) -> None:
    home = open_folder / "home"
    home.mkdir(mode=0o777)
    home.chmod(0o777)
    _, chosen, used = run(install(open_folder, read_only=True), home)
    assert chosen == ""
    assert used.startswith(str(home))
