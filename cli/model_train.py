"""`jmp train pretrain`: pre-training from a mixture."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from jmp_data.errors import ManifestError

from . import model_finetune
from .console import err, is_first_process, out, print_findings, print_json, print_table, progress

if TYPE_CHECKING:
    from jmp_model.train.progress import TaskErrors, Watcher
    from jmp_model.train.result import PretrainResult

train = typer.Typer(name="train", help="Train a model.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the verbs of this module."""
    model_finetune.register(train)
    app.add_typer(train)


@contextmanager
def _watching() -> Iterator[Watcher]:
    """Progress of a run: a bar on a terminal, lines in a log file."""
    from jmp_model.train.step import StepReport

    with progress("train", None, "steps") as advance:

        class ConsoleWatcher:
            def message(self, text: str) -> None:
                err.print(text, markup=False)

            def step_done(self, report: StepReport, total_steps: int) -> None:
                advance(1, f"of {total_steps}, loss {report.loss:.4f}")

            def validated(self, step: int, errors: TaskErrors) -> None:
                text = ", ".join(
                    f"{task} {values['energy_mae']:.3f} eV {values['force_mae']:.3f} eV/Å"
                    for task, values in errors.items()
                )
                err.print(f"validation after {step} steps: {text}", markup=False)

        yield ConsoleWatcher()


def _print_result(result: PretrainResult) -> None:
    rows = []
    for task, after in result.after.items():
        before = result.before.get(task, {})
        row: list[object] = [task]
        for name in ("energy_mae", "force_mae"):
            row += [f"{before[name]:.4f}" if name in before else "", f"{after[name]:.4f}"]
        rows.append(row)
    columns = ["data set", "E before, eV", "E after, eV", "F before, eV/Å", "F after, eV/Å"]
    print_table("Validation MAE per data set", columns, rows)
    ended = f" (stopped: {result.stopped})" if result.stopped else ""
    out.print(f"{result.steps} of {result.total_steps} steps in {result.seconds:.0f} s{ended}; run folder {result.out}")


@train.command()
def pretrain(
    mix: Annotated[Path | None, typer.Option(help="Mixture file of jmp-data mix.")] = None,
    out_dir: Annotated[Path, typer.Option("--out", help="Run folder.")] = Path("run"),
    model: Annotated[
        Literal["tiny", "small", "large"] | None, typer.Option(help="small is JMP-S, large JMP-L.")
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="Recipe file, or the name of one that ships.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps, instead of epochs.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Epochs of the mixture.")] = None,
    set_values: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE of the recipe; repeat.")] = None,
    init_from: Annotated[Path | None, typer.Option(help="Checkpoint or released .pt file to start from.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False,
    replay: Annotated[
        Path | None, typer.Option(help="Instead of training, look again at a step that went wrong: nonfinite/step-….")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Pre-train GemNet-OC with one pair of heads per data set; resumes exactly.

    Example: jmp train pretrain --mix mix.yaml --model small --out run
    """
    if replay is not None:
        from jmp_model.train.nonfinite import replay as replay_step

        print_findings(replay_step(replay), as_json=as_json)
        return
    from jmp_model.train.config import CONFIG_FILE, load_pretrain_config
    from jmp_model.train.trainer import pretrain as run_pretraining

    if resume and not (out_dir / CONFIG_FILE).exists():
        raise ManifestError(f"{out_dir}: no run to go on with here ({CONFIG_FILE} is missing)")
    if mix is None and not resume and recipe is None:
        raise ManifestError("name a mixture: --mix mix.yaml, as jmp-data mix writes it")
    config = load_pretrain_config(
        recipe,
        overrides=set_values or (),
        resume=resume,
        mix=mix,
        out=out_dir,
        model=model,
        steps=steps,
        epochs=epochs,
        init_from=init_from,
    )
    with _watching() as watcher:
        result = run_pretraining(config, resume=resume, watcher=watcher)
    if not is_first_process():
        return
    if as_json:
        print_json(
            {
                "out": str(result.out),
                "checkpoint": str(result.checkpoint),
                "steps": result.steps,
                "before": result.before,
                "after": result.after,
                "seconds": result.seconds,
            }
        )
    else:
        _print_result(result)
