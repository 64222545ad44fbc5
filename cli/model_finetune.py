"""`jmp train finetune`: one of the forty tasks, a task of one's own, or files of one's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from jmp_data.errors import ManifestError

from .console import err, is_first_process, out, print_findings, print_json, print_table, progress

if TYPE_CHECKING:
    from jmp_model.finetune.config import FinetuneConfig
    from jmp_model.finetune.result import FinetuneResult
    from jmp_model.finetune.watcher import FinetuneWatcher

DEFAULT_ROOT = Path("shards")


def register(train: typer.Typer) -> None:
    """Add the verbs of this module."""
    train.command()(finetune)


def finetune(
    task: Annotated[
        str | None, typer.Option(help="Task such as qm9:U0, several as qm9:homo,lumo, or a my.yaml.")
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Files of your own (extxyz, traj, ASE database, ...) or their manifest; repeat."),
    ] = None,
    start: Annotated[
        Path | None, typer.Option("--from", help="Checkpoint; without one, training from scratch.")
    ] = None,
    root: Annotated[
        Path, typer.Option(help="Output folder of jmp-data build, where the splits of --task lie.")
    ] = DEFAULT_ROOT,
    out_dir: Annotated[Path, typer.Option("--out", help="Run folder.")] = Path("finetune"),
    model: Annotated[Literal["tiny", "small", "large"] | None, typer.Option(help="Preset without --from.")] = None,
    fold: Annotated[
        int | None, typer.Option(min=0, help="One fold of a task that has folds. Default: all, one run each.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of new heads and of the order.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Several seeds, such as 0,1,2: one run each.")] = None,
    targets: Annotated[
        list[str] | None,
        typer.Option("--target", help="Column of --data to learn; repeat. Default: energy, forces."),
    ] = None,
    units: Annotated[
        list[str] | None, typer.Option("--unit", help="Unit in the files of --data, such as energy=kcal/mol; repeat.")
    ] = None,
    forces: Annotated[
        Literal["gradient", "direct"] | None,
        typer.Option(help="How forces are made. Default: as the task says; with --data the gradient of the energy."),
    ] = None,
    keep_heads: Annotated[str | None, typer.Option(help="Keep the heads of this pre-training task.")] = None,
    refit_references: Annotated[
        bool, typer.Option("--refit-references", help="Fit element references to the training split.")
    ] = False,
    freeze: Annotated[
        list[str] | None, typer.Option(help="Leave parameters as they are: backbone, embedding, ...; repeat.")
    ] = None,
    new_elements: Annotated[
        Literal["refuse", "train"] | None, typer.Option(help="Elements that pre-training never saw.")
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="YAML file whose settings go over the common ones.")] = None,
    set_values: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE of the recipe; repeat.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False,
    replay: Annotated[
        Path | None, typer.Option(help="Instead of training, look again at a step that went wrong: nonfinite/step-….")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Fine-tune on one of the forty tasks of the paper, on a task of your own, or on your own files.

    Example: jmp train finetune --task rmd17:ethanol --from run --root shards --out ethanol

    Example: jmp train finetune --data frames.extxyz --from run --out tuned
    """
    if replay is not None:
        from jmp_model.finetune.replay import replay as replay_step

        print_findings(replay_step(replay), as_json=as_json)
        return
    _refuse_what_does_not_go_together(task, data, resume=resume, seed=seed, seeds=seeds, targets=targets, units=units)
    values: dict[str, Any] = {
        "start": start,
        "model": model,
        "fold": fold,
        "seed": seed,
        "keep_heads": keep_heads,
        "refit_references": refit_references or None,
        "freeze": tuple(freeze) if freeze else None,
        "new_elements": new_elements,
    }
    with _watching() as watcher:
        config = _configure(
            watcher,
            task=task,
            data=data,
            root=root,
            out=out_dir,
            forces=forces,
            recipe=recipe,
            overrides=set_values or (),
            targets=targets,
            units=units,
            resume=resume,
            values=values,
        )
        results = _run(config, watcher, resume=resume, seeds=_numbers(seeds))
        if data and results and results[-1].finished:
            from jmp_model.finetune.own_data import usage_hint

            watcher.message(usage_hint(results[-1].out))
    if is_first_process():
        _print(config, results, as_json=as_json)


def _refuse_what_does_not_go_together(task: str | None, data: list[Path] | None, **given: Any) -> None:
    if not given["resume"] and task is None and not data:
        raise ManifestError("name what to learn: --task qm9:U0, --task my.yaml, or --data my.extxyz")
    if task is not None and data and not task.endswith((".yaml", ".yml")):
        raise ManifestError(f"--task {task} brings its own data; with --data give a task of your own as a YAML file")
    for name, option in (("targets", "--target"), ("units", "--unit")):
        if given[name] and not data:
            raise ManifestError(f"{option} is about files of your own: give --data")
    if given["seed"] is not None and given["seeds"] is not None:
        raise ManifestError("give either --seed or --seeds")


def _numbers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ManifestError(f"--seeds {text!r}: write whole numbers with commas between, such as 0,1,2") from error
    if len(set(found)) < len(found):
        raise ManifestError(f"--seeds {text!r}: a seed is named twice")
    return found


def _configure(
    watcher: FinetuneWatcher,
    *,
    task: str | None,
    data: list[Path] | None,
    root: Path,
    out: Path,
    forces: Literal["gradient", "direct"] | None,
    recipe: str | None,
    overrides: Sequence[str],
    targets: list[str] | None,
    units: list[str] | None,
    resume: bool,
    values: dict[str, Any],
) -> FinetuneConfig:
    from jmp_model.finetune.config import load_finetune_config
    from jmp_model.finetune.own_data import configure_files
    from jmp_model.finetune.tasks import find_task
    from jmp_model.train.config import CONFIG_FILE

    if resume and (out / CONFIG_FILE).exists():
        return load_finetune_config(resume=True, out=out, recipe=recipe, overrides=overrides, **values)
    spec = None if task is None else find_task(task)
    if spec is not None and forces is not None:
        spec = spec.with_forces(forces)
    if data:
        return configure_files(
            data,
            out=out,
            watcher=watcher,
            task=spec,
            forces=forces,
            targets=targets,
            recipe=recipe,
            overrides=overrides,
            declared={"units": _units(units)} if units else None,
            **values,
        )
    if spec is None:
        raise ManifestError(f"{out}: no run to go on with here; name what to learn with --task or --data")
    return load_finetune_config(spec, recipe=recipe, overrides=[f"data.root={root}", *overrides], out=out, **values)


def _units(given: list[str]) -> dict[str, str]:
    found = {}
    for entry in given:
        column, separator, unit = entry.partition("=")
        if not (column and separator and unit):
            raise ManifestError(f"--unit {entry!r}: write COLUMN=UNIT, such as energy=kcal/mol")
        found[column] = unit
    return found


def _run(
    config: FinetuneConfig, watcher: FinetuneWatcher, *, resume: bool, seeds: list[int] | None
) -> list[FinetuneResult]:
    from jmp_model.finetune.series import finetune_series
    from jmp_model.finetune.trainer import finetune as run_finetuning

    folds = config.task.folds is not None and config.fold is None
    if seeds is None and not folds:
        return [run_finetuning(config, resume=resume, watcher=watcher)]
    one_fold = None if config.fold is None else [config.fold]
    return finetune_series(config, seeds=[config.seed] if seeds is None else seeds, folds=one_fold, watcher=watcher)


@contextmanager
def _watching() -> Iterator[FinetuneWatcher]:
    """Progress of a run."""
    from jmp_model.finetune.step import StepReport

    with progress("fine-tune", None, "steps") as advance:

        class ConsoleWatcher:
            def message(self, text: str) -> None:
                if is_first_process():
                    err.print(text, markup=False)

            def step_done(self, report: StepReport, total_steps: int) -> None:
                advance(1, f"of at most {total_steps}, loss {report.loss:.4f}")

            def validated(self, step: int, metrics: dict[str, float], *, is_best: bool) -> None:
                text = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
                err.print(f"validation after {step} steps: {text}{' (best)' if is_best else ''}", markup=False)

        yield ConsoleWatcher()


def _print(config: FinetuneConfig, results: Sequence[FinetuneResult], *, as_json: bool) -> None:
    if as_json:
        entries = [dataclasses.asdict(result) for result in results]
        print_json(entries[0] if len(entries) == 1 and entries[0]["out"] == config.out else {"runs": entries})
        return
    units = {name: target.report_unit or target.unit for name, target in config.task.targets.items()}
    for result in results:
        rows = [
            [name, *[_shown(part.get(name)) for part in (result.before, result.validation, result.test)], units[name]]
            for name in result.validation
        ]
        print_table(f"{config.task.name}: MAE", ["target", "before", "validation", "test", "unit"], rows)
        out.print(
            f"{result.steps} steps, {result.epochs:.1f} epochs; {result.stopped}; best weights in {result.best}",
            markup=False,
        )
    if results and not results[-1].finished:
        out.print(f"interrupted; the same command with --resume goes on: {results[-1].out}", markup=False)
    elif results and results[-1].out != config.out:
        out.print(f"{len(results)} runs; for their table: jmp results {config.out}", markup=False)
    elif not results:
        out.print(f"all runs are finished; for their table: jmp results {config.out}", markup=False)


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
