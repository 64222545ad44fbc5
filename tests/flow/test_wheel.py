"""A wheel, installed in an environment of its own outside of any checkout: what it puts there, and that it works."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import raw_archives

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).resolve().parents[2]
NEEDED = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "jmp_data", "jmp_model", "cli", "manifests", "recipes")
Program = Callable[..., subprocess.CompletedProcess[str]]


def _run(*command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def site_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Site-packages of the new environment; a path file in it leads to what the project needs."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in NEEDED:
        source = CHECKOUT / name
        if source.is_dir():
            shutil.copytree(source, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            (folder / "source").mkdir(exist_ok=True)
            shutil.copy(source, folder / "source")
    # By way of a source distribution, as an upload to an index would be.
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", folder / "source", cwd=folder)
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    wheel = next((folder / "dist").glob("*.whl"))
    _run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    installed = next((folder / "venv" / "lib").glob("python*/site-packages"))
    (installed / "needed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return installed


@pytest.fixture
def program(site_packages: Path, tmp_path: Path) -> Program:
    binaries = site_packages.parents[2] / "bin"
    return lambda name, *arguments: _run(binaries / name, *arguments, cwd=tmp_path)


def test_only_three_packages_are_installed(site_packages: Path) -> None:
    names = {path.name for path in site_packages.iterdir()} - {"needed.pth"}
    assert {name for name in names if not name.endswith(".dist-info")} == {"jmp_data", "jmp_model", "jmp_cli"}
    manifests = {path.name for path in (CHECKOUT / "manifests" / "sources").iterdir()}
    assert {path.name for path in (site_packages / "jmp_data/_manifests/sources").iterdir()} == manifests
    recipes = {path.relative_to(CHECKOUT / "recipes") for path in (CHECKOUT / "recipes").rglob("*.yaml")}
    installed = site_packages / "jmp_model" / "_recipes"
    assert {path.relative_to(installed) for path in installed.rglob("*.yaml")} == recipes
    assert (site_packages / "jmp_data" / "py.typed").exists()


def test_raw_files_become_a_trained_model(program: Program, site_packages: Path, tmp_path: Path) -> None:
    where = program("python", "-c", "import jmp_data, jmp_model, jmp_cli; print(jmp_data.__file__, jmp_cli.__file__)")
    assert where.stdout.count(str(site_packages)) == 2
    raw_archives.write_all(tmp_path / "raw")
    sources = ["oc20", "oc22", "ani1x", "transition1x"]
    built = program("jmp-data", "build", *sources, "--workers", "1", "--json")
    assert {entry["dataset"] for entry in json.loads(built.stdout)} == set(sources)
    program("jmp-data", "verify", "shards")
    program("jmp-data", "mix", *(f"shards/{name}/train" for name in sources), "--temperature", "2", "--out", "mix.yaml")
    options = ["--mix", "mix.yaml", "--recipe", "pretrain_tiny", "--steps", "1", "--out", "run", "--json"]
    settings = ["data.batch_size=2", "scale_batches=1", "validation.max_structures=2"]
    trained = program("jmp", "train", "pretrain", *options, *(f"--set={setting}" for setting in settings))
    assert json.loads(trained.stdout)["steps"] == 1
