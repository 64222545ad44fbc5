"""`jmp-data`: raw files → checked shards → mixture. Each verb lives in a module of its own kind."""

from __future__ import annotations

import typer

from . import data_bench, data_build, data_download, data_fetch, data_look, data_mix, data_own, data_report
from .console import run_app

app = typer.Typer(
    name="jmp-data",
    help="From raw atomistic data sets to a temperature-mixed training stream, eV and Å throughout.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for module in (data_look, data_download, data_fetch, data_own, data_build, data_mix, data_report, data_bench):
    module.register(app)


def main() -> None:
    """Entry point."""
    run_app(app, "jmp-data")


if __name__ == "__main__":
    main()
