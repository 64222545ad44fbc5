"""Run the two programs as a user does: in a process of their own, looking at exit code, stdout and stderr."""

from __future__ import annotations

import io
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from unittest.mock import patch


@dataclass(frozen=True)
class Outcome:
    """What a command left."""

    code: int
    out: str
    err: str

    @property
    def error_lines(self) -> list[str]:
        """The lines that begin with `error:`."""
        return [line for line in self.err.splitlines() if line.startswith("error:")]


_MODULES = {"jmp-data": "jmp_cli.data_app", "jmp": "jmp_cli.model_app"}


def run_here(program: str, *arguments: object) -> Outcome:
    """Run a program in this process, which saves the seconds that a new one takes to load torch."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with redirect_stdout(out), redirect_stderr(err), patch.object(sys, "argv", [program, *map(str, arguments)]):
        try:
            import_module(_MODULES[program]).main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return Outcome(code, out.getvalue(), err.getvalue())


def run(program: str, *arguments: object) -> Outcome:
    """Run `jmp-data` or `jmp`."""
    module = _MODULES[program]
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)], capture_output=True, text=True, timeout=300, check=False
    )
    return Outcome(done.returncode, done.stdout, done.stderr)
