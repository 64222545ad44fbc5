"""The tutorial `docs/add-a-source.md`, followed to the letter in a copy of the project."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jmp_data import open_dataset

ROOT = Path(__file__).resolve().parents[3]
TEXT = (ROOT / "docs/add-a-source.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^```(?:python|yaml)\n# (\S+\.(?:py|yaml))\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))
COMMANDS = re.findall(r"^jmp-data (.*)$", TEXT, re.MULTILINE)
(REGISTRY_LINE,) = re.findall(r"^# into _CLASSES of jmp_data/sources/__init__\.py\n(.*?)^```$", TEXT, re.M | re.S)
# Commands of one program start: a new one takes seconds.
DRIVER = """
import json, sys
from jmp_cli.data_app import app
for arguments in json.loads(sys.argv[1]):
    app(arguments, prog_name="jmp-data", standalone_mode=False)
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages by links, so that compiled code is found again, with the tutorial's files among them."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("jmp_data/sources", "manifests/sources", "raw"):
        (folder / name).mkdir(parents=True)
    for name in ("jmp_data", "jmp_data/sources", "manifests/sources"):
        for path in (ROOT / name).iterdir():
            if path.name not in ("sources", "__pycache__"):
                (folder / name / path.name).symlink_to(path)
    (folder / "jmp_cli").symlink_to(ROOT / "cli")
    registry = folder / "jmp_data/sources/__init__.py"
    registry.unlink()
    shutil.copy(ROOT / "jmp_data/sources/__init__.py", registry)
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    before, head, after = registry.read_text(encoding="utf-8").partition("_CLASSES = {\n")
    registry.write_text(before + head + REGISTRY_LINE + after, encoding="utf-8")
    run(folder, "make_argon.py")
    return folder


def run(project: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(project), "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=project, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_page_has_everything() -> None:
    assert set(FILES) == {
        "make_argon.py",
        "manifests/sources/argon.yaml",
        "jmp_data/sources/argon.py",
        "tests/jmp_data/sources/test_argon.py",
    }
    assert [command.split()[0] for command in COMMANDS] == ["info", "build", "verify", "inspect", "report"]


def test_the_commands_do_what_the_page_says(project: Path) -> None:
    printed = run(project, "-c", DRIVER, json.dumps([shlex.split(command) for command in COMMANDS]))
    assert "kJ/mol/Å" in printed
    assert "1 x nonfinite_energy" in printed
    assert "1 x atoms_on_top" in printed
    assert "2 data sets verified, no damage" in printed
    assert (project / "argon.html").stat().st_size > 10_000
    datasets = [open_dataset(project / "shards/argon" / split) for split in ("train", "test")]
    assert [dataset.manifest.records_in for dataset in datasets] == [48, 12]
    assert sum(map(len, datasets)) == 58
    raw = np.load(project / "raw/argon_clusters.npz")
    structure = datasets[1][0]
    row = int(structure.source_id.partition("#")[2])
    # 1 kJ/mol is 1000 J / (6.022140857e23 × 1.6021766208e-19 J/eV) = 0.0103642696 eV; the force is minus the gradient.
    assert structure.energy == pytest.approx(raw["energies"][row] * 0.0103642696, rel=1e-8)
    np.testing.assert_allclose(structure.forces, -raw["gradients"][row] * 0.0103642696, rtol=1e-6, atol=1e-9)


def test_the_test_of_the_page_passes(project: Path) -> None:
    printed = run(project, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/jmp_data/sources/test_argon.py")
    assert "2 passed" in printed
