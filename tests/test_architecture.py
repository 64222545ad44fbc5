"""The folder list reads as the data flow: imports point upstream only."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOW = [
    "errors",
    "schema",
    "raw",
    "manifests",
    "graphs",
    "references",
    "shards",
    "sources",
    "build",
    "mixture",
    "stream",
]


def imports_of(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            modules.add(node.module)
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
    return modules


def python_files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", python_files("jmp_data"), ids=lambda path: str(path.relative_to(ROOT)))
def test_data_platform_never_imports_the_trainer_or_later_stages(path: Path) -> None:
    imported = imports_of(path)
    assert not {name for name in imported if name.split(".")[0] in ("jmp_model", "jmp_cli")}
    stage = path.relative_to(ROOT / "jmp_data").parts[0].removesuffix(".py")
    if stage not in FLOW:
        return
    for name in imported:
        parts = name.split(".")
        if parts[0] == "jmp_data" and len(parts) > 1 and parts[1] in FLOW:
            assert FLOW.index(parts[1]) <= FLOW.index(stage), f"{stage} imports {parts[1]}"


@pytest.mark.parametrize("path", python_files("jmp_model"), ids=lambda path: str(path.relative_to(ROOT)))
def test_trainer_never_imports_the_programs(path: Path) -> None:
    assert not {name for name in imports_of(path) if name.split(".")[0] == "jmp_cli"}


def test_manifests_and_recipes_hold_no_code() -> None:
    assert not [*python_files("manifests"), *python_files("recipes")]
