"""`jmp parity` and its neighbours: check a model against numbers, look into checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from .console import EXIT_BAD_INPUT, err, fail, out, print_json, print_table

_TOLERANCE = {"float64": 1e-9, "float32": 2e-5}


def register(app: typer.Typer) -> None:
    """Add the verbs of this module."""
    app.command()(parity)


def parity(
    directory: Annotated[Path, typer.Argument(help="Folder with reference inputs, weights and outputs.")],
    dtype: Annotated[Literal["float64", "float32"], typer.Option(help="Precision to compute in.")] = "float64",
    tolerance: Annotated[
        float | None, typer.Option(help="Largest error allowed. Default: 1e-9, in float32 2e-5.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all errors as JSON.")] = False,
) -> None:
    """Compare the model, its graphs and the optimiser steps with stored reference numbers.

    Errors are relative to each array's largest magnitude. Exit code 1 beyond the tolerance.

    Example: jmp parity reference-outputs --json
    """
    import torch

    from jmp_model.parity import run_parity_report
    from jmp_model.train.trajectory_parity import replay_trajectory

    # Models of this size are faster on one thread, and its first threaded float64 exp can be off by 3e-9 (torch 2.13).
    torch.set_num_threads(1)
    report = run_parity_report(directory, dtype, extra=[replay_trajectory])
    cases = report.cases
    for case, reason in report.skipped.items():
        err.print(f"note: {case}: not compared: {reason}", markup=False)
    worst = {case: max(errors.items(), key=lambda entry: entry[1]) for case, errors in cases.items() if errors}
    largest = report.max_error
    limit = _TOLERANCE[dtype] if tolerance is None else tolerance
    if as_json:
        print_json({"max_error": largest, "cases": cases})
    else:
        rows = [[case, len(cases[case]), array, f"{error:.2e}"] for case, (array, error) in worst.items()]
        print_table(f"Parity in {dtype}", ["case", "arrays", "worst array", "largest relative error"], rows)
        out.print(f"largest error {largest:.2e}, tolerance {limit:.0e}")
    if not largest <= limit:
        fail(f"{directory}: largest relative error {largest:.2e} is beyond the tolerance {limit:.0e}")
        raise typer.Exit(EXIT_BAD_INPUT)
