"""`make demo`: the main job on miniature archives, command by command, with a report folder at the end."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path

from . import data_app, model_app
from .console import out

_STEPS = 1400


def _run(program: str, arguments: list[str]) -> None:
    out.print(f"\n$ {program} {shlex.join(arguments)}", style="bold", markup=False)
    app = {"jmp-data": data_app.app, "jmp": model_app.app}[program]
    app(arguments, prog_name=program, standalone_mode=False)


def demo(folder: Path) -> None:
    """Raw demo archives → shards → mixture → pre-trained tiny model."""
    start = time.monotonic()
    raw, shards, mix, run = (str(folder / name) for name in ("raw", "shards", "mix.yaml", "pretrain"))
    sources = ["oc20", "oc22", "ani1x", "transition1x"]
    _run("jmp-data", ["demo-raw", raw])
    _run("jmp-data", ["build", *sources, "--raw", raw, "--out", shards])
    _run("jmp-data", ["verify", shards])
    _run("jmp-data", ["mix", *(f"{shards}/{name}/train" for name in sources), "--temperature", "2", "--out", mix])
    _run("jmp", ["train", "pretrain", "--mix", mix, "--model", "tiny", "--steps", str(_STEPS), "--out", run])
    out.print(f"\nfinished in {time.monotonic() - start:.0f} s; loss curves and metrics are in {run}", style="bold")


def main() -> None:
    """Entry point of `make demo`."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
    if (folder / "pretrain").exists():
        import shutil

        shutil.rmtree(folder / "pretrain")
    demo(folder)


if __name__ == "__main__":
    main()
