"""The two programs, `jmp-data` and `jmp`: parsing, progress and printing; all work is done in the packages."""

from __future__ import annotations

import sys
from types import TracebackType


def _report_interrupt(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Ctrl-C while the programs are still being loaded is no reason for a traceback."""
    if issubclass(kind, KeyboardInterrupt):
        sys.stderr.write("error: interrupted before it began\n")
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _report_interrupt
