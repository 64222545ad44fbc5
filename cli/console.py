"""What both programs share at the terminal: one-line errors, exit codes, tables, JSON, progress."""

from __future__ import annotations

import errno
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from jmp_data.errors import JmpDataError, ManifestError

EXIT_BAD_INPUT = 1
EXIT_USAGE = 2
EXIT_DAMAGED_RAW = 3
EXIT_BUG = 70
EXIT_INTERRUPTED = 130
# click's ClickException; newer typers carry a click of their own, so it cannot be imported by name.
_UsageError: type[Exception] = typer.BadParameter.__mro__[2]
_AFTER_INTERRUPT = {
    "jmp-data": "what is finished is kept, the same command goes on from there",
    "jmp": "finished checkpoints are kept, --resume goes on from the last one",
}
_OUR_FOLDERS = frozenset({"jmp_data", "jmp_model", "jmp_cli", "cli"})
_LOG_INTERVAL = 10.0

out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)


def is_first_process() -> bool:
    """Whether this is the process that prints, of those that `torchrun` or Fabric started for one command."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK"))


def fail(message: str) -> None:
    """Print one error line."""
    err.print(f"error: {' '.join(message.split())}", markup=False)


def run_app(app: typer.Typer, name: str) -> None:
    """Run a program; every failure is one line on stderr and a non-zero exit code."""
    try:
        # Not standalone: errors come here instead of being printed over several lines, exit codes are returned.
        code = app(prog_name=name, standalone_mode=False)
    except _UsageError as error:
        code = _fail_on_usage(error)
    except (KeyboardInterrupt, typer.Abort):
        code = EXIT_INTERRUPTED
    except JmpDataError as error:
        fail(str(error))
        code = EXIT_BAD_INPUT
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        hint = "; free some space and run the same command again" if error.errno == errno.ENOSPC else ""
        fail(f"{where}{error.strerror or error}{hint}")
        code = EXIT_BAD_INPUT
    except Exception as error:
        if sys.flags.dev_mode:
            raise
        fail(_describe_bug(error))
        code = EXIT_BUG
    if code == EXIT_INTERRUPTED:
        fail(f"interrupted; {_AFTER_INTERRUPT[name]}")
    sys.exit(code)


def _fail_on_usage(error: Any) -> int:
    """Say what is wrong with the command line; a program without a command shows its help."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
    else:
        where = f"; see `{error.ctx.command_path} --help`" if getattr(error, "ctx", None) else ""
        fail(f"{error.format_message().rstrip('.')}{where}")
    return EXIT_USAGE


def _describe_bug(error: Exception) -> str:
    """An error that nobody foresaw: what and where, so that a report can be written without a traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if _OUR_FOLDERS & set(Path(frame.filename).parts)]
    where = f" at {Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else ""
    kind = f"unexpected {type(error).__name__}{where}: {error}"
    return f"{kind} (a bug; PYTHONDEVMODE=1 before the command shows where it comes from)"


def print_json(value: Any) -> None:
    """Plain JSON on stdout, for machines."""
    sys.stdout.write(json.dumps(value, indent=1, default=str) + "\n")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table; numbers right-aligned."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for number, column in enumerate(columns):
        numeric = bool(rows) and all(str(row[number])[:1] in "-0123456789" for row in rows if str(row[number]))
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*[str(value) for value in row])
    # A log file or a pipe has no width; a table cut at 80 columns would lose names.
    (out if out.is_terminal else Console(width=160, soft_wrap=True)).print(table)


def print_findings(findings: Sequence[str], *, as_json: bool) -> None:
    """Lines for people, or one JSON object."""
    if as_json:
        print_json({"findings": list(findings)})
        return
    for line in findings:
        out.print(line, markup=False)


def print_facts(facts: Mapping[str, object]) -> None:
    """Aligned name: value lines."""
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        out.print(f"{name:<{width}}  {value}", markup=False)


def find_device(name: str) -> str:
    """The device that an option names; the GPU, if there is one, for "auto".

    Raises:
        ManifestError: there is no such device here.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ManifestError(f"--device {name}: cannot be used here: {reason}") from error
    return name


@contextmanager
def progress(label: str, total: int | None, unit: str = "") -> Iterator[Callable[[int, str], None]]:
    """A live bar on a terminal; in a log file a line every ten seconds, and one at the end of what took longer.

    Yields:
        `advance(count, note)`.
    """
    if err.is_terminal:
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=err,
            transient=True,
        )
        with bar:
            task = bar.add_task(label, total=total, note="")

            def update(count: int, note: str = "") -> None:
                bar.update(task, advance=count, note=note)

            yield update
        return
    start = last = time.monotonic()
    done, said = 0, ""

    def say(now: float, note: str) -> None:
        of = f"/{total}" if total is not None else ""
        seconds = now - start
        left = f", about {seconds / done * (total - done):.0f} s left" if total is not None and done else ""
        err.print(f"{label}: {done}{of} {unit} after {seconds:.0f} s{left} {note}".rstrip(), markup=False)

    def advance(count: int, note: str = "") -> None:
        nonlocal done, last, said
        done, said = done + count, note
        now = time.monotonic()
        if now - last >= _LOG_INTERVAL:
            last = now
            say(now, note)

    yield advance
    if done and time.monotonic() - start >= _LOG_INTERVAL:
        say(time.monotonic(), said)
