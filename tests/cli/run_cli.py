"""Run the two programs as a user does: in a process of their own, looking at exit code, stdout and stderr."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass


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


def run(program: str, *arguments: object) -> Outcome:
    """Run `jmp-data` or `jmp`."""
    module = {"jmp-data": "jmp_cli.data_app", "jmp": "jmp_cli.model_app"}[program]
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)], capture_output=True, text=True, timeout=300, check=False
    )
    return Outcome(done.returncode, done.stdout, done.stderr)
