"""No code of ours lets a file run a program: pickles, YAML and arrays are read in their harmless ways only."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = [path for folder in ("jmp_data", "jmp_model", "cli") for path in sorted((ROOT / folder).rglob("*.py"))]
FORBIDDEN = {
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "marshal.loads",
    "eval",
    "exec",
    "os.system",
}
OWN_PROCESSES = {"jmp_data/stream/shared_arrays.py", "jmp_data/stream/worker.py"}
"""Pickles between a loader and the workers that it started itself, through pipes that nobody else can reach."""


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_executes_what_it_reads(path: Path) -> None:
    for name, call in calls(path):
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        if not (name.startswith("pickle.") and path.relative_to(ROOT).as_posix() in OWN_PROCESSES):
            assert name not in FORBIDDEN, f"line {call.lineno}: {name}"
        if name == "torch.load":
            assert "weights_only" in given, f"line {call.lineno}: torch.load without weights_only"
            assert ast.literal_eval(given["weights_only"]) is True, f"line {call.lineno}: weights_only is not True"
        if name == "np.load" and "allow_pickle" in given:  # not allowed is NumPy's default
            assert ast.literal_eval(given["allow_pickle"]) is False, f"line {call.lineno}: pickles allowed"
