"""`make demo`: the main job on miniature archives, command by command, with a report folder at the end.

Every command goes on from what is there, so that a demo that was stopped can be started again.
"""

from __future__ import annotations

import os
import shlex
import time
from pathlib import Path
from typing import Annotated

import typer

from . import data_app, model_app
from .console import out, run_app

SOURCES = ("oc20", "oc22", "ani1x", "transition1x")
HELD_OUT = "rmd17:ethanol"
HELD_OUT_SPLITS = ("train", "val", "test")
EXPERIMENT = "scratch_or_fine_tuned"
STEPS = 1200
_MOST_WORKERS = 4

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Where everything goes.")] = Path("demo"),
    steps: Annotated[int, typer.Option(min=1, help="Steps of pre-training.")] = STEPS,
    set_values: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE of the fine-tuning recipe; repeat.")
    ] = None,
) -> None:
    """Raw demo archives → shards → mixture → pre-trained tiny model → fine-tuned beside trained from scratch."""
    start = time.monotonic()
    # Before torch is imported: the operations of the tiny model are too small to be worth sharing between threads.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    raw, shards, mix, run, claim = (
        str(folder / name) for name in ("raw", "shards", "mix.yaml", "pretrain", "experiment")
    )
    _run("jmp-data", ["demo-raw", raw])
    _run("jmp-data", ["build", *SOURCES, "--raw", raw, "--out", shards])
    splits = [word for split in HELD_OUT_SPLITS for word in ("--split", split)]
    _run("jmp-data", ["build", HELD_OUT, *splits, "--raw", raw, "--out", shards])
    _run("jmp-data", ["verify", shards])
    _run("jmp-data", ["mix", *(f"{shards}/{name}/train" for name in SOURCES), "--temperature", "2", "--out", mix])
    resume = ["--resume"] if (folder / "pretrain" / "checkpoints").exists() else []
    pretraining = ["--mix", mix, "--model", "tiny", "--steps", str(steps), "--out", run]
    _run("jmp", ["train", "pretrain", *pretraining, *resume])
    changes = [word for value in set_values or () for word in ("--set", value)]
    claimed = ["--from", f"fine-tuned={run}", "--workers", str(_workers()), *changes]
    _run("jmp", ["experiment", EXPERIMENT, "--data", shards, "--out", claim, *claimed])
    page = _write_report(folder)
    out.print(f"\nfinished in {time.monotonic() - start:.0f} s; read {page}", style="bold", markup=False)


def _run(program: str, arguments: list[str]) -> None:
    out.print(f"\n$ {program} {shlex.join(arguments)}", style="bold", markup=False)
    begin = time.monotonic()
    programs = {"jmp-data": data_app.app, "jmp": model_app.app}
    code = programs[program](arguments, prog_name=program, standalone_mode=False)
    if code:
        raise typer.Exit(code)
    out.print(f"({time.monotonic() - begin:.0f} s)", markup=False)


def _workers() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _MOST_WORKERS)


def _write_report(folder: Path) -> Path:
    from jmp_model.experiments.demo_report import write_demo_report

    return write_demo_report(
        folder / "report",
        shards=folder / "shards",
        mix=folder / "mix.yaml",
        pretraining=folder / "pretrain",
        experiment=folder / "experiment",
    )


def main() -> None:
    """Entry point of `make demo`."""
    run_app(app, "make demo")


if __name__ == "__main__":
    main()
