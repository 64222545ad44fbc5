"""`jmp train ...`: pre-training from a mixture."""

from __future__ import annotations

import typer

train = typer.Typer(name="train", help="Train a model.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the verbs of this module."""
    app.add_typer(train)
