"""Run the two programs as a user does: in a process of their own, looking at exit code, stdout and stderr."""

from __future__ import annotations

import io
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass

from jmp_cli import data_app, model_app
from jmp_cli.console import run_app


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


def call(program: str, *arguments: object) -> Outcome:
    """The same within this process, which saves the seconds that importing torch takes."""
    app = {"jmp-data": data_app, "jmp": model_app}[program].app
    text_out, text_err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = [program, *map(str, arguments)]
    code: object = 0
    try:
        with redirect_stdout(text_out), redirect_stderr(text_err):
            run_app(app, program)
    except SystemExit as stop:
        code = stop.code
    finally:
        sys.argv = before
    return Outcome(code if isinstance(code, int) else 1, text_out.getvalue(), text_err.getvalue())


def run(program: str, *arguments: object) -> Outcome:
    """Run `jmp-data` or `jmp`."""
    module = {"jmp-data": "jmp_cli.data_app", "jmp": "jmp_cli.model_app"}[program]
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)], capture_output=True, text=True, timeout=300, check=False
    )
    return Outcome(done.returncode, done.stdout, done.stderr)
