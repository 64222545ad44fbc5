"""`jmp experiment`: ways of training compared over seeds, in a table and a picture."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from jmp_data.errors import ManifestError

from .console import err, out, print_json, print_table

if TYPE_CHECKING:
    from jmp_model.experiments.compare import Comparison
    from jmp_model.experiments.spec import ExperimentSpec

DEMO_FOLDER = Path("demo")


def register(app: typer.Typer) -> None:
    """Add the verbs of this module."""
    app.command()(experiment)


def experiment(
    name: Annotated[str | None, typer.Argument(help="Experiment, or a my.yaml; without one, all are listed.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Output folder of jmp-data build. Default: demo/shards, made if need be.")
    ] = None,
    out_dir: Annotated[Path | None, typer.Option("--out", help="Folder. Default: experiments/NAME.")] = None,
    model: Annotated[Literal["tiny", "small", "large"] | None, typer.Option(help="Size of the model.")] = None,
    seeds: Annotated[str | None, typer.Option(help="How many, such as 5, or which, such as 0,3,7.")] = None,
    start: Annotated[
        list[str] | None,
        typer.Option("--from", help="VARIANT=RUN: a finished pre-training or a checkpoint for this variant; repeat."),
    ] = None,
    set_values: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE of the fine-tuning recipe, pretrain:KEY=VALUE of pre-training; repeat."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Fine-tuning runs at a time, one thread each.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Compare ways of training over seeds; started again, it goes on where it stopped.

    Example: jmp experiment scratch_or_fine_tuned --data shards --model tiny --seeds 3
    """
    from jmp_model.experiments.compare import compare, write_results
    from jmp_model.experiments.demo_data import prepare_demo_data
    from jmp_model.experiments.run import Experiment, Watchers, with_changes
    from jmp_model.experiments.spec import load_experiment

    if name is None:
        _print_names(as_json)
        return
    spec = with_changes(load_experiment(name), model=model, seeds=_parse_seeds(seeds))
    folder = out_dir or Path("experiments") / Path(name).stem
    planned = Experiment(
        spec,
        data=data or DEMO_FOLDER / "shards",
        out=folder,
        overrides=set_values or (),
        checkpoints=_parse_starts(start or ()),
        workers=workers,
        watchers=Watchers(message=_message),
    )
    if data is None:
        prepare_demo_data(DEMO_FOLDER, message=_message)
    found = planned.run()
    comparisons = compare(spec, found)
    files = write_results(folder, spec, found, comparisons)
    if as_json:
        results = [dataclasses.asdict(c) | _statistics(c) for c in comparisons]
        print_json({"experiment": name, "seeds": spec.seeds, "results": results, "files": files})
        return
    _print_comparison(spec, comparisons)
    out.print(f"written to {files['md']}, {files['csv'].name} and {files['png'].name}", markup=False)


def _message(text: str) -> None:
    err.print(text, markup=False)


def _print_names(as_json: bool) -> None:
    from jmp_model.experiments.spec import experiment_names, load_experiment

    specs = {name: load_experiment(name) for name in experiment_names()}
    if as_json:
        print_json({name: {"title": spec.title, "question": spec.question} for name, spec in specs.items()})
        return
    print_table("Experiments", ["name", "question"], [[name, spec.question] for name, spec in specs.items()])


def _parse_seeds(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 0 or (numbers == [0] and "," not in text):
        raise ManifestError(f"--seeds {text}: give how many, such as 5, or which, such as 0,3,7")
    return tuple(range(numbers[0])) if len(numbers) == 1 and "," not in text else tuple(numbers)


def _parse_starts(values: list[str] | tuple[()]) -> dict[str, Path]:
    starts = {}
    for value in values:
        variant, separator, run = value.partition("=")
        if not separator:
            raise ManifestError(f"--from {value}: give VARIANT=RUN")
        starts[variant] = Path(run)
    return starts


def _statistics(comparison: Comparison) -> dict[str, float | None]:
    names = ("mean", "spread", "improvement", "improvement_spread")
    values = {name: float(getattr(comparison, name)) for name in names}
    return {name: None if value != value else value for name, value in values.items()}


def _print_comparison(spec: ExperimentSpec, comparisons: list[Comparison]) -> None:
    from jmp_model.experiments.compare import reading, table_rows

    print_table(spec.title, *table_rows(spec, comparisons))
    out.print(reading(spec), markup=False)
