"""`jmp train ...`: pre-training from a mixture, fine-tuning on a task."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .console import err, out, print_json, print_table, progress

if TYPE_CHECKING:
    from jmp_model.finetune.watcher import FinetuneWatcher
    from jmp_model.train.progress import TaskErrors, Watcher
    from jmp_model.train.result import PretrainResult

train = typer.Typer(name="train", help="Train a model.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the verbs of this module."""
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
    init_from: Annotated[Path | None, typer.Option(help="Checkpoint to start from.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Pre-train GemNet-OC with one pair of heads per data set; resumes exactly.

    Example: jmp train pretrain --mix mix.yaml --model small --out run
    """
    from jmp_model.train.config import load_pretrain_config
    from jmp_model.train.trainer import pretrain as run_pretraining

    config = load_pretrain_config(
        recipe,
        overrides=set_values or (),
        mix=mix,
        out=out_dir,
        model=model,
        steps=steps,
        epochs=epochs,
        init_from=init_from,
    )
    with _watching() as watcher:
        result = run_pretraining(config, resume=resume, watcher=watcher)
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


@contextmanager
def _watching_finetune() -> Iterator[FinetuneWatcher]:
    """Progress of a fine-tuning run."""
    from jmp_model.finetune.step import StepReport

    with progress("fine-tune", None, "steps") as advance:

        class ConsoleWatcher:
            def message(self, text: str) -> None:
                err.print(text, markup=False)

            def step_done(self, report: StepReport, total_steps: int) -> None:
                advance(1, f"of at most {total_steps}, loss {report.loss:.4f}")

            def validated(self, step: int, metrics: dict[str, float], *, is_best: bool) -> None:
                text = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
                err.print(f"validation after {step} steps: {text}{' (best)' if is_best else ''}", markup=False)

        yield ConsoleWatcher()


@train.command()
def finetune(
    task: Annotated[str | None, typer.Option(help="Task such as qm9:U0, or a my.yaml.")] = None,
    start: Annotated[
        Path | None, typer.Option("--from", help="Checkpoint; without one, training from scratch.")
    ] = None,
    root: Annotated[Path, typer.Option(help="Output folder of jmp-data build, where the splits lie.")] = Path("shards"),
    out_dir: Annotated[Path, typer.Option("--out", help="Run folder.")] = Path("finetune"),
    model: Annotated[Literal["tiny", "small", "large"] | None, typer.Option(help="Preset without --from.")] = None,
    fold: Annotated[int | None, typer.Option(min=0, help="Fold of a task that has folds.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of new heads and of the order.")] = None,
    keep_heads: Annotated[str | None, typer.Option(help="Keep the heads of this pre-training task.")] = None,
    recipe: Annotated[str | None, typer.Option(help="YAML file whose settings go over the common ones.")] = None,
    set_values: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE of the recipe; repeat.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Fine-tune on one of the forty tasks of the paper, or on a task of your own.

    Example: jmp train finetune --task rmd17:ethanol --from run/checkpoints/last --root shards --out ethanol
    """
    from jmp_model.finetune.config import load_finetune_config
    from jmp_model.finetune.trainer import finetune as run_finetuning

    config = load_finetune_config(
        task,
        recipe=recipe,
        overrides=[f"data.root={root}", *(set_values or ())],
        resume=resume,
        out=out_dir,
        start=start,
        model=model,
        fold=fold,
        seed=seed,
        keep_heads=keep_heads,
    )
    with _watching_finetune() as watcher:
        result = run_finetuning(config, resume=resume, watcher=watcher)
    if as_json:
        print_json(dataclasses.asdict(result))
        return
    units = {name: target.report_unit or target.unit for name, target in config.task.targets.items()}
    rows = [
        [
            name,
            f"{result.before.get(name, float('nan')):.4f}",
            f"{value:.4f}",
            _shown(result.test.get(name)),
            units.get(name, ""),
        ]
        for name, value in result.validation.items()
    ]
    print_table(f"{config.task.name}: MAE", ["target", "before", "validation", "test", "unit"], rows)
    out.print(f"{result.steps} steps, {result.epochs:.1f} epochs; {result.stopped}; best weights in {result.best}")


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
