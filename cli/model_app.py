"""`jmp`: train, fine-tune, evaluate and check models on the stream that `jmp-data` prepares."""

from __future__ import annotations

import typer

from . import model_evaluate, model_experiment, model_tools, model_train, model_use
from .console import run_app

app = typer.Typer(
    name="jmp",
    help="Train and use JMP models (GemNet-OC) on temperature-mixed streams of jmp-data shards.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for module in (model_train, model_evaluate, model_use, model_experiment, model_tools):
    module.register(app)


def main() -> None:
    """Entry point."""
    run_app(app, "jmp")


if __name__ == "__main__":
    main()
